"""Rows of the forms that LLaMA-Factory, axolotl, TRL, OpenAI and known data sets publish, read as they mean them."""

from __future__ import annotations

import csv
import io
import json

import pytest

from tune.data import preview_example
from tune.datasets import alpaca_dataset, chat_dataset, instruct_dataset, text_completion_dataset
from tune.errors import ConfigError, DataError
from tune.tokenizers import from_checkpoint

TEMPLATE = """{% for tool in tools or [] %}{{ '<|sep|>' + tool.function | tojson }}{% endfor %}
{%- for m in messages %}{{ '<|start|>' + m.role + ':' }}
{%- if m.reasoning_content %}{{ '(' + m.reasoning_content + ')' }}{% endif %}{{ m.content }}
{%- for call in m.tool_calls or [] %}{{ '<|call|>' + call.function | tojson }}{% endfor %}{{ '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant:' }}{% endif %}"""
BUILDERS = {
    "chat": chat_dataset,
    "instruct": instruct_dataset,
    "alpaca": alpaca_dataset,
    "text": text_completion_dataset,
}


@pytest.fixture
def read(chat_folder, tmp_path):
    """Return the examples of rows as text, with what is learnt in brackets, and the report."""
    tokenizer = from_checkpoint(chat_folder(TEMPLATE))

    def read(kind, rows, **settings):
        file = tmp_path / "data.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        dataset = BUILDERS[kind](tokenizer, source=str(file), **settings)
        examples = [
            "".join(f"[{text}]" if learnt else text for text, learnt in preview_example(tokenizer, item))
            for item in dataset
        ]
        return [
            example.replace("<|start|>", "|").replace("<|end|>", ".") for example in examples
        ], dataset.report()

    return read


QUESTION = {"from": "human", "value": "q"}
ANSWER = {"from": "gpt", "value": "a"}
ASKED = {"role": "user", "content": "q"}
SAID = {"role": "assistant", "content": "a"}
TOOL = {"name": "f", "parameters": {"type": "object"}}
TOOLS = '<|sep|>{"name": "f", "parameters": {"type": "object"}}'
CALLED = '<|call|>{"name": "f", "arguments": {"a": 1}}'
CALL = '{"name": "f", "arguments": {"a": 1}}'
PLAIN = "|user:q.|assistant:[a.]"


@pytest.mark.parametrize(
    ("row", "settings", "expected"),
    [
        # LLaMA-Factory: glaive_toolcall_en_demo, sharegpt with system and tools, v1 demos
        (
            {
                "conversations": [
                    QUESTION,
                    {"from": "function_call", "value": CALL},
                    {"from": "observation", "value": '{"x": 3}'},
                    ANSWER,
                ],
                "tools": json.dumps([TOOL]),
            },
            {},
            TOOLS + f'|user:q.|assistant:[{CALLED}.]|tool:{{"x": 3}}.|assistant:[a.]',
        ),
        ({"conversations": [QUESTION, ANSWER], "tools": "[]"}, {}, PLAIN),
        (
            {"conversations": [QUESTION, ANSWER], "system": "S", "tools": ""},
            {},
            "|system:S.|user:q.|assistant:[a.]",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "value": "q"}], "loss_weight": 0.0},
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "reasoning", "value": "h"},
                            {"type": "tool_call", "value": CALL},
                        ],
                    },
                    {"role": "tool", "content": [{"type": "text", "value": "3"}]},
                    {"role": "assistant", "content": [{"type": "text", "value": "a"}], "loss_weight": 1.0},
                ],
                "tools": json.dumps([{"type": "function", "function": TOOL}]),
            },
            {},
            TOOLS + f"|user:q.|assistant:[(h){CALLED}.]|tool:3.|assistant:[a.]",
        ),
        # axolotl: chat_template, sharegpt, pygmalion, message_property_mappings
        ({"conversations": [{"role": "user", "value": "q"}, {"role": "assistant", "value": "a"}]}, {}, PLAIN),
        (
            {"chat": [{"by": "human", "said": "q"}, {"by": "narrator", "said": "a"}]},
            {
                "conversation_column": "chat",
                "message_keys": {"role": "by", "content": "said"},
                "roles": {"narrator": "assistant"},
            },
            PLAIN,
        ),
        # TRL: language modeling, prompt and completion, preference pairs, tools; OpenAI's form
        ({"messages": [ASKED, SAID]}, {}, PLAIN),
        ({"prompt": [ASKED], "completion": [SAID]}, {}, PLAIN),
        (
            {"prompt": [ASKED, SAID, ASKED], "completion": [{"role": "assistant", "content": "b"}]},
            {},
            "|user:q.|assistant:a.|user:q.|assistant:[b.]",
        ),
        (
            {"prompt": [ASKED], "chosen": [SAID], "rejected": [{"role": "assistant", "content": "b"}]},
            {"column_map": {"messages": "prompt", "answer": "chosen"}},
            PLAIN,
        ),
        ({"chosen": [ASKED, SAID], "rejected": [ASKED, SAID]}, {"column_map": {"messages": "chosen"}}, PLAIN),
        (
            {
                "messages": [
                    ASKED,
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
                        ],
                    },
                    {"role": "tool", "name": "f", "content": "3"},
                    SAID,
                ],
                "tools": [{"type": "function", "function": TOOL}],
            },
            {},
            TOOLS + f"|user:q.|assistant:[{CALLED}.]|tool:3.|assistant:[a.]",
        ),
        (
            {
                "messages": [
                    ASKED,
                    {"role": "assistant", "function_call": {"name": "f", "arguments": '{"a": 1}'}},
                    {"role": "function", "name": "f", "content": "3"},
                    SAID,
                ],
                "functions": [TOOL],
                "parallel_tool_calls": False,
            },
            {},
            TOOLS + f"|user:q.|assistant:[{CALLED}.]|tool:3.|assistant:[a.]",
        ),
        (
            {"input": {"messages": [ASKED]}, "preferred_output": [SAID], "non_preferred_output": [SAID]},
            {"column_map": {"messages": "input", "answer": "preferred_output"}},
            PLAIN,
        ),
        ({"messages": [ASKED, SAID, ASKED]}, {}, PLAIN),
        (
            {"messages": [ASKED, {**SAID, "weight": 0}, ASKED, SAID]},
            {},
            "|user:q.|assistant:a.|user:q.|assistant:[a.]",
        ),
    ],
)
def test_conversations(read, row, settings, expected):
    assert read("chat", [row], **settings)[0] == [expected]


def of_alpaca(instruction, context=""):
    middle = f"\n\n### Input:\n{context}" if context else ""
    return f"### Instruction:\n{instruction}{middle}\n\n### Response:\n"


@pytest.mark.parametrize(
    ("row", "settings", "expected"),
    [
        ({"instruction": "i", "input": "c", "output": "a"}, {}, of_alpaca("i", "c") + "[a<|eos|>]"),
        ({"instruction": "i", "input": "", "output": "a", "text": "x"}, {}, of_alpaca("i") + "[a<|eos|>]"),
        (
            {"instruction": "i", "context": "c", "response": "a", "category": "x"},
            {},
            of_alpaca("i", "c") + "[a<|eos|>]",
        ),
        ({"INSTRUCTION": "i", "RESPONSE": "a", "SOURCE": "x"}, {}, of_alpaca("i") + "[a<|eos|>]"),
        (
            {"system_prompt": "S", "question": "q", "response": "a", "id": "x"},
            {},
            "S\nQuestion: q\nAnswer:[ a<|eos|>]",
        ),
        ({"question": "q", "category": "x", "answer": "a"}, {}, "Question: q\nAnswer:[ a<|eos|>]"),
        ({"context": "c", "question": "q", "answer": 42}, {}, "Question: q\n\nc\nAnswer:[ 42<|eos|>]"),
        ({"article": "c", "question": "q", "answer": "a"}, {}, "Question: q\n\nc\nAnswer:[ a<|eos|>]"),
        ({"prompt": "q", "completion": " a"}, {}, "q[ a<|eos|>]"),
        ({"prompt": "q", "generation": "a"}, {}, "q[a<|eos|>]"),
        ({"message_1": "i", "message_2": "a"}, {}, of_alpaca("i") + "[a<|eos|>]"),
        (
            {"article": "i", "summary": "a"},
            {"prompt_template": "summarize"},
            "dialogue:\ni\n---\nSummary:\n[a<|eos|>]",
        ),
        (
            {"question": "q", "choices": ["x", "y"], "solution": "a", "explanation": ""},
            {"column_map": {"input": "question", "output": "solution"}},
            "Question: q\nAnswer:[ a<|eos|>]",
        ),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            {"column_map": {"input": "prompt", "output": "chosen"}},
            "q[a<|eos|>]",
        ),
        ({"prompt": "q", "completion": "a", "label": True}, {}, "q[a<|eos|>]"),
    ],
)
def test_prompts_and_answers(read, row, settings, expected):
    ((example,), _) = read("instruct", [row], **settings)
    assert example.endswith(expected)


def test_earlier_pairs_are_turns_and_are_learnt(read):
    row = {"instruction": "i", "input": "", "output": "a", "system": "S", "history": [["h", "b"]]}
    assert read("instruct", [row], prompt_template="chat")[0] == [
        "|system:S.|user:h.|assistant:[b.]|user:i.|assistant:[a.]"
    ]
    ((example,), _) = read("alpaca", [row], train_on_input=False)
    assert example.startswith("S\n\nBelow is")
    assert example.count("[") == 2
    assert example.endswith(of_alpaca("i") + "[a<|eos|>]")


@pytest.mark.parametrize(
    ("kind", "row", "says"),
    [
        (
            "instruct",
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            r"column_map\.input=prompt dataset\.column_map\.output=chosen",
        ),
        (
            "alpaca",
            {"instruction": "q", "chosen": "a", "rejected": "b"},
            r"column_map\.instruction=instruction dataset\.column_map\.output=chosen",
        ),
        (
            "instruct",
            {"chosen": "a", "rejected": "b"},
            "preference pairs, which this recipe does not learn from",
        ),
        (
            "chat",
            {"chosen": [ASKED, SAID], "rejected": [ASKED, SAID]},
            r"dataset\.column_map\.messages=chosen",
        ),
        (
            "chat",
            {"conversations": [QUESTION], "chosen": ANSWER, "rejected": ANSWER},
            r"data\.jsonl:1: has 'chosen' and 'rejected'.*dataset\.column_map\.answer=chosen",
        ),
        ("chat", {"messages": [ASKED, SAID], "label": False}, r"data\.jsonl:1: .*judged bad"),
        ("instruct", {"prompt": "q", "completion": "a", "label": False}, r"data\.jsonl:1: .*judged bad"),
        ("instruct", {"prompt": "q", "completions": ["a"], "labels": [True]}, "stepwise supervision"),
        ("instruct", {"prompt": "q"}, "A prompt alone teaches nothing"),
        ("instruct", {"prompt": [ASKED], "completion": [SAID]}, r"looks like messages: .*dataset=chat"),
        ("instruct", {"text": "x"}, "dataset=text_completion"),
        ("instruct", {"input_ids": [7, 8], "labels": [7, 8]}, "dataset=tokenized"),
        ("chat", {"segments": [{"text": "x", "label": True}]}, "dataset=tokenized"),
        ("chat", {"text": "### Human: q### Assistant: a"}, "dataset=text_completion"),
        ("chat", {"instruction": "q", "output": "a"}, "dataset=instruct"),
        ("text", {"instruction": "q", "output": "a"}, "dataset=instruct"),
        ("text", {"messages": [ASKED, SAID]}, "dataset=chat"),
        ("instruct", {"messages": [ASKED, SAID]}, "dataset=chat"),
        ("chat", {"messages": [ASKED, SAID], "images": ["1.jpg"]}, r"dataset\.ignore_columns=\[images\]"),
        (
            "chat",
            {"messages": [ASKED, SAID, SAID]},
            r"data\.jsonl:1: message 3 .*dataset\.on_odd_turns=merge joins",
        ),
    ],
)
def test_rows_of_another_kind_or_task(read, kind, row, says):
    with pytest.raises((DataError, ConfigError), match=says):
        read(kind, [row])


def test_plain_text_names_what_it_leaves_out(read):
    rows = [
        {"text": "the river", "timestamp": "2019", "url": "x"},
        {"text": "walk", "url": "y", "timestamp": None},
    ]
    examples, report = read("text", rows)
    assert examples == ["[the river<|eos|>]", "[walk<|eos|>]"]
    assert report.unused == {"column timestamp": 1, "column url": 2}
    assert "not used: column timestamp (1 time), column url (2 times)" in str(report)


def test_the_report_says_what_was_done(read):
    rows = [
        {"messages": [ASKED, SAID, ASKED], "id": 1},
        {"messages": [ASKED, SAID, {**SAID, "rank": 3}, ASKED], "id": 2},
        {"messages": [ASKED, {**SAID, "content": ""}, ASKED, SAID]},
        {"messages": [SAID, ASKED, SAID]},
    ]
    examples, report = read("chat", rows, on_odd_turns="merge")
    assert examples == [
        PLAIN,
        "|user:q.|assistant:[a\n\na.]",
        "|user:q.|assistant:.|user:q.|assistant:[a.]",
        PLAIN,
    ]
    said = str(report)
    assert "not used: column id (2 times), message key rank (1 time)" in said
    assert "warning: turns left out at the end of conversations, for no answer follows them: 2" in said
    assert "warning: turns joined with the one before (on_odd_turns: merge): 1" in said
    assert "warning: empty answers, which are read and not learnt: 1" in said
    assert "warning: turns left out, for they are out of order (on_odd_turns: merge): 1" in said
    assert report.to_dict()["unused"] == report.unused
    with pytest.raises(ConfigError, match="on_odd_turns is 'keep'"):
        read("chat", rows, on_odd_turns="keep")


def test_messages_in_a_csv_file_are_json_text(chat_folder, tmp_path):
    tokenizer = from_checkpoint(chat_folder(TEMPLATE))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([["messages", "tools"], [json.dumps([ASKED, SAID]), json.dumps([TOOL])]])
    (tmp_path / "d.csv").write_text(text.getvalue())
    dataset = chat_dataset(tokenizer, source=str(tmp_path / "d.csv"))
    assert tokenizer.decode(dataset[0]["tokens"], False) == (
        TOOLS + "<|start|>user:q<|end|><|start|>assistant:a<|end|>"
    )


def test_files_of_a_folder_are_named(chat_folder, tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in ("training_guide.jsonl", "other.jsonl"):
        (folder / name).write_text(json.dumps({"messages": [ASKED, SAID]}) + "\n")
    report = chat_dataset(from_checkpoint(chat_folder(TEMPLATE)), source=str(folder)).report()
    assert "files read: training_guide.jsonl; not read: other.jsonl" in str(report)
