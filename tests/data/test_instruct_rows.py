"""Rows of prompts and answers with more beside them: system prompts, earlier pairs, numbers, other tasks."""

from __future__ import annotations

import pytest

from tune.data import AlpacaToMessages, InputOutputToMessages, Message
from tune.data.values import NUMBERS_AS_TEXT
from tune.errors import DataError

Q, A = Message("user", "q", masked=True), Message("assistant", "a")
ROW = {"input": "q", "output": "a"}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"system": "S"}, [Message("system", "S", masked=True), Q, A]),
        ({"system": "", "history": []}, [Q, A]),
        ({"system": None, "history": None}, [Q, A]),
        (
            {"history": [["u1", "a1"], ["u2", "a2"]]},
            [
                Message("user", "u1", masked=True),
                Message("assistant", "a1"),
                Message("user", "u2", masked=True),
                Message("assistant", "a2"),
                Q,
                A,
            ],
        ),
        (
            {"history": '[["u1", "a1"]]'},
            [Message("user", "u1", masked=True), Message("assistant", "a1"), Q, A],
        ),
    ],
)
def test_system_prompts_and_earlier_pairs(extra, expected):
    assert InputOutputToMessages()({**ROW, **extra}) == {"messages": expected}


def test_other_columns_for_them():
    transform = InputOutputToMessages(
        column_map={"system": "persona", "history": "past", "tools": "functions"}
    )
    read = transform({**ROW, "persona": "S", "past": [["u", "a"]], "functions": [TOOL], "system": "other"})
    assert [m.content for m in read["messages"]] == ["S", "u", "a", "q", "a"]
    assert read["tools"] == [TOOL]
    assert read["unused"] == {"column system": 1}
    replaced = InputOutputToMessages(new_system_prompt="N")({**ROW, "system": "S"})
    assert replaced == {"messages": [Message("system", "N", masked=True), Q, A]}


def test_alpaca_has_them_too():
    row = {"instruction": "i", "output": "a", "system": "S", "history": [["h", "b"]]}
    messages = AlpacaToMessages(train_on_input=False)(row)["messages"]
    assert [m.role for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert "### Instruction:\nh\n\n### Response:\n" in messages[1].content
    assert "### Instruction:\ni\n\n### Response:\n" in messages[3].content
    assert [m.masked for m in messages] == [True, True, False, True, False]


@pytest.mark.parametrize(("value", "text"), [(7, "7"), (0.5, "0.5"), (-3, "-3"), (7.0, "7.0")])
def test_a_number_is_read_as_its_text(value, text):
    read = InputOutputToMessages()({"input": value, "output": value})
    assert [m.content for m in read["messages"]] == [text, text]
    assert read["notes"] == {NUMBERS_AS_TEXT: 2}


def test_an_empty_answer_is_read_and_not_learnt():
    read = InputOutputToMessages(train_on_input=True)({"input": "q", "output": " "})
    assert [m.masked for m in read["messages"]] == [False, True]
    assert read["notes"] == {"empty answers, which are read and not learnt": 1}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**ROW, "output": ["a", "b"]}, "column 'output' is a list of 2, expected text; of several texts"),
        ({**ROW, "output": {"text": ["a"]}}, "column 'output' is an object with text"),
        ({**ROW, "output": float("nan")}, "column 'output' is the number nan"),
        (
            {"input": [{"role": "user", "content": "q"}], "output": "a"},
            r"looks like messages: .*dataset=chat",
        ),
        (
            {**ROW, "history": [["u"]]},
            r"column 'history' is a list of 1, expected a list of pairs \[prompt, answer\]",
        ),
        ({**ROW, "history": [["u", None]]}, "column 'history' holds a pair with what is null"),
        ({**ROW, "system": ["S"]}, "column 'system' is a list of 1"),
        ({**ROW, "tools": "f"}, "column 'tools' is no JSON"),
        ({**ROW, "label": False}, "an answer judged bad"),
        (
            {**ROW, "chosen": "a", "rejected": "b"},
            r"dataset\.column_map\.output=chosen learns the chosen answers alone",
        ),
        ({**ROW, "image": "x.png"}, "as image, and only text is read"),
    ],
)
def test_what_is_wrong_with_a_row(row, says):
    with pytest.raises(DataError, match=says):
        InputOutputToMessages()(row)


def test_the_chosen_answers_of_preference_pairs():
    transform = InputOutputToMessages(column_map={"output": "chosen"})
    read = transform({"input": "q", "chosen": "a", "rejected": "b", "score": 5, "label": True})
    assert read == {"messages": [Q, A], "unused": {"column rejected": 1, "column score": 1}}
