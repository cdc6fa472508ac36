"""What a suite is to the rest of the project, and what it is given when it is carried out."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar, get_args

from harness.base.errors import UsageError
from scenarios.model.steps import Step

if TYPE_CHECKING:
    from harness.results.observer import Observer
    from harness.results.records import Record
    from harness.target.endpoint import Endpoint
    from scenarios.suites.shared.deployed import Deployed, Turn
    from scenarios.suites.shared.stage import Within

_S = TypeVar("_S", bound=Step)


@dataclass(frozen=True)
class Target:
    """What a step is carried out on. ``deployed`` is None for a server that is there without a cluster."""

    endpoint: Endpoint | None
    """None for a service that is deployed when it is its turn."""
    deployed: Deployed | None = None
    within: Within | None = None
    """Starts load generators in the cluster, where that can be."""
    others: Mapping[str, Deployed] = field(default_factory=dict)
    """All services of the scenario that are there, by name."""
    turns: Mapping[str, Turn] = field(default_factory=dict)
    """Those whose turn comes in a comparison."""

    @property
    def there(self) -> Endpoint:
        if self.endpoint is None:
            raise UsageError("this service is only there when it is its turn in a comparison")
        return self.endpoint

    def on_cluster(self, suite: str) -> Deployed:
        """Raises UsageError where there is no cluster."""
        if self.deployed is None:
            raise UsageError(f"{suite} changes a service on a cluster: run it as a step of a scenario")
        return self.deployed


@dataclass(frozen=True)
class Task:
    """One step as its suite carries it out. Everything that it yields is written down as it comes."""

    name: str
    """The step's, in all that it yields."""
    target: Target
    seed: int
    observer: Observer
    samples_name: Callable[[str], str]
    """The file for the samples of a stage, by the stage's name."""
    save: Callable[[str, str], str]
    """Keeps a text beside the logs, by a file name, and says where."""


@dataclass(frozen=True)
class Suite(Generic[_S]):
    """A suite registers itself: its package names it ``SUITE``, and ``scenarios.suites.suites`` finds it there.

    What it needs of a cluster and of a service, its ``step`` model says (``scenarios.model.steps.Step``)."""

    title: str
    """As reports call its part."""
    step: type[_S]
    """What a scenario says of a step of this suite; it lies in the package of the suite."""

    @property
    def name(self) -> str:
        """As scenario files say it: what the model's field ``suite`` must be."""
        (name,) = get_args(self.step.model_fields["suite"].annotation)
        return str(name)

    def run(self, step: _S, task: Task) -> AsyncIterator[Record]:
        """Carries out a step, by ``run`` in the package's ``run.py``. What it raises becomes an error of the run."""
        # Imported late: scenarios are read, and most commands end, without what carries suites out.
        module = importlib.import_module(f"{self.step.__module__.rpartition('.')[0]}.run")
        records: AsyncIterator[Record] = module.run(step, task)
        return records
