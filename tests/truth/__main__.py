"""``python -m tests.truth [--quick] [--write FILE] [WORD…]``: every claim, or those whose names hold a word.

Prints a Markdown table, and ends with exit code 1 where a promise is not kept. ``--write`` puts the table into a
document, between its two markers.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.truth.all_claims import claims
from tests.truth.claim import Claim, Seen

SEED = 1
BEGIN, END = "<!-- truth: begin -->", "<!-- truth: end -->"


def row(claim: Claim, seen: Seen) -> str:
    mark = "" if claim.kept(seen) else " **(not kept)**"
    return f"| {claim.promise} | {claim.promised} | {seen.rate:.1%} of {seen.trials}{mark} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.truth")
    parser.add_argument("--quick", action="store_true", help="as few trials as in the tests")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the markers of FILE")
    parser.add_argument("words", nargs="*", help="parts of the names of claims; all by default")
    chosen = parser.parse_args()
    rows, broken = ["| claim | promised | measured |", "|---|---|---|"], 0
    for claim in claims():
        if chosen.words and not any(word in claim.name for word in chosen.words):
            continue
        started = time.monotonic()
        seen = claim.measure(claim.quick if chosen.quick else claim.trials, SEED)
        broken += not claim.kept(seen)
        rows.append(row(claim, seen))
        print(f"{rows[-1]}  <!-- {claim.name}, {time.monotonic() - started:.1f} s -->", flush=True)
    if chosen.write:
        before, _, rest = chosen.write.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        chosen.write.write_text(f"{before}{BEGIN}\n" + "\n".join(rows) + f"\n{END}{after}")
    print(f"{len(rows) - 2} claims, {broken} not kept")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
