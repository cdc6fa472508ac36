"""Whether a candidate's answers are those of the version before it. A pure function of what was inspected."""

from __future__ import annotations

from scenarios.suites.canary.guards import Finding, Ruling
from scenarios.suites.canary.phases import Phase

LEAST_COMPARED = 30
"""Of the candidate's answers: where one in ten is wrong, so many show it in 96 of 100 cases."""
EXPECTED = "the same outputs"


def compared_of(phase: Phase, version: str) -> int:
    """Answers of the candidate whose values were compared, at least. Where pods count, no answer says whose it is: all
    that were not compared may be the candidate's."""
    traffic = phase.traffic
    if phase.by_revision is not None:
        return max(0, phase.by_revision.get(version, 0) - int((~traffic.compared).sum()))
    return int((traffic.compared & (traffic.version == version) & phase.counted).sum())


def judge_parity(phase: Phase, version: str, stable: str, *, last: bool) -> Finding:
    """``version`` is the candidate's, empty where none answered."""
    traffic, answered = phase.traffic, phase.versions().get(version, 0) if version else 0
    wrong = [what for place, what in traffic.wrong.items() if traffic.version[place] != stable]
    if wrong:
        return Finding(Ruling.BROKEN, EXPECTED, f"{len(wrong)} wrong, the first: {wrong[0]}")
    if not answered:
        return Finding(Ruling.UNDECIDED, EXPECTED, "no answer", "the candidate gave no answer")
    compared = compared_of(phase, version)
    observed = f"{compared} of {answered} answers compared, all right"
    if not compared and traffic.inspected.any() and not traffic.compared.any():
        reason = "the model does not repeat itself: there is nothing to compare with; set guards.parity to false"
        return Finding(Ruling.UNDECIDED, EXPECTED, observed, reason)
    if compared >= LEAST_COMPARED:
        return Finding(Ruling.HELD, EXPECTED, observed)
    if compared and not last:
        return Finding(Ruling.LATER, EXPECTED, observed)
    reason = (
        f"{LEAST_COMPARED} answers of the candidate decide it; answers are kept for that up to 64 MiB a stage: raise"
        " 'rate', or ask for smaller answers"
    )
    return Finding(Ruling.UNDECIDED, EXPECTED, observed, reason)
