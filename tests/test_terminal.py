"""What a person sees: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from harness.load.runner import Progress, Together
from harness.load.sketch import bins_of, percentile_of
from harness.results.records import Outcome
from reports.terminal import Terminal
from scenarios.suites.shared.live import Live
from tests.helpers import ROOT, SERVECERT
from tests.records import check

COLOUR = re.compile(r"\x1b\[[0-9;]*\b(3[0-7]|4[0-7]|9[0-7]|38|48)[;m]")


def scenario(directory: Path) -> Path:
    path = directory / "watched.yaml"
    step = {
        "suite": "load",
        "service": "identity",
        "rate": "40/s",
        "duration": "4s",
        "timeout": "5s",
        "name": "watched",
    }
    text = {
        "name": "watched",
        "services": {"identity": {"runtime": "reference", "model": "identity"}},
        "steps": [step],
    }
    path.write_text(yaml.safe_dump(text))
    return path


def on_a_terminal(arguments: list[str]) -> str:
    """What a command writes to a terminal of its own."""
    leader, follower = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200"}
    with subprocess.Popen(
        [*SERVECERT, *arguments], stdin=follower, stdout=follower, stderr=follower, cwd=ROOT, env=env
    ) as process:
        os.close(follower)
        seen = b""
        while True:
            try:
                data = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            seen += data
        process.wait(60)
    os.close(leader)
    return seen.decode(errors="replace")


def test_terminal_shows_rate_percentiles_and_pods_while_it_runs(tmp_path: Path) -> None:
    text = on_a_terminal(["run", str(scenario(tmp_path)), "--out", str(tmp_path / "run")])
    # A status that is too long for its line is broken anywhere.
    words = re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))
    live = re.findall(r"watched: (\d) of 5 s, ([\d.]+)/s now, p50 [\d.]+ [mµ]?s, p99 [\d.]+ [mµ]?s, (\d+) done", words)
    assert len({second for second, _, _ in live}) >= 3, words[-3000:]
    assert all(15 < float(rate) < 80 for _, rate, _ in live[2:])
    assert "1 of 1 pods ready" in words
    assert "PASSED" in words


def shown(*, terminal: bool) -> str:
    """What the terminal view writes of a step with a failure."""
    file = io.StringIO()
    with Terminal(Console(file=file, force_terminal=terminal, width=200)) as view:
        view.phase("deploying")
        view.record(check())
        view.record(check("rest.infer.id_echo", Outcome.FAILED))
        view.step_done("1", 2.0)
        assert view.live is terminal
    return file.getvalue()


def test_colours_are_left_out_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert COLOUR.search(shown(terminal=True))
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(terminal=True)
    assert not COLOUR.search(text)
    assert "rest.infer.id_echo" in text


def test_elsewhere_there_are_plain_lines() -> None:
    text = shown(terminal=False)
    assert "\x1b" not in text
    assert "\r" not in text
    assert [line.split()[1] for line in text.splitlines()[:2]] == ["deploying", "✕"]


def test_long_silence_is_broken_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    view = Terminal(Console(file=file, force_terminal=False, width=200))
    now = time.monotonic()
    for second in range(100):
        monkeypatch.setattr(time, "monotonic", lambda second=second: now + second)
        view.status(f"{second} of 100 s")
    assert len(file.getvalue().splitlines()) == 3
    quiet = Terminal(Console(file=file, force_terminal=False), quiet=True)
    monkeypatch.setattr(time, "monotonic", lambda: now + 1000)
    quiet.status("nothing")
    assert "nothing" not in file.getvalue()


def test_percentiles_so_far_are_near_the_real_ones() -> None:
    latency = (np.random.default_rng(1).lognormal(0, 1, 20_000) * 5e6).astype(np.int64)
    seen: list[Progress] = []
    together = Together(seen.append)
    for place, part in enumerate(np.array_split(latency, 4)):
        together.part(place % 2, Progress(1.0, part.size, 0, 0, bins_of(part)))
    for q in (0.5, 0.9, 0.99):
        assert seen[-1].percentile_s(q) == pytest.approx(float(np.quantile(latency, q)) / 1e9, rel=0.03)
    assert percentile_of({}, 0.5) is None
    assert Progress.read({"elapsed_s": 1, "done": 0, "errors": 0, "in_flight": 0, "bins": [[5, 2]]}).bins == {5: 2}


def test_rate_is_that_of_the_last_seconds_and_begins_anew_with_a_stage() -> None:
    told: list[str] = []
    live = Live("x", 60.0, told.append)
    for second in range(10):
        live.show(Progress(float(second), 10 * second if second < 5 else 40 + 100 * (second - 4), 0, 0))
    assert "100.0/s now" in told[-1]
    live.show(Progress(1.0, 7, 0, 0))
    assert "7.0/s now" in told[-1]
