from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from harness.base.errors import MeasurementError, ProtocolError
from harness.results.records import ParityResult
from harness.target.endpoint import Endpoint
from harness.target.numeric import EXACT, TOLERANCES, Tolerance, distance, other_outputs
from harness.target.protocol.tensors import DTYPES, InferResult, Tensor, from_json_data
from scenarios.suites.parity.suite import outputs_beside


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


ROOMY = [EXACT, TOLERANCES["FP32"], Tolerance(1e30, 1e30), Tolerance(math.inf, 0), Tolerance(0, math.inf)]
NOT_FINITE = [math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("tolerance", [*ROOMY, Tolerance(math.nan, math.nan)], ids=str)
@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
def test_what_is_not_finite_is_met_by_the_same_alone(datatype: str, tolerance: Tolerance) -> None:
    for expected in [*NOT_FINITE, 3.0, 0.0]:
        for observed in [*NOT_FINITE, 3.0, 0.0]:
            if math.isfinite(expected) and math.isfinite(observed):
                continue
            equal = str(expected) == str(observed)
            found = distance(tensor(datatype, [1, expected]), tensor(datatype, [1, observed]), tolerance)
            assert found.within is equal, (expected, observed)
            assert (found.max_abs_error, found.excess) == ((0, 0) if equal else (math.inf, math.inf))
            if not equal:
                assert found.worst_index == (1,)


def test_masked_logits_are_not_met_by_a_constant() -> None:
    found = distance(tensor("FP32", [[3, 3, math.inf, -math.inf]]), tensor("FP32", [[3.0] * 4]), TOLERANCES["FP32"])
    assert not found.within
    assert found.worst_index == (0, 2)
    assert (found.worst_expected, found.worst_observed) == ("inf", "3.0")


@pytest.mark.parametrize(("datatype", "most"), [("FP16", 65504.0), ("FP32", 3.4e38), ("FP64", 1.7e308)])
def test_differences_that_overflow_are_differences(datatype: str, most: float) -> None:
    assert not distance(tensor(datatype, [most]), tensor(datatype, [-most]), Tolerance(1.0, 1.0)).within
    assert distance(tensor(datatype, [most]), tensor(datatype, [most]), EXACT).within


def test_the_worst_element_is_the_furthest_beyond_its_tolerance() -> None:
    """An expected zero has no relative error: met within its tolerance it hides nothing."""
    expected, observed = tensor("FP64", [0.0, 100.0, 1.0]), tensor("FP64", [1e-9, 100.0, 1.5])
    found = distance(expected, observed, Tolerance(1e-3, 1e-6))
    assert not found.within
    assert found.worst_index == (2,)
    assert found.max_rel_error == 0.5
    assert found.excess == pytest.approx(0.5 / (1e-6 + 1e-3))
    near = distance(tensor("FP64", [0.0, 1000.0]), tensor("FP64", [9e-7, 1000.5]), Tolerance(1e-3, 1e-6))
    assert near.within
    assert near.worst_index == (0,), "nearest to its own tolerance"
    assert near.excess == pytest.approx(0.9)
    assert near.max_rel_error == pytest.approx(5e-4)
    missed = distance(tensor("FP64", [0.0]), tensor("FP64", [1.0]), Tolerance(1e-3, 1e-6))
    assert missed.max_rel_error == math.inf


def test_of_whole_numbers_the_furthest_is_shown() -> None:
    found = distance(tensor("INT32", [[1, 5, 9]]), tensor("INT32", [[2, 5, 90]]), EXACT)
    assert (found.worst_index, found.worst_observed) == ((0, 2), "90")
    assert (found.max_abs_error, found.max_rel_error) == (81, 9)
    assert distance(tensor("INT32", 3), tensor("INT32", 4), EXACT).worst_index == ()
    assert distance(tensor("FP32", 3), tensor("FP32", 4), EXACT).worst_index == ()


def test_rows_of_nan_agree_only_where_they_have_it_in_the_same_places() -> None:
    expected = tensor("FP32", [[1, 2, 3], [math.nan, 1, 2]])
    assert distance(expected, tensor("FP32", [[1, 2, math.nan], [math.nan, 1, 2]]), EXACT).argmax_agreement == 0.5
    assert distance(expected, tensor("FP32", [[1, 2, 3], [math.nan, 2, 1]]), EXACT).argmax_agreement == 0.5


def test_ulp_of_an_infinity_is_one_more_than_of_the_largest_number() -> None:
    largest = float(np.finfo(np.float32).max)
    assert distance(tensor("FP32", [math.inf]), tensor("FP32", [largest]), EXACT).max_ulp == 1
    assert distance(tensor("FP32", [math.nan]), tensor("FP32", [-math.nan]), EXACT).max_ulp == 0


def answer(*outputs: Tensor) -> InferResult:
    return InferResult("m", None, None, outputs)


def test_outputs_that_are_missing_or_that_nobody_expected_are_named() -> None:
    one, other = tensor("FP32", [1.0]), tensor("FP32", [1.0]).with_name("other")
    assert other_outputs([one], answer(one)) == ""
    for came in (answer(), answer(one, other), answer(one, one), answer(other)):
        assert "expected the outputs ['t']" in other_outputs([one], came)


def merged(*pairs: tuple[Sequence[Tensor], InferResult]) -> list[ParityResult]:
    return outputs_beside(Endpoint("svc", "r", "http://h", "m"), "golden.rest", pairs, TOLERANCES, "s")


def test_over_all_cases_the_one_furthest_beyond_its_tolerance_is_the_worst() -> None:
    zero, wrong = tensor("FP32", [0.0, 1.0]), tensor("FP32", [0.0, 2.0])
    (found,) = merged(
        ([zero], answer(tensor("FP32", [1e-7, 1.0]))),
        ([zero], answer(wrong)),
        ([zero], answer(tensor("FP32", [1e-5, 1.0]))),
    )
    assert not found.within
    assert found.worst_index == (1, 1)
    assert found.rank > (True, 1, 0)


def test_nothing_compared_is_no_parity() -> None:
    one = tensor("FP32", [1.0])
    for pairs in ([], [((), answer())], [([one], answer(one)), ((), answer(one))]):
        with pytest.raises(MeasurementError):
            merged(*pairs)
    empty = tensor("FP32", np.zeros((0, 3)))
    with pytest.raises(MeasurementError, match="no element"):
        merged(([empty], answer(empty)))
    with pytest.raises(ValueError, match=r"expected the outputs \['t'\]"):
        merged(([one], answer(one, one.with_name("extra"))))


def test_a_json_number_that_its_datatype_does_not_hold_is_no_infinity() -> None:
    for datatype, value in (("FP16", 70000), ("FP32", 1e39), ("FP64", 10**400)):
        with pytest.raises(ProtocolError, match=datatype):
            from_json_data("t", datatype, (1,), [value])
