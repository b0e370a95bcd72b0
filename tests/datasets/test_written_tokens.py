"""Data sets whose texts are in a chat format already."""

from __future__ import annotations

import json

import pytest

from tune.data import preview_example
from tune.datasets import alpaca_dataset, chat_dataset, instruct_dataset, text_completion_dataset
from tune.errors import DataError
from tune.tokenizers import from_checkpoint

CHATML = "<|start|>user\nwalk<|end|>\n<|start|>assistant\nseven<|eos|>\n"
TEMPLATE = """{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"""
CASES = {
    "text": (text_completion_dataset, {"text": CHATML}, "[" + CHATML + "]"),
    "prompt and completion": (
        instruct_dataset,
        {"prompt": "<|start|>user\nwalk<|end|>\n<|start|>assistant\n", "completion": "seven<|end|>"},
        "<|start|>user\nwalk<|end|>\n<|start|>assistant\n[seven<|end|>]",
    ),
    "an end by hand": (
        instruct_dataset,
        {"question": "walk", "answer": "seven<|eos|>"},
        "Question: walk\nAnswer:[ seven<|eos|>]",
    ),
    "an end by hand in alpaca": (
        alpaca_dataset,
        {"instruction": "walk", "output": "seven<|eos|>"},
        "[seven<|eos|>]",
    ),
    "messages": (
        chat_dataset,
        {"messages": [{"role": "user", "content": "walk"}, {"role": "assistant", "content": "seven<|end|>"}]},
        "<|start|>user\nwalk<|end|>\n<|start|>assistant\n[seven<|end|>]\n",
    ),
}


@pytest.fixture
def write(tmp_path):
    def to_file(*rows):
        file = tmp_path / "data.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(file)

    return to_file


@pytest.mark.parametrize("name", CASES)
def test_tokens_in_data_are_an_error_until_their_kind_is_said(chat_folder, write, name):
    tokenizer = from_checkpoint(chat_folder(TEMPLATE))
    build, row, expected = CASES[name]
    source = write(*[row] * 3)
    options = {"train_on_input": False} if build is alpaca_dataset else {}
    with pytest.raises(
        DataError, match=r"3 of the first 3 rows.*<\|(start|end|eos)\|>.*parse_special_tokens=true"
    ):
        build(tokenizer, source=source, **options)
    shown = [
        "".join(
            f"[{text}]" if learnt else text
            for text, learnt in preview_example(
                tokenizer, build(tokenizer, source=source, parse_special_tokens=parse, **options)[0]
            )
        )
        for parse in (True, False)
    ]
    assert shown[0].endswith(expected)
    # Kept as text, they get an end of their own.
    assert shown[1] != shown[0]
    counted = [
        build(tokenizer, source=source, parse_special_tokens=parse, **options).report().num_tokens
        for parse in (True, False)
    ]
    assert counted[0] < counted[1]


def test_a_long_text_is_parsed_as_a_whole(chat_folder, write):
    tokenizer = from_checkpoint(chat_folder(TEMPLATE))
    source = write({"text": CHATML * 5_000})
    dataset = text_completion_dataset(tokenizer, source=source, parse_special_tokens=True)
    tokens = dataset[0]["tokens"]
    assert tokens.count(tokenizer.special_tokens["<|start|>"]) == 10_000
    assert tokens.count(tokenizer.eos_id) == 5_000
