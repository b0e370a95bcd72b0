"""Conversations that are not textbook: refused, joined or cut, and what stays of them in any case."""

from __future__ import annotations

import pytest

from tune.data.turn_order import arrange_turns, check_on_odd_turns
from tune.errors import ConfigError, DataError
from tune.tokenizers.messages import Message

NAMES = {"u": "user", "a": "assistant", "s": "system", "t": "tool", "c": "assistant"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


def conversation(letters):
    """Messages 1, 2, ... by u(ser), a(ssistant), s(ystem), t(ool), or c, an assistant that calls a tool."""
    return [
        Message(
            NAMES[letter],
            "" if letter == "c" else str(number),
            masked=letter not in "ac",
            tool_calls=(CALL,) * (letter == "c"),
        )
        for number, letter in enumerate(letters, start=1)
    ]


def shown(messages):
    letters = {name: letter for letter, name in NAMES.items() if letter != "c"}
    return " ".join(
        letters[m.role]
        + m.content.replace("\n\n", "+")
        + "!" * len(m.tool_calls)
        + "-" * (m.masked and m.role == "assistant")
        for m in messages
    )


@pytest.mark.parametrize(
    ("letters", "kept"),
    [
        ("ua", "u1 a2"),
        ("suaua", "s1 u2 a3 u4 a5"),
        ("uctaua", "u1 a! t3 a4 u5 a6"),
        ("ucttctua", "u1 a! t3 t4 a! t6 u7 a8"),  # a user may speak after the result of a tool
        # What nobody answers is left out; the answers before it are kept.
        ("uau", "u1 a2"),
        ("uct", "u1 a!"),
        ("uauaus", "u1 a2 u3 a4"),
        ("uauu", "u1 a2"),
    ],
)
@pytest.mark.parametrize("mode", ["error", "merge", "trim"])
def test_what_is_textbook_stays_in_every_mode(letters, kept, mode):
    messages, notes = arrange_turns(conversation(letters), mode)
    assert shown(messages) == ("u1 a2" if letters == "uauu" else kept)
    left_out = len(letters) - len(messages)
    assert sum(notes.values()) == (left_out if letters != "uauu" or mode == "error" else 2)


@pytest.mark.parametrize(
    ("letters", "merged", "trimmed", "says"),
    [
        ("uaa", "u1 a2+3", "u1 a2", "message 3 is by the assistant, as is message 2"),
        ("uac", "u1 a2!", "u1 a2", "calls of tools as one list"),
        ("uua", "u1+2 a3", "u2 a3", "message 2 is by the user, as is message 1 .* trim starts at message 2"),
        (
            "aua",
            "u2 a3",
            "u2 a3",
            "message 1 is by the assistant, and nobody has asked yet .*merge leaves it out",
        ),
        ("saua", "s1 u3 a4", "s1 u3 a4", "message 2 is by the assistant, and nobody has asked"),
        ("ssua", "s1+2 u3 a4", "s1 u3 a4", "message 2 is by the system, which may only speak first"),
        (
            "uasua",
            "u1 a2 u3+4 a5",
            "u1 a2",
            "merge joins it with the user's turn beside it; trim keeps what is before mess",
        ),
        ("usa", "u1+2 a3", None, "message 2 is by the system"),
        ("uaauua", "u1 a2+3 u4+5 a6", "u1 a2", "message 3"),
        ("uta", None, None, "message 2 is the result of a tool that nobody called"),
    ],
)
def test_what_is_not_textbook(letters, merged, trimmed, says):
    with pytest.raises(DataError, match=says):
        arrange_turns(conversation(letters))
    for mode, expected in (("merge", merged), ("trim", trimmed)):
        if expected is None:
            with pytest.raises(DataError, match="without an answer"):
                arrange_turns(conversation(letters), mode)
            continue
        messages, notes = arrange_turns(conversation(letters), mode)
        assert shown(messages) == expected
        assert sum(notes.values()) == len(letters) - len(messages)


@pytest.mark.parametrize(
    ("letters", "says"), [("", "is empty"), ("u", "without an answer"), ("s", "without")]
)
@pytest.mark.parametrize("mode", ["error", "merge", "trim"])
def test_no_answer_is_an_error_in_every_mode(letters, says, mode):
    with pytest.raises(DataError, match=says):
        arrange_turns(conversation(letters), mode)


def test_an_empty_answer_is_read_and_not_learnt():
    messages = [*conversation("ua"), Message("user", "3", True), Message("assistant", " \n")]
    kept, notes = arrange_turns(messages)
    assert [m.masked for m in kept] == [True, False, True, True]
    assert notes == {"empty answers, which are read and not learnt": 1}
    thought = [*conversation("u"), Message("assistant", "", reasoning_content="hm")]
    assert not arrange_turns(thought)[0][1].masked


def test_joined_turns_keep_their_weights():
    first = Message("assistant", "one", weight=0.5)
    joined, _ = arrange_turns([*conversation("u"), first, Message("assistant", "two", masked=True)], "merge")
    assert joined[1].content == "one\n\ntwo"
    assert joined[1].spans == ((0, 3, 0.5), (5, 8, 0.0))
    assert joined[1].weight == 0.5
    calling = Message("assistant", "", masked=True, tool_calls=(CALL,))
    with pytest.raises(DataError, match="differ in weight"):
        arrange_turns([*conversation("u"), first, calling], "merge")


def test_a_choice_that_there_is_not():
    with pytest.raises(ConfigError, match="on_odd_turns is 'drop', expected 'error', 'merge' or 'trim'"):
        check_on_odd_turns("drop")
