"""What a server said is text wherever it is shown."""

from __future__ import annotations

import pytest

from harness.base.shown import visible


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ünï 漢字 'quoted' \\ [b]", "plain ünï 漢字 'quoted' \\ [b]"),
        ("\x1b[2J\x07\x00\x7f\x9b31m", "\\x1b[2J\\x07\\x00\\x7f\\x9b31m"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\u202eexe.txt\u2066\u200b\ufeff", "\\u202eexe.txt\\u2066\\u200b\\ufeff"),
        ("\u2028\u2029\x85", "\\u2028\\u2029\\x85"),
        ("\ud800", "\\ud800"),
        (b"\xffbytes\x1b", "\\xffbytes\\x1b"),
    ],
)
def test_nothing_moves_a_cursor_or_hides(text: str | bytes, expected: str) -> None:
    assert visible(text) == expected
    assert visible(expected) == expected, "shown twice it is the same"


def test_lines_stay_where_they_are_wanted() -> None:
    assert visible("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"


def test_long_text_is_cut() -> None:
    assert visible("x" * 10, 4) == "xxxx…"
