"""Weights of messages: from the row to the batch, next to the tokens they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tune.data import DataReport, Examples, Message, TokenWriter, padded_collate_sft, shift_weights
from tune.data.message_flags import read_weight
from tune.datasets import chat_dataset
from tune.datasets.concat import ConcatDataset
from tune.datasets.own import OwnDataset
from tune.datasets.packed import PackedDataset
from tune.errors import ConfigError, DataError
from tune.tokenizers import SentencePieceTokenizer, Tokenizer
from tune.training.batches import collate_with_lengths

ROWS: list[Any] = [
    [("user", "seven apples"), ("assistant", "green", 0.25), ("user", "walk"), ("assistant", "the river")],
    [("user", "twelve"), ("assistant", "seven", 1)],
    [("user", "apples"), ("assistant", "walk", 0), ("user", "river"), ("assistant", "green", 0.5)],
]


def turn(role: str, content: str, *weight: float) -> dict[str, Any]:
    return {"role": role, "content": content} | ({"weight": weight[0]} if weight else {})


@pytest.fixture(scope="module")
def tokenizer(spm_file: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(spm_file)


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": [turn(*t) for t in row]}) + "\n" for row in ROWS))
    return str(path)


def learnt(tokenizer: Tokenizer, example: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the pieces that are learnt, each with its weight."""
    weights = example.get("weights") or [1.0] * len(example["tokens"])
    found: list[tuple[list[int], float]] = []
    for token, label, weight in zip(example["tokens"], example["labels"], weights, strict=True):
        if label == -100:
            continue
        assert label == token
        if found and found[-1][1] == weight and found[-1][0][-1] != tokenizer.eos_id:
            found[-1][0].append(token)
        else:
            found.append(([token], weight))
    return [(tokenizer.decode(ids, skip_special=False).strip(), weight) for ids, weight in found]


EXPECTED = [
    [("green </s>", 0.25), ("the river </s>", 1.0)],
    [("seven </s>", 1.0)],
    [("green </s>", 0.5)],
]


def test_weights_stand_beside_the_tokens_of_their_message(tokenizer, source) -> None:
    dataset = chat_dataset(tokenizer, source=source, prompt_template="llama2_chat")
    assert [learnt(tokenizer, dataset[index]) for index in range(3)] == EXPECTED
    assert ["weights" in dataset[index] for index in range(3)] == [True, False, True]
    report = dataset.report()
    ids = [
        len(tokenizer.encode(f" {text} ", add_bos=False, continuation=True)) for text in ("green", "green")
    ]
    assert report.num_weighted_tokens == sum(ids)
    assert f"({sum(ids)} of these" in str(report)
    assert "with a weight other than 1)" in str(report)


def test_packing_and_joining_keep_weights(tokenizer, source) -> None:
    packed = chat_dataset(
        tokenizer, source=source, prompt_template="llama2_chat", packed=True, max_seq_len=200
    )
    assert len(packed) == 1
    assert learnt(tokenizer, packed[0]) == [*EXPECTED[0], *EXPECTED[1], *EXPECTED[2]]
    assert len(packed[0]["weights"]) == len(packed[0]["tokens"])
    plain = chat_dataset(tokenizer, source=source, prompt_template="llama2_chat", split="train[1:2]")
    assert "weights" not in PackedDataset(plain, 50)[0]
    both = ConcatDataset([plain, chat_dataset(tokenizer, source=source, prompt_template="llama2_chat")])
    assert learnt(tokenizer, both[1]) == EXPECTED[0]
    assert both.report().num_weighted_tokens == packed.report().num_weighted_tokens


def test_a_batch_has_weights_where_an_example_has() -> None:
    plain = {"tokens": [4, 5], "labels": [-100, 5]}
    weighted = {"tokens": [6, 7, 8], "labels": [-100, 7, 8], "weights": [0.0, 0.5, 0.25]}
    assert "weights" not in padded_collate_sft([plain, plain])
    batch = padded_collate_sft([plain, weighted])
    assert batch["weights"].tolist() == [[1, 1, 1], [0, 0.5, 0.25]]
    assert shift_weights(batch["weights"]).tolist() == [[1, 1, 0], [0.5, 0.25, 0]]
    assert shift_weights(None) is None


def test_a_store_holds_few_weights_and_names_too_many() -> None:
    first, second, third = Examples(300), Examples(300), Examples(300)
    first.append([7, 8], [0.0, 1.0])
    for number in range(254):
        (first if number % 3 else second).append([1, 2, 3], [0.0, number / 254 + 0.001, 1.0])
    writer = TokenWriter(300)
    for examples in (first, second):  # each has a table of its own
        writer.extend(examples)
    third.append([1, 2], [0.0, 0.777])
    with pytest.raises(DataError, match=r"more than 256 different weights.*0\.777"):
        writer.extend(third)
    for number in range(253):
        third.append([1], [number / 254 + 0.001])
    with pytest.raises(DataError, match=r"more than 256 different weights.*0\.997"):
        third.append([1], [253 / 254 + 0.001])
    store = writer.finish()
    assert len(store) == 255
    assert store.example(0) == {"tokens": [7, 8], "labels": [-100, 8]}
    assert store.example(1)["weights"] == [0.0, 1 / 254 + 0.001, 1.0]
    assert store.example(254)["weights"] == [0.0, 252 / 254 + 0.001, 1.0]


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        ("0", "the text '0'"),
        (True, "the boolean true"),
        (-0.5, "the number -0.5"),
        (1.5, "the number 1.5"),
        (float("nan"), "the number nan"),
        ([1], "a list of 1"),
        (10**400, "a large number"),
    ],
)
def test_a_weight_that_is_none_is_told(weight: Any, words: str) -> None:
    with pytest.raises(DataError, match=f"message 2 has {words} as weight, expected a number from 0 to 1"):
        read_weight({"weight": weight}, True, "message 2")


def test_masked_and_a_weight_of_0_are_the_same() -> None:
    assert Message("user", "hi", masked=True) == Message("user", "hi", weight=0)
    assert Message("user", "hi").weight == 1.0
    for wrong in (float("nan"), -1, True, "1", 10**400):
        with pytest.raises(DataError, match="has the weight"):
            Message("assistant", "hi", weight=wrong)  # type: ignore[arg-type]


def test_an_own_dataset_may_have_weights() -> None:
    example = {"tokens": [3, 4, 5], "labels": [-100, 4, 5], "weights": [0, 0.5, 1]}
    dataset = OwnDataset([example], "mine")
    assert dataset[0]["weights"] == [0.0, 0.5, 1.0]
    assert dataset.report().num_weighted_tokens == 1
    for weights, words in (
        ([1, 2], "3 tokens, but 2 weights"),
        ([0, -1, 1], "weight -1"),
        ("abc", "weight 'a'"),
    ):
        with pytest.raises(DataError, match=words):
            OwnDataset([example | {"weights": weights}], "mine")


def test_no_weight_is_told_of_where_none_is() -> None:
    assert "weight" not in str(DataReport(source="x", num_examples=1, num_tokens=4, num_target_tokens=2))


def test_a_collate_fn_that_leaves_weights_out_is_told() -> None:
    plain = {"tokens": [4, 5], "labels": [-100, 5]}

    def collate(examples: Any) -> dict[str, Any]:
        batch = padded_collate_sft(examples)
        return {key: batch[key] for key in ("tokens", "labels")}

    assert "document_lengths" in collate_with_lengths(collate, 0, [plain])
    with pytest.raises(ConfigError, match=r"collate_fn leaves them out: its batches need `weights`"):
        collate_with_lengths(collate, 0, [plain, plain | {"weights": [0.0, 0.5]}])
