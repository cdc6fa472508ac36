"""Processor time of blocks from kubelets that look now and then."""

from __future__ import annotations

import pytest

from harness.base.errors import MeasurementError
from harness.kubernetes.kserve import Used
from scenarios.suites.compare import usage
from scenarios.suites.compare.usage import Meter, busy_s, fresh


class Kubelet:
    """Looks at its pod every ten seconds of a clock that each question moves by ``step_s``; the pod is busy between two
    moments, and uses 1 % of a processor at rest."""

    def __init__(self, busy: tuple[float, float], step_s: float = 0.5) -> None:
        self.busy = busy
        self.clock = 3.0
        self.step_s = step_s

    def used_s(self, at: float) -> float:
        start, end = self.busy
        return 0.01 * at + max(0.0, min(at, end) - start)

    async def usage(self, name: str) -> dict[str, Used]:
        self.clock += self.step_s
        at = 10.0 * (self.clock // 10.0)
        return {"pod": Used(self.used_s(at), 1000 + int(at), at)}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "POLL_S", 0.0)


async def test_a_reading_is_of_after_it_was_asked_for() -> None:
    kubelet = Kubelet(busy=(0, 0))
    asked = kubelet.clock
    found = await fresh(kubelet, "any")  # type: ignore[arg-type]
    assert found["pod"].at_s > asked


async def test_a_kubelet_that_no_longer_looks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "FRESH_WITHIN_S", 0.05)
    with pytest.raises(MeasurementError, match=r"have not looked at the pods of any for 0\.05 s"):
        await fresh(Kubelet(busy=(0, 0), step_s=0.0), "any")  # type: ignore[arg-type]


async def test_a_block_is_what_is_used_in_it_and_not_what_rests_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds of work in a block of four, which the kubelet's looks enclose by far."""
    kubelet = Kubelet(busy=(1e9, 1e9))
    monkeypatch.setattr(usage.time, "monotonic", lambda: kubelet.clock)
    meter = Meter(cpu=True)
    await meter.begin(kubelet, "any")  # type: ignore[arg-type]
    kubelet.busy = (kubelet.clock + 1, kubelet.clock + 3)
    kubelet.clock += 4
    used = await meter.end(kubelet, "any")  # type: ignore[arg-type]
    # At rest the pod uses 1 % of the block, too: that is the block's.
    assert used["cpu"] == pytest.approx(2 + 0.01 * 4, abs=0.02)
    assert used["memory"] > 1000


async def test_no_time_at_all_is_an_error() -> None:
    class Idle(Kubelet):
        def used_s(self, at: float) -> float:
            return 5.0

    kubelet = Idle(busy=(0, 0))
    meter = Meter(cpu=True)
    await meter.begin(kubelet, "any")  # type: ignore[arg-type]
    with pytest.raises(MeasurementError, match="saw no processor time in a block"):
        await meter.end(kubelet, "any")  # type: ignore[arg-type]


def test_pods_that_come_count_and_pods_that_go_are_an_error() -> None:
    before = {"a": Used(10.0, 1, 100.0)}
    assert busy_s({}, before, {"a": Used(11.0, 1, 110.0), "b": Used(0.5, 1, 110.0)}, 10.0) == pytest.approx(1.5)
    with pytest.raises(MeasurementError, match="a went away during a block"):
        busy_s({}, before, {"b": Used(0.5, 1, 110.0)}, 10.0)
