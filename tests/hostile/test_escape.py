"""Text from outside reaches a terminal or a log with its control characters spelt out."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from tune.cli import terminal
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


def test_commands_print_through_one_function():
    """`say` of tune.cli.terminal; `tune cat` also hands a file on as it stands, where no terminal reads it."""
    folder = Path(terminal.__file__).parent
    direct = {
        file.name
        for file in folder.glob("*.py")
        if re.search(r"\bprint\(|print_exception\(|std(out|err)\.write\(", file.read_text(encoding="utf-8"))
    }
    assert direct == {"cat.py", "rank.py"}  # rank.py heads its own log


def test_colours_of_ours_are_all_that_a_terminal_is_told(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal.say(terminal.paint("head", "bold", screen) + " \x1b[8mhidden\x1b[2J\n", screen)
    assert screen.getvalue() == "\x1b[1mhead\x1b[0m \\x1b[8mhidden\\x1b[2J\n"
