"""Tokens with labels, and segments of text, as they stand in the data: no template, nothing added."""

from __future__ import annotations

import json

import pytest

from tune.datasets import PackedDataset, tokenized_dataset
from tune.errors import ConfigError, DataError
from tune.tokenizers import from_checkpoint


@pytest.fixture
def tokenizer(chat_folder):
    return from_checkpoint(chat_folder())


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        file = tmp_path / "data.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    return write


@pytest.mark.parametrize(
    ("row", "tokens", "labels"),
    [
        (
            {"input_ids": [71, 99, 9], "attention_mask": [1, 1, 1], "labels": [71, -100, 9]},
            [71, 99, 9],
            [71, -100, 9],
        ),
        ({"input_ids": [7, 8, 9]}, [7, 8, 9], [7, 8, 9]),
        ({"tokens": [7, 8, 9], "labels": [-100, -100, 9]}, [7, 8, 9], [-100, -100, 9]),
        (  # padding is left out
            {
                "input_ids": [0, 7, 8, 0, 0],
                "attention_mask": [0, 1, 1, 0, 0],
                "labels": [-100, 7, 8, -100, -100],
            },
            [7, 8],
            [7, 8],
        ),
        ({"input_ids": [7, 8, 9], "completion_mask": [0, 1, 1], "labels": None}, [7, 8, 9], [-100, 8, 9]),
        (
            {"input_ids": [7, 8, 9], "completion_mask": [0, 1, 1], "assistant_masks": [1, 0, 1]},
            [7, 8, 9],
            [-100, -100, 9],
        ),
    ],
)
def test_tokens(tokenizer, write, row, tokens, labels):
    dataset = tokenized_dataset(tokenizer, source=write(row))
    assert [*dataset] == [{"tokens": tokens, "labels": labels}]


def test_segments(tokenizer, write):
    texts = ["<|bos|>the river ", "walk seven", " green<|end|>"]
    segments = [{"text": text, "label": label} for text, label in zip(texts, (False, True, True))]
    (item,) = tokenized_dataset(tokenizer, source=write({"segments": segments, "id": 3}))
    assert tokenizer.decode(item["tokens"], skip_special=False) == "".join(texts)
    assert item["tokens"][0] == tokenizer.special_tokens["<|bos|>"]
    assert item["tokens"][-1] == item["labels"][-1] == tokenizer.special_tokens["<|end|>"]
    learnt = [label for label in item["labels"] if label != -100]
    assert tokenizer.decode(learnt, skip_special=False) == "walk seven green<|end|>"


def test_what_goes_for_any_dataset(tokenizer, write):
    rows = [{"input_ids": [7, 8, 9, 10, 11], "length": 5}, {"input_ids": [7, 8]}]
    dataset = tokenized_dataset(tokenizer, source=write(*rows), max_seq_len=3)
    assert [item["tokens"] for item in dataset] == [[7, 8, 9], [7, 8]]
    assert dataset.report().num_truncated == 1
    assert "(input_ids, as written)" in str(dataset.report())
    parts = tokenized_dataset(tokenizer, source=write(*rows), max_seq_len=3, on_too_long="split")
    assert [item["tokens"] for item in parts] == [[7, 8, 9], [9, 10, 11], [7, 8]]
    assert [item["labels"] for item in parts][1] == [-100, 10, 11]
    assert dataset.report().unused == {"column length": 1}
    assert isinstance(
        tokenized_dataset(tokenizer, source=write(*rows), max_seq_len=9, packed=True), PackedDataset
    )


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"input_ids": [7, 900_000]},
            r"holds the number 900000, and this tokenizer has ids from 0 to 359: .*another one",
        ),
        ({"input_ids": [7, -1]}, "holds the number -1"),
        ({"input_ids": [7, 8.5]}, "expected a list of whole numbers"),
        (
            {"input_ids": [7, 8, 9], "labels": [8, 9, -100]},
            r"token 1 is 7 and its label 8, .*labels are not shifted",
        ),
        ({"input_ids": [7, 8, 9], "labels": [7, 8]}, "has 3 tokens and 2 labels; a token has one each"),
        ({"input_ids": [7, 8, 9], "attention_mask": [1, 0, 1]}, "0 between tokens"),
        ({"input_ids": [7, 8, 9], "labels": [-100, -100, -100]}, "nothing to learn"),
        (
            {"segments": [{"text": "x"}]},
            "segment 1 is an object with text, expected an object with 'text' and 'label'",
        ),
        ({"segments": "x"}, "column 'segments' is the text 'x', expected a list"),
        ({"text": "x"}, r"no column of .* holds tokens: found text, expected input_ids"),
    ],
)
def test_what_is_wrong(tokenizer, write, row, says):
    with pytest.raises((DataError, ConfigError), match=says):
        tokenized_dataset(tokenizer, source=write(row))
