"""What was run, on what, when, and by which versions; with digests that tie a summary to its run directory."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

from harness.results.runstore import RECORDS, Run
from harness.results.verdict import tally
from reports.tables import tally_text


@dataclass(frozen=True)
class StepLine:
    name: str
    suite: str
    service: str
    state: str
    result: str
    seconds: str


@dataclass(frozen=True)
class SignOff:
    steps: list[StepLine]
    facts: list[tuple[str, str]]


def sign_off(run: Run) -> SignOff:
    info = run.info
    steps = []
    for step in info.get("steps", []):
        counts = tally([check for check in run.checks if check.step == step["name"]])
        seconds = step.get("seconds")
        steps.append(
            StepLine(
                step["name"],
                step["suite"],
                step["service"],
                step.get("state", ""),
                tally_text(counts),
                f"{seconds:.1f} s" if seconds is not None else "–",
            )
        )
    host = info["host"]
    services = [
        f"{name}: {item.get('runtime', '')} with {item.get('model', '')}" for name, item in info["services"].items()
    ]
    versions = [f"{name} {version}" for name, version in info["versions"].items()]
    cluster = info.get("provider", "a server that was already there")
    if kubernetes := info.get("kubernetes"):
        cluster += f", Kubernetes {kubernetes}"
    facts = [
        ("command", " ".join(info["command"])),
        ("services", "; ".join(services)),
        ("cluster", cluster),
        ("machine", _machine(host)),
        ("versions", ", ".join([*versions, f"Python {host['python']}"])),
        ("seed", str(info["seed"])),
        ("started", str(info["started"])),
        ("finished", str(info["finished"] or "never: this run was interrupted")),
    ]
    if scenario := _digest(run, ("scenario.yaml",)):
        facts.append(("scenario, SHA-256", scenario))
    if records := _digest(run, RECORDS):
        facts.append(("records, SHA-256", records))
    return SignOff(steps, facts)


def _machine(host: dict[str, Any]) -> str:
    text = f"{host['system']}, {host['cpu_count']} processors, {host['memory_bytes'] / 2**30:.0f} GiB"
    kinds = Counter((item["name"], item["memory_bytes"], item["driver"]) for item in host.get("gpus", []))
    for (name, memory, driver), count in kinds.items():
        text += f", {count} × {name} ({memory / 2**30:.0f} GiB, driver {driver})"
    return text


def _digest(run: Run, names: tuple[str, ...]) -> str:
    """Of files one after the other, each with its name; empty where there is none of them."""
    digest, any_there = hashlib.sha256(), False
    for name in names:
        path = run.directory / name
        if path.exists():
            any_there = True
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest() if any_there else ""
