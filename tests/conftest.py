from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local.provider import LocalCluster, LocalSpec
from runtimes.catalog import BuiltModel, build_model
from tests.helpers import Reference, reference_server

# Child processes of tests find the project whatever their working directory is.
os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)


ALONE = (
    "tests/harness/load/",
    "tests/scenarios/test_capacity.py",
    "tests/scenarios/test_compare.py",
    "tests/scenarios/test_distributed_load.py",
    "tests/scenarios/test_load_",
    "tests/scenarios/test_most_throughput.py",
    "tests/scenarios/test_tls.py",
    "tests/scenarios/test_verdicts.py",
    "tests/faults/test_cluster_suites.py",
    "tests/cluster/test_generators.py",
    "tests/cluster/test_scaling.py",
    "tests/cluster/test_standard.py",
    "tests/test_quickstart.py",
    "tests/test_terminal.py",
)
"""Tests of load and of reactions in time: others beside them would be in what they measure."""
TOGETHER = {"tests/runtimes/": "runtimes", "tests/faults/test_mutants.py": "mutants"}
"""Tests that share a server, or look at each other's processes, and so belong to one worker."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        place = item.nodeid
        if place.startswith(ALONE):
            item.add_marker(pytest.mark.alone)
        for start, group in TOGETHER.items():
            if place.startswith(start):
                item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def identity() -> BuiltModel:
    return build_model("identity")


@pytest.fixture(scope="session")
def identity_half() -> BuiltModel:
    return build_model("identity-half")


@pytest.fixture(scope="session")
def reference(identity: BuiltModel) -> Iterator[Reference]:
    with reference_server(identity.artifacts) as server:
        yield server


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    directory = tmp_path_factory.mktemp("cluster") / "local"
    with LocalCluster.start(LocalSpec(directory, bookmark_s=1.0, hpa_period_s=2.0)) as running:
        yield running
