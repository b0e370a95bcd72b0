"""Rows of messages in the many ways that data writes them: one meaning, and nothing dropped without a word."""

from __future__ import annotations

import json

import pytest

from tune.data import ChatToMessages, Message
from tune.data.tool_calls import read_tools
from tune.errors import ConfigError, DataError

F_CALL = '{"name": "f", "arguments": {"a": 1}}'
F_READ = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
Q, A = Message("user", "q", masked=True), Message("assistant", "a")
CALLS = Message("assistant", "", tool_calls=(F_READ,))
RESULT = Message("tool", "3", masked=True)


def from_to(*turns):
    return [{"from": role, "value": text} for role, text in turns]


def by_role(*turns):
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize(
    "turns",
    [
        by_role(("user", "q"), ("assistant", "a")),
        from_to(("human", "q"), ("gpt", "a")),
        from_to(("user", "q"), ("chatgpt", "a")),
        by_role(("Human", "q"), ("AI", "a")),
        by_role(("user", "q"), ("bot", "a")),
        by_role(("prompter", "q"), ("model", "a")),
        [{"role": "user", "value": "q"}, {"role": "assistant", "value": "a"}],  # axolotl's pygmalion
        [{"from": "human", "content": "q"}, {"from": "gpt", "content": "a"}],
        [{"speaker": "Human", "text": "q"}, {"speaker": "Assistant", "text": "a"}],
        [{"user": "q", "assistant": "a"}],
        [{"human": "q", "assistant": "a", "system": ""}],
        [{"input": "q", "output": "a"}],
        json.dumps(from_to(("human", "q"), ("gpt", "a"))),
        by_role(("user", [{"type": "text", "text": "q"}]), ("assistant", [{"type": "text", "value": "a"}])),
        by_role(("user", ["q"]), ("assistant", {"type": "output_text", "text": "a"})),
        [
            {"role": "user", "content": "q", "name": None},
            {"role": "assistant", "content": "a", "tool_calls": []},
        ],
    ],
)
def test_ways_to_write_a_question_and_an_answer(turns):
    assert ChatToMessages()({"messages": turns}) == {"messages": [Q, A]}


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (
            by_role(("developer", "s"), ("user", "q"), ("assistant", "a")),
            [Message("system", "s", True), Q, A],
        ),
        (by_role(("system", None), ("user", "q"), ("assistant", "a")), [Q, A]),
        (from_to(("context", "c"), ("human", "q"), ("gpt", "a")), [Message("user", "c\n\nq", True), A]),
        (from_to(("human", "q"), ("context", "c"), ("gpt", "a")), [Message("user", "q\n\nc", True), A]),
        (
            from_to(("human", "q"), ("function_call", F_CALL), ("observation", "3"), ("gpt", "a")),
            [Q, CALLS, RESULT, A],
        ),
        (
            from_to(("human", "q"), ("function_call", f"[{F_CALL}]"), ("tool", "3"), ("gpt", "a")),
            [Q, CALLS, RESULT, A],
        ),
        (
            by_role(
                ("user", "q"),
                ("tool_call", json.loads(F_CALL)),
                ("function_response", "3"),
                ("assistant", "a"),
            ),
            [Q, CALLS, RESULT, A],
        ),
        (
            [
                *by_role(("user", "q")),
                {
                    "role": "assistant",
                    "content": None,
                    "function_call": {"name": "f", "arguments": '{"a": 1}'},
                },
                {"role": "function", "name": "f", "content": "3"},
                *by_role(("assistant", "a")),
            ],
            [Q, CALLS, Message("tool", "3", True, name="f"), A],
        ),
        (
            by_role(
                ("user", "q"),
                ("assistant", [{"type": "reasoning", "value": "hm"}, {"type": "tool_call", "value": F_CALL}]),
                ("tool", [{"type": "text", "value": "3"}]),
                (
                    "assistant",
                    [{"type": "thinking", "thinking": [{"text": "so"}]}, {"type": "text", "text": "a"}],
                ),
            ),
            [
                Q,
                Message("assistant", "", tool_calls=(F_READ,), reasoning_content="hm"),
                RESULT,
                Message("assistant", "a", reasoning_content="so"),
            ],
        ),
        (
            [
                *by_role(("user", "q")),
                {"role": "assistant", "content": "a", "reasoning_content": ["h", {"text": "m"}]},
            ],
            [Q, Message("assistant", "a", reasoning_content="hm")],
        ),
        (
            [*by_role(("user", "q")), {"role": "assistant", "tool_calls": json.dumps([json.loads(F_CALL)])}],
            [Q, CALLS],
        ),
        # What a tool gives back may be data; the model reads its text. A null in JSON stays.
        (
            [
                *by_role(("user", "q")),
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": None}}}]},
                *by_role(("tool", {"ü": [None]}), ("assistant", "a")),
            ],
            [
                Q,
                Message(
                    "assistant",
                    "",
                    tool_calls=({"type": "function", "function": {"name": "f", "arguments": {"a": None}}},),
                ),
                Message("tool", '{"ü": [null]}', True),
                A,
            ],
        ),
    ],
)
def test_roles_calls_and_thoughts(turns, expected):
    assert ChatToMessages()({"messages": turns}) == {"messages": expected}


def test_what_is_not_used_is_named_once_for_each_time():
    turns = [
        {"role": "user", "content": "q", "rank": 3, "id": "x", "refusal": None},
        {"role": "assistant", "content": "a", "rank": 0, "annotations": [], "value": "other"},
    ]
    read = ChatToMessages()(
        {"messages": turns, "id": 7, "source": "", "tags": [], "prompt": "q", "score": 0.0}
    )
    assert read["unused"] == {
        "message key rank": 2,
        "message key id": 1,
        "message key value": 1,
        "column id": 1,
        "column prompt": 1,
        "column score": 1,
    }
    assert "unused" not in ChatToMessages(ignore_columns=["id"])(
        {"messages": turns[:0] + [*by_role(("user", "q"), ("assistant", "a"))], "id": 7}
    )


def test_the_column_of_a_system_prompt_and_of_tools():
    system = Message("system", "S", masked=True)
    row = {"messages": by_role(("user", "q"), ("assistant", "a")), "system": "S", "tools": "[]"}
    assert ChatToMessages()(row) == {"messages": [system, Q, A]}
    # The conversation's own goes before, and that the other is not used is said.
    own = {**row, "messages": by_role(("system", "own"), ("user", "q"), ("assistant", "a"))}
    assert ChatToMessages()(own)["messages"][0].content == "own"
    assert ChatToMessages()(own)["unused"] == {"column system": 1}
    for each in (row, own):
        assert ChatToMessages(new_system_prompt="N")(each)["messages"] == [Message("system", "N", True), Q, A]
    assert (
        ChatToMessages(column_map={"system": "persona"})({"messages": row["messages"], "persona": "S"})[
            "messages"
        ][0]
        == system
    )


@pytest.mark.parametrize(
    ("extra", "settings"),
    [({"system": "S"}, {}), ({}, {"new_system_prompt": "N"}), ({"system": "S"}, {"new_system_prompt": "N"})],
)
def test_errors_number_messages_as_the_row_does(extra, settings):
    turns = by_role(("user", "q"), ("assistant", "a"), ("assistant", "b"))
    for before, number in (([], 3), (by_role(("system", "own")), 4)):
        with pytest.raises(
            DataError, match=f"message {number} is by the assistant, as is message {number - 1}"
        ):
            ChatToMessages(**settings)({"messages": [*before, *turns], **extra})


@pytest.mark.parametrize(
    "row",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
        {"tools": '[{"name": "f", "parameters": {"type": "object"}}]'},
        {"functions": [{"name": "f", "parameters": '{"type": "object"}'}]},
        {"tools": ['{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}']},
        {"tools": None, "functions": {"name": "f", "parameters": {"type": "object"}}},
    ],
)
def test_ways_to_write_tools(row):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    assert read_tools(row) == ([tool], "functions" if row.get("functions") else "tools")


def test_a_column_that_is_ignored_is_not_read():
    row = {
        "messages": by_role(("user", "q"), ("assistant", "a")),
        "system": "S",
        "tools": "not JSON",
        "rejected": "b",
    }
    transform = ChatToMessages(ignore_columns=["system", "tools", "rejected"])
    assert transform(row) == {"messages": [Q, A]}
    assert transform({**row, "chosen": "x"})["unused"] == {"column chosen": 1}


def test_messages_that_answer_others_are_learnt_alone():
    earlier = by_role(("user", "q"), ("assistant", "old"), ("user", "q"))
    transform = ChatToMessages(column_map={"messages": "prompt", "answer": "completion"})
    expected = [Q, Message("assistant", "old", masked=True), Q, A]
    for answer in (by_role(("assistant", "a")), {"from": "gpt", "value": "a"}, "a"):
        assert transform({"prompt": earlier, "completion": answer}) == {"messages": expected}
    assert transform({"prompt": "q", "completion": "a"}) == {"messages": [Q, A]}


def test_other_keys_and_roles_are_told():
    turns = [{"who": "guest", "said": "q"}, {"who": "host", "said": "a"}]
    with pytest.raises(DataError, match=r"message 1 .* dataset\.message_keys\.role=KEY"):
        ChatToMessages()({"messages": turns})
    keys = {"role": "who", "content": "said"}
    with pytest.raises(DataError, match=r"the who 'guest'; known are .* dataset\.roles\.guest=user"):
        ChatToMessages(message_keys=keys)({"messages": turns})
    transform = ChatToMessages(message_keys=keys, roles={"guest": "user", "host": "assistant"})
    assert transform({"messages": turns})["messages"] == [Q, A]
    with pytest.raises(ConfigError, match="message_keys has no part 'from'; parts are role and content"):
        ChatToMessages(message_keys={"from": "who"})
    with pytest.raises(ConfigError, match=r"dataset\.roles\.assistant is 'gpt4', expected user, assistant"):
        ChatToMessages(roles={"assistant": "gpt4"})


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (
            {"chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
            "column_map.answer=chosen",
        ),
        (
            {"label": False},
            "the boolean false as label: an answer judged bad.*on_bad_rows=drop.*ignore_columns=\\[label\\]",
        ),
        ({"kto_tag": "False"}, "as kto_tag"),
        (
            {"images": ["x.jpg"]},
            r"a list of 1 as images, and only text is read\. dataset\.ignore_columns=\[images\]",
        ),
        ({"videos": ["x.mp4"]}, "as videos"),
        ({"audio": {"bytes": b"x"}}, "as audio"),
    ],
)
def test_rows_of_another_task(extra, says):
    row = {"messages": by_role(("user", "q"), ("assistant", "a")), **extra}
    with pytest.raises(DataError, match=says):
        ChatToMessages()(row)
    ignoring = ChatToMessages(ignore_columns=list(extra))
    assert ignoring(row) == {"messages": [Q, A]}
    empty = dict.fromkeys(extra) | {"label": True, "images": [], "videos": None}
    assert ChatToMessages()({**row, **empty}) == {"messages": [Q, A]}


@pytest.mark.parametrize(
    ("turns", "says"),
    [
        (
            from_to(("human", "q"), ("function_call", "f()")),
            "message 2 in 'messages' calls a tool with what is no JSON",
        ),
        (from_to(("human", "q"), ("function_call", "")), "message 2 .* says none"),
        (
            from_to(("human", "q"), ("function_call", '{"name": "f", "arguments": [1]}')),
            "a list of 1 as arguments, expected",
        ),
        (
            by_role(("user", [{"type": "image_url"}]), ("assistant", "a")),
            "a part of type 'image_url'; only text is read",
        ),
        (by_role(("user", "q"), ("assistant", True)), "message 2 .* content that is the boolean true"),
        (
            [{"role": "user", "content": "q"}, {"role": "assistant", "message": "a"}],
            "message 2 .* expected an object with",
        ),
        (by_role(("user", [{"type": {}, "text": "q"}])), "a part of type 'an object with no keys'"),
        (
            [{"role": "user", "content": "q", "images": ["x.png"]}],
            "message 1 .* has a list of 1 as images, and only",
        ),
        (["q", "a"], "message 1 .* the text 'q', expected an object"),
        ([{"user": "q", "human": "x"}], "message 1"),
    ],
)
def test_turns_that_cannot_be_read(turns, says):
    with pytest.raises(DataError, match=says):
        ChatToMessages()({"messages": turns})
