"""Rows to messages: what is learnt, and what is wrong with a row."""

from __future__ import annotations

import json

import pytest

from tune.data import AlpacaToMessages, InputOutputToMessages, Message, OpenAIToMessages, ShareGPTToMessages
from tune.errors import DataError


def test_alpaca_has_one_prompt_with_and_one_without_input():
    row = {"instruction": "Add.", "input": "2 and 3", "output": "5"}
    with_input = AlpacaToMessages()(row)["messages"]
    assert [message.role for message in with_input] == ["user", "assistant"]
    assert with_input[0].content.endswith(
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n2 and 3\n\n### Response:\n"
    )
    for empty in ({"input": ""}, {"input": None}, {"input": " \n"}):
        without = AlpacaToMessages()({**row, **empty})["messages"]
        assert "Input" not in without[0].content
        assert "paired with" not in without[0].content
    assert not any(message.masked for message in with_input)
    masked = AlpacaToMessages(train_on_input=False)(row)["messages"]
    assert [message.masked for message in masked] == [True, False]


def test_input_output():
    transform = InputOutputToMessages(
        column_map={"input": "q", "output": "a", "context": "c"}, new_system_prompt="S"
    )
    assert transform({"q": "Why?", "a": "So.", "c": "It is."})["messages"] == [
        Message("system", "S", masked=True),
        Message("user", "Why?\n\nIt is.", masked=True),
        Message("assistant", "So."),
    ]
    assert not InputOutputToMessages(train_on_input=True)({"input": "x", "output": "y"})["messages"][0].masked


CHAT = [Message("system", "s", True), Message("user", "u", True), Message("assistant", "a")]


def test_chat_styles_mean_the_same():
    openai = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "u"}]},
        {"role": "assistant", "content": "a"},
    ]
    assert OpenAIToMessages()({"messages": openai})["messages"] == CHAT
    sharegpt = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "u"},
        {"from": "gpt", "value": "a"},
    ]
    transform = ShareGPTToMessages(column_map={"conversations": "c"})
    assert transform({"c": sharegpt})["messages"] == CHAT
    replaced = ShareGPTToMessages(new_system_prompt="other")({"conversations": sharegpt})["messages"]
    assert replaced == [Message("system", "other", True), *CHAT[1:]]
    learnt = OpenAIToMessages(train_on_input=True)({"messages": openai})["messages"]
    assert not any(message.masked for message in learnt)


def test_a_weight_of_zero_masks_an_answer():
    turns = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "bad", "weight": 0},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "good", "weight": 1},
    ]
    assert [m.masked for m in OpenAIToMessages()({"messages": turns})["messages"]] == [
        True,
        True,
        True,
        False,
    ]


ASKED = {"role": "user", "content": "How warm is it?"}
CALL = {"id": "c1", "function": {"name": "weather", "arguments": '{"city": "Zürich", "days": 2}'}}


def test_calls_of_tools_are_read():
    turns = [
        ASKED,
        {"role": "assistant", "content": None, "tool_calls": [CALL], "thinking": "I look it up."},
        {"role": "tool", "content": "12", "tool_call_id": "c1", "name": "weather"},
        {"role": "assistant", "content": "12 degrees.", "tool_calls": None},
    ]
    tools = [{"type": "function", "function": {"name": "weather"}}]
    read = OpenAIToMessages()({"messages": turns, "tools": tools})
    assert read["tools"] == tools
    _, calling, result, answer = read["messages"]
    # Arguments that are JSON text are read: a template would write them as a text of JSON otherwise.
    function = {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}
    assert calling.tool_calls == ({"type": "function", "id": "c1", "function": function},)
    assert (calling.content, calling.reasoning_content, calling.masked) == ("", "I look it up.", False)
    assert (result.role, result.name, result.tool_call_id, result.masked) == ("tool", "weather", "c1", True)
    assert answer == Message("assistant", "12 degrees.")
    as_text = OpenAIToMessages()({"messages": turns, "tools": json.dumps(tools)})
    assert as_text == read
    assert "tools" not in OpenAIToMessages()({"messages": turns, "tools": None})


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("weather", "no JSON: the text 'weather'"),
        (7, "the number 7 as tool_calls, expected a list"),
        ([7], "message 2 in 'messages' calls the number 7, expected an object with 'function'"),
        ([{"function": {"arguments": {}}}], "'function' and its 'name'"),
        (
            [{"function": {"name": "f", "arguments": "{"}}],
            "calls f with arguments that are no JSON: the text '{'",
        ),
    ],
)
def test_what_is_wrong_with_a_call(call, says):
    turns = [ASKED, {"role": "assistant", "content": "x", "tool_calls": call}]
    with pytest.raises(DataError, match=says):
        OpenAIToMessages()({"messages": turns})


@pytest.mark.parametrize("tools", ["{", 7, ["weather"], "7"])
def test_what_is_wrong_with_tools(tools):
    turns = [ASKED, {"role": "assistant", "content": "x"}]
    with pytest.raises(DataError, match="column 'tools' is"):
        OpenAIToMessages()({"messages": turns, "tools": tools})


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"input": "x"}, r"no column 'output' \(it has input\)"),
        ({"input": "x", "output": None}, "column 'output' is null, expected text"),
        ({"input": "x", "output": 10**5000}, "a large number"),
        ({"input": "x", "output": True}, "the boolean true"),
        ({"input": ["x"], "output": "y"}, "column 'input' is a list of 1"),
        ({"input": " ", "output": "y"}, "column 'input' is empty"),
    ],
)
def test_what_is_wrong_with_a_row(row, says):
    with pytest.raises(DataError, match=says):
        InputOutputToMessages()(row)


@pytest.mark.parametrize(
    ("turns", "says"),
    [
        ("hello", "column 'messages' is .*no JSON: the text 'hello'"),
        (7, "'messages' is the number 7, expected a list"),
        (None, "'messages' is null"),
        ([], "the conversation is empty"),
        (["hi"], "message 1 in 'messages' is the text 'hi', expected an object with 'role' and 'content'"),
        ([{"role": "user"}], "message 1 in 'messages' is an object with role, expected"),
        (
            [{"role": "narrator", "content": "x"}],
            "the role 'narrator'; known are system, .* dataset.roles.narrator=",
        ),
        ([{"role": "tool", "content": "x"}], "without an answer"),
        ([{"role": ["user"], "content": "x"}], "the role"),
        ([{"role": "user", "content": None}], "has null as content"),
        (
            [{"role": "user", "content": [{"type": "image"}]}],
            "content with a part of type 'image'; only text",
        ),
        ([{"role": "user", "content": "x"}], "ends without an answer"),
    ],
)
def test_what_is_wrong_with_a_conversation(turns, says):
    with pytest.raises(DataError, match=says):
        OpenAIToMessages()({"messages": turns})
