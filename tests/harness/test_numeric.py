from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from harness.numeric import EXACT, TOLERANCES, Tolerance, distance
from harness.protocol.tensors import DTYPES, Tensor


def tensor(datatype: str, values: Any) -> Tensor:
    array = np.array(values, dtype=DTYPES[datatype])
    return Tensor("t", datatype, array.shape, array)


def test_equal_tensors_are_at_distance_zero() -> None:
    for datatype in DTYPES:
        values = [[b"a", b"b"]] if datatype == "BYTES" else [[1, 0]]
        found = distance(tensor(datatype, values), tensor(datatype, values), EXACT)
        assert found.within
        assert (found.max_abs_error, found.max_rel_error) == (0, 0)


def test_one_ulp_is_seen_and_located() -> None:
    a = tensor("FP32", [[1.0, 2.0], [3.0, 4.0]])
    b = Tensor("t", "FP32", a.shape, a.array.copy())
    b.array[1, 0] = np.nextafter(np.float32(3), np.float32(4))
    found = distance(a, b, EXACT)
    assert not found.within
    assert found.max_ulp == 1
    assert found.worst_index == (1, 0)
    assert distance(a, b, TOLERANCES["FP32"]).within


def test_ulp_counts_across_zero() -> None:
    tiny = np.nextafter(np.float32(0), np.float32(1))
    assert distance(tensor("FP32", [tiny]), tensor("FP32", [-tiny]), EXACT).max_ulp == 2


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_against_a_number_are_infinitely_far(wrong: float) -> None:
    found = distance(tensor("FP64", [1.0]), tensor("FP64", [wrong]), Tolerance(1.0, 1.0))
    assert not found.within
    assert found.max_abs_error == math.inf
    assert distance(tensor("FP64", [wrong]), tensor("FP64", [wrong]), EXACT).within


def test_integers_do_not_lose_their_last_digit() -> None:
    found = distance(tensor("UINT64", [2**64 - 1]), tensor("UINT64", [2**64 - 2]), EXACT)
    assert not found.within
    assert found.max_abs_error == 1


def test_argmax_agreement_is_a_share_of_rows() -> None:
    found = distance(tensor("FP32", [[1, 2], [2, 1]]), tensor("FP32", [[1, 2], [1, 2]]), EXACT)
    assert found.argmax_agreement == 0.5
    assert distance(tensor("FP32", [[1], [2]]), tensor("FP32", [[1], [2]]), EXACT).argmax_agreement is None


def test_strings_differ_as_a_whole() -> None:
    found = distance(tensor("BYTES", [b"a", b"b"]), tensor("BYTES", [b"a", b"c"]), EXACT)
    assert not found.within
    assert found.worst_index == (1,)
    assert found.worst_observed == "b'c'"


def test_other_shapes_and_datatypes_are_not_comparable() -> None:
    with pytest.raises(ValueError, match=r"FP32 \[1\]"):
        distance(tensor("FP32", [1.0]), tensor("FP32", [[1.0]]), EXACT)
    with pytest.raises(ValueError, match="FP64"):
        distance(tensor("FP32", [1.0]), tensor("FP64", [1.0]), EXACT)
