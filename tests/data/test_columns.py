"""Columns: recognised where names are known, told where not, never guessed."""

from __future__ import annotations

import pytest

from tune.data import find_conversation_column, find_instruction_columns, find_text_column
from tune.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["instruction", "input", "output", "text"], "instruction + input -> output"),
        (["instruction", "output"], "instruction -> output"),
        (["instruction", "context", "response", "category"], "instruction + context -> response"),
        (["prompt", "completion"], "prompt -> completion"),
        (["id", "question", "answer"], "question -> answer"),
        (["input", "output"], "input -> output"),
        (["instruction", "answer", "revision"], "instruction -> answer"),
        (["question", "output"], "question -> output"),
        (
            ["id", "system", "history", "functions", "Prompt", "Completion"],
            "Prompt -> Completion, with system, history, functions",
        ),
    ],
)
def test_known_names_are_recognised(columns, expected):
    assert str(find_instruction_columns(columns)) == expected
    assert str(find_instruction_columns(columns, input_is_context=False)) == expected


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            ["q", "a"],
            r"of the data .* found q, a\. Say so with dataset\.column_map\.instruction=COLUMN .*output=COLUMN",
        ),
        (
            ["question", "answer", "prompt", "completion"],
            "in 2 ways: prompt -> completion; question -> answer",
        ),
        (["instruction", "output", "response"], "in 2 ways"),
        (["messages"], r"use chat_dataset \(in a config: dataset=chat\)"),
        (["text"], r"use text_completion_dataset \(in a config: dataset=text_completion\)"),
        (["chosen", "rejected"], "preference pairs"),
    ],
)
def test_unknown_and_ambiguous_names_are_errors(columns, says):
    with pytest.raises(DataError, match=says):
        find_instruction_columns(columns)


def test_a_map_decides():
    columns = ["question", "answer", "prompt", "completion", "hint"]
    found = find_instruction_columns(
        columns, {"instruction": "question", "input": "hint", "output": "completion"}
    )
    assert str(found) == "question + hint -> completion"
    found = find_instruction_columns(columns, {"input": "hint", "output": "answer"}, input_is_context=False)
    assert str(found) == "hint -> answer"
    found = find_instruction_columns(["instruction", "input", "reply"], {"output": "reply"})
    assert str(found) == "instruction + input -> reply"
    found = find_instruction_columns(["input", "reply"], {"output": "reply"}, input_is_context=False)
    assert str(found) == "input -> reply"


@pytest.mark.parametrize(
    ("column_map", "error", "says"),
    [
        ({"instruct": "q"}, ConfigError, "no part 'instruct'; parts are instruction"),
        (
            {"instruction": "qq", "output": "a"},
            ConfigError,
            "column_map.instruction is 'qq', but the data has q, a",
        ),
        ({"instruction": "q", "prompt": "a"}, ConfigError, "names the prompt twice"),
        ({"instruction": "q", "output": "q"}, ConfigError, "one column to two parts"),
        ({"instruction": "q"}, DataError, "leaves the answer open, and no column"),
    ],
)
def test_a_wrong_map_is_explained(column_map, error, says):
    with pytest.raises(error, match=says):
        find_instruction_columns(["q", "a"], column_map)


def test_conversations_and_text():
    assert find_conversation_column(["id", "messages"]) == "messages"
    assert find_conversation_column(["id", "turns"], "turns") == "turns"
    with pytest.raises(DataError, match="use instruct_dataset"):
        find_conversation_column(["question", "answer"])
    with pytest.raises(DataError, match="several columns"):
        find_conversation_column(["messages", "conversations"])
    with pytest.raises(ConfigError, match="'turn', but the data has id, turns; did you mean 'turns'"):
        find_conversation_column(["id", "turns"], "turn")
    assert find_text_column(["id", "text"]) == "text"
    assert find_text_column(["content"]) == "content"
    with pytest.raises(DataError, match="has no column 'text': found a, b"):
        find_text_column(["a", "b"])
