"""Executables that stand in for the command-line tools of clouds: they record each call, and do what a rule says."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.local.kubelet.pods import STORAGE_ANNOTATION

_SCRIPT = """#!{python} -S
import json, os, re, signal, sys, time
home = {home!r}
name = os.path.basename(sys.argv[0])
line = " ".join([name, *sys.argv[1:]])
stdin = "" if sys.stdin.isatty() else sys.stdin.read()
state = os.environ.get("SERVECERT_STATE", "")
folder = os.path.join(state, "clusters")
known = sorted(item for item in os.listdir(folder) if item.endswith(".json")) if os.path.isdir(folder) else []
call = {{"line": line, "argv": [name, *sys.argv[1:]], "stdin": stdin, "known": known, "pid": os.getpid(),
        "kubeconfig": os.environ.get("KUBECONFIG", ""),
        "there": "--kubeconfig" in sys.argv and os.path.exists(sys.argv[sys.argv.index("--kubeconfig") + 1]),
        "profile": os.environ.get("AWS_PROFILE", "")}}
with open(os.path.join(home, "calls.jsonl"), "a") as file:
    file.write(json.dumps(call) + "\\n")
with open(os.path.join(home, "rules.json")) as file:
    rules = json.load(file)
for rule in rules:
    if not re.search(rule["match"], line):
        continue
    count = os.path.join(home, "count-" + str(rules.index(rule)))
    seen = os.path.getsize(count) if os.path.exists(count) else 0
    with open(count, "a") as file:
        file.write(".")
    if not rule.get("skips", 0) <= seen < rule.get("times", 10**9):
        continue
    if "writes" in rule:
        flag, content = rule["writes"]
        where = os.environ[flag] if flag.isupper() else sys.argv[sys.argv.index(flag) + 1]
        with open(where, "w") as file:
            file.write(content)
    sys.stdout.write(rule.get("stdout", ""))
    sys.stderr.write(rule.get("stderr", ""))
    sys.stdout.flush()
    if rule.get("hangs"):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        while True:
            time.sleep(0.05)
    sys.exit(rule.get("exit", 0))
"""


@dataclass
class StandIns:
    """``bin`` goes in front of PATH; ``state`` is where the harness writes down what it creates."""

    home: Path
    rules: list[dict[str, Any]] = field(default_factory=list)

    @property
    def bin(self) -> Path:
        return self.home / "bin"

    @property
    def state(self) -> Path:
        return self.home / "state"

    def install(self, *names: str) -> StandIns:
        self.bin.mkdir(parents=True, exist_ok=True)
        text = _SCRIPT.format(python=sys.executable, home=str(self.home))
        for name in names:
            path = self.bin / name
            path.write_text(text)
            path.chmod(0o755)
        self.rule()
        return self

    def rule(self, *rules: dict[str, Any]) -> None:
        """The first rule whose ``match`` is found in a call decides; without one a call succeeds in silence."""
        self.rules = [*rules]
        for path in self.home.glob("count-*"):
            path.unlink()
        (self.home / "rules.json").write_text(json.dumps(self.rules))

    def environment(self, *, alone: bool = False) -> dict[str, str]:
        """``alone`` leaves nothing else on PATH."""
        rest = "" if alone else os.pathsep + os.environ["PATH"]
        return {**os.environ, "PATH": f"{self.bin}{rest}", "SERVECERT_STATE": str(self.state)}

    def calls(self) -> list[dict[str, Any]]:
        path = self.home / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def lines(self) -> list[str]:
        return [str(call["line"]) for call in self.calls()]

    def forget_calls(self) -> None:
        (self.home / "calls.jsonl").unlink(missing_ok=True)


RUNS_HERE = "servecert/reference:1.0.0"


def running_pod(name: str, labels: dict[str, str], artifacts: Path, image: str = RUNS_HERE) -> dict[str, Any]:
    """A pod that the embedded cluster can start, and that is ready: in place of one whose image is of elsewhere."""
    annotations = {STORAGE_ANNOTATION: f"file://{artifacts}"}
    return {
        "metadata": {"name": name, "labels": labels, "annotations": annotations},
        "spec": {
            "containers": [{"name": "main", "image": image}],
            "initContainers": [{"name": "storage-initializer", "image": "any"}],
        },
    }
