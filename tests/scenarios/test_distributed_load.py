"""Load by Locust's master and two workers, on loopback: nothing is lost on the way, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from harness.load.distributed import Address
from harness.results.runstore import read_run
from scenarios.suites.shared.stage import Plan
from tests.helpers import (
    ROOT,
    SERVECERT,
    Reference,
    free_port,
    load_workers,
    processes_mentioning,
    servecert,
    servecert_undisturbed,
    wait_until,
)


def test_two_workers_send_what_one_generator_would(reference: Reference, tmp_path: Path) -> None:
    port = free_port()
    with load_workers(port):
        out = tmp_path / "run"
        command = ["load", reference.url, "--model", reference.model, "--json", "-"]
        rate = ["--rate", "200/s", "--duration", "1s", "--warmup", "1s", "--seed", "7"]
        carried = ["--workers", f"locust://127.0.0.1:{port}?expect=2"]
        result = servecert_undisturbed(*command, *rate, *carried, out=out)
        assert result.returncode == 0, result.stderr
        closed = servecert_undisturbed(
            *[*command, "--concurrency", "3", "--duration", "1s", *carried], out=tmp_path / "closed"
        )
        assert closed.returncode == 0, closed.stderr
    measured = json.loads(result.stdout)
    assert measured["generators"] == 2
    alone = Plan("load", 1.0, rate_per_s=200, warmup_s=1.0, seed=7)
    assert measured["requests"] == alone.measured_ns.size, "the same schedule, whoever sends it"
    assert measured["errors"] == 0
    assert measured["checked_answers"] > 50
    run = read_run(out)
    batch = run.samples(run.loads[0])
    assert batch is not None
    assert len(batch) == measured["requests"]
    assert (batch.due_ns[1:] >= batch.due_ns[:-1]).all()
    assert json.loads(closed.stdout)["generators"] == 2
    assert json.loads(closed.stdout)["requests"] > 100


def test_workers_that_do_not_come(reference: Reference) -> None:
    result = servecert(
        *["load", reference.url, "--model", reference.model, "--rate", "10/s", "--duration", "1s"],
        *["--workers", f"locust://127.0.0.1:{free_port()}?wait=1"],
    )
    assert result.returncode == 1
    assert "0 of 1 load workers connected within 1 s" in result.stderr
    assert "servecert worker locust://" in result.stderr


def test_a_worker_that_dies_during_the_stage(reference: Reference) -> None:
    port = free_port()
    with load_workers(port, 2) as running:
        command = ["load", reference.url, "--model", reference.model, "--rate", "50/s", "--duration", "60s"]
        load = subprocess.Popen(
            [*SERVECERT, *command, "--workers", f"locust://127.0.0.1:{port}?expect=2"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        generators = wait_until(lambda: len(found := processes_mentioning("harness.load.worker")) == 2 and found)
        os.kill(running[0].pid, signal.SIGKILL)
        _, errors = load.communicate(timeout=40)
        assert load.returncode == 1, errors
        assert "was lost during the stage" in errors
        wait_until(lambda: not set(generators) & set(processes_mentioning("harness.load.worker")), what="their end")


@pytest.mark.parametrize(
    "url", ["locust://", "http://127.0.0.1:5557", "locust://h:99999", "locust://h?expect=0", "locust://h?exspect=2"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="expected locust://HOST:PORT"):
        Address.parse(url)


def test_addresses() -> None:
    assert Address.parse("locust://10.0.0.1:99?expect=3") == Address("10.0.0.1", 99, 3)
    assert Address.parse("locust://10.0.0.1") == Address("10.0.0.1", 5557, 1)
