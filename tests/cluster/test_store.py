from __future__ import annotations

import pytest

from cluster.local.api.patches import json_patch, merge_patch, strategic_merge
from cluster.local.api.protobuf_bodies import decode
from cluster.local.api.resources import BY_KIND, age, table
from cluster.local.api.selectors import field_selector, label_selector
from cluster.local.api.store import ApiError, Change, Store, Watch

MAPS = BY_KIND["ConfigMap"]


@pytest.fixture
def store() -> Store:
    fresh = Store(history=8)
    fresh.create(BY_KIND["Namespace"], {"metadata": {"name": "ns"}})
    return fresh


def test_what_is_handed_out_is_a_copy(store: Store) -> None:
    store.create(MAPS, {"metadata": {"name": "a", "namespace": "ns"}, "data": {"x": "1"}})
    store.get(MAPS, "ns", "a")["data"]["x"] = "2"
    assert store.get(MAPS, "ns", "a")["data"]["x"] == "1"


def test_update_without_a_change_keeps_the_version(store: Store) -> None:
    stored = store.create(MAPS, {"metadata": {"name": "a", "namespace": "ns"}})
    assert store.update(MAPS, stored)["metadata"]["resourceVersion"] == stored["metadata"]["resourceVersion"]


def test_status_and_spec_are_written_apart(store: Store) -> None:
    isvc = BY_KIND["InferenceService"]
    item = store.create(isvc, {"metadata": {"name": "a", "namespace": "ns"}, "spec": {"p": 1}, "status": {"x": 1}})
    assert "status" not in item
    item["status"] = {"ready": True}
    item["spec"] = {"p": 2}
    with_status = store.update(isvc, item, subresource="status")
    assert with_status["status"] == {"ready": True}
    assert with_status["spec"] == {"p": 1}
    assert with_status["metadata"]["generation"] == 1
    with_status["spec"] = {"p": 2}
    with_status["status"] = {}
    changed = store.update(isvc, with_status)
    assert changed["metadata"]["generation"] == 2
    assert changed["status"] == {"ready": True}


def test_history_is_bounded_and_says_gone(store: Store) -> None:
    start = store.version
    for number in range(20):
        store.create(MAPS, {"metadata": {"name": f"m{number}", "namespace": "ns"}})
    with pytest.raises(ApiError) as error:
        Watch(store, MAPS, start)
    assert error.value.code == 410
    assert len(Watch(store, MAPS, store.version - 3).backlog) == 3


async def test_slow_watcher_is_cut_off_instead_of_growing(store: Store) -> None:
    watch = Watch(store, MAPS, store.version, limit=3)
    for number in range(6):
        store.create(MAPS, {"metadata": {"name": f"m{number}", "namespace": "ns"}})
    seen: list[Change | None] = [await watch.next(1) for _ in range(3)]
    assert None in seen


def test_merge_patch_removes_nulls_and_replaces_lists() -> None:
    assert merge_patch({"a": 1, "b": {"c": 1, "d": [1, 2]}}, {"a": None, "b": {"d": [3]}}) == {"b": {"c": 1, "d": [3]}}


def test_strategic_merge_joins_lists_by_key() -> None:
    live = {"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]}
    patch = {"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}]}, {"name": "b", "$patch": "delete"}]}
    assert strategic_merge(live, patch) == {
        "containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]}]
    }


def test_json_patch_that_does_not_fit_is_invalid() -> None:
    with pytest.raises(ApiError) as error:
        json_patch({"a": 1}, [{"op": "remove", "path": "/b"}])
    assert error.value.code == 422


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("", True),
        ("a=1", True),
        ("a==1", True),
        ("a!=1", False),
        ("b!=1", True),
        ("a", True),
        ("!a", False),
        ("!b", True),
        ("a in (1,2)", True),
        ("a notin (1,2)", False),
        ("b notin (1)", True),
        ("a=1,c", False),
        ("a=1,!c", True),
    ],
)
def test_label_selectors(selector: str, matches: bool) -> None:
    assert label_selector(selector)({"metadata": {"labels": {"a": "1"}}}) is matches


def test_broken_selectors_are_refused() -> None:
    with pytest.raises(ValueError, match="unable to parse"):
        label_selector("a in (1")
    with pytest.raises(ValueError, match="invalid field selector"):
        field_selector("metadata.name")


def test_ages_are_abbreviated_as_kubectl_does() -> None:
    assert age(None) == "<unknown>"


def test_table_of_a_pod_that_crashes_says_so() -> None:
    pod = {
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c"}]},
        "status": {
            "phase": "Running",
            "containerStatuses": [
                {"name": "c", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
            ],
        },
    }
    row = table(BY_KIND["Pod"], [pod], {}, include="None")["rows"][0]
    assert row["cells"][:4] == ["p", "0/1", "CrashLoopBackOff", 3]


@pytest.mark.parametrize("body", [b"", b"{}", b"k8s\x00\x0a\xff", b"k8s\x00\x0a\x7fshort", b"k8s\x00" + b"\xff" * 12])
def test_broken_protobuf_is_a_value_error(body: bytes) -> None:
    with pytest.raises((ValueError, LookupError)):
        decode(body)
