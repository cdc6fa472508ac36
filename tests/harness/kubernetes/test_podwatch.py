"""A watch that has to begin anew tells what it missed; one that cannot begin says so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.base.errors import ClusterError
from harness.kubernetes import podwatch
from harness.kubernetes.podwatch import PodChange, Watch


class Listing:
    """Answers to lists, one after the other."""

    def __init__(self, *answers: list[tuple[str, str]]) -> None:
        self.answers = list(answers)

    def __call__(self, **options: Any) -> Any:
        items = [
            SimpleNamespace(metadata=SimpleNamespace(uid=uid, resource_version=version))
            for uid, version in self.answers.pop(0)
        ]
        return SimpleNamespace(items=items, metadata=SimpleNamespace(resource_version="9"))


def plain(item: Any) -> dict[str, Any]:
    metadata = item.metadata
    return {"metadata": {"name": metadata.uid, "uid": metadata.uid, "resourceVersion": metadata.resource_version}}


def watch(listing: Any) -> Watch[PodChange]:
    core = SimpleNamespace(api_client=SimpleNamespace(sanitize_for_serialization=plain))
    return Watch(core, "pods", listing, {}, PodChange)


def test_a_list_after_a_gap_tells_what_came_changed_and_went() -> None:
    followed = watch(Listing([("a", "1"), ("b", "2"), ("c", "3")], [("b", "2"), ("c", "7"), ("d", "8")]))
    assert followed._list() == "9"
    followed._list()
    seen = [(change.type, change.name) for change in followed.changes]
    assert seen == [("ADDED", "a"), ("ADDED", "b"), ("ADDED", "c"), ("DELETED", "a"), ("MODIFIED", "c"), ("ADDED", "d")]


async def test_a_watch_that_does_not_begin_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(**options: Any) -> Any:
        import threading

        threading.Event().wait(2)
        raise OSError("gone")

    monkeypatch.setattr(podwatch, "READY_S", 0.1)
    with pytest.raises(ClusterError, match="did not begin"):
        async with watch(never):
            pass
