"""Text from outside reaches a terminal or a log with its control characters spelt out."""

from __future__ import annotations

import pytest

from tune.cli.terminal import report_error
from tune.utils import get_logger
from tune.utils.escape import escape_control, escape_lines

ORDINARY = "naïve 日本 👩‍🚀 Zürich → \u00a0 עברית العربية ~^`\\ C:\\new"


def test_what_disturbs_a_terminal_is_spelt_out():
    assert escape_control("\x1b[2J\x07\r\n\t\x00\x9b\u202e\u2028\ufeff\udfff") == (
        r"\x1b[2J\x07\r\n\t\x00\x9b\u202e\u2028\ufeff\udfff"
    )
    assert escape_control(ORDINARY) == ORDINARY


@pytest.mark.parametrize("limit", [4, 10, 60])
def test_a_limit_counts_what_is_shown(limit):
    assert escape_control("\x1b" * 10**6, limit=limit) == (r"\x1b" * limit)[: limit - 3] + "..."
    assert escape_control("x" * limit, limit=limit) == "x" * limit


def test_the_lines_of_a_message_stay_lines():
    assert escape_lines("a\tb\r\nc\x1b\rd\u2029e\n") == "a\tb\nc\\x1b\\rd\\u2029e\n"


def test_errors_and_logs_go_through_it(capsys):
    report_error("first \x1b]0;title\x07\nsecond \udfff")
    get_logger("INFO").info("a column \x1b[31mred\nnext \u202eline")
    said = capsys.readouterr().err
    assert said == (
        "error: first \\x1b]0;title\\x07\nsecond \\udfff\na column \\x1b[31mred\nnext \\u202eline\n"
    )
