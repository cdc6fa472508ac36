"""The quick half of ``python -m tests.truth``: seeded, so that it gives the same each time."""

from __future__ import annotations

import pytest

from tests.truth.all_claims import claims
from tests.truth.claim import Claim

SEED = 7


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: claim.name)
def test_promise_is_kept(claim: Claim) -> None:
    seen = claim.measure(claim.quick, SEED)
    assert seen.trials, "nothing was claimed in any trial"
    assert claim.kept(seen), f"{claim.promise}: promised {claim.promised}, measured {seen.rate:.2%} of {seen.trials}"
