"""Validation out of the training data, and datasets in a list: disjoint, the same for a seed, counted rightly."""

from __future__ import annotations

import json

import pytest

from tune.config.component import Component
from tune.datasets import ConcatDataset, build_datasets, build_splits, instruct_dataset
from tune.datasets.holdout import hold_out
from tune.errors import ConfigError, DataError
from tune.tokenizers import SentencePieceTokenizer

WORDS = ["river", "seven", "green", "apple", "walk", "twelve"]
INSTRUCT = "tune.datasets.instruct_dataset"


@pytest.fixture
def tokenizer(spm_file):
    return SentencePieceTokenizer(spm_file)


@pytest.fixture
def write(tmp_path):
    def to_file(name: str, numbers: list[int]) -> str:
        rows = [
            {"question": f"{WORDS[n % 6]} {WORDS[n // 6 % 6]} {n}", "answer": " ".join(WORDS[: 1 + n % 4])}
            for n in numbers
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return to_file


def documents(dataset) -> list[tuple[int, ...]]:
    """Return the tokens of each document, packed or not."""
    found = []
    for index in range(len(dataset)):
        item = dataset[index]
        positions = item.get("input_pos", range(len(item["tokens"])))
        starts = [place for place, position in enumerate(positions) if position == 0]
        found += [tuple(item["tokens"][a:b]) for a, b in zip(starts, [*starts[1:], len(item["tokens"])])]
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("val_split", "size"), [(0.25, 15), (8, 8), (1, 1)])
def test_both_sides_are_disjoint_and_nothing_is_lost(tokenizer, write, packed, val_split, size):
    # 40 different rows, the first 10 of them three times.
    dataset = instruct_dataset(
        tokenizer, source=write("a.jsonl", [*range(40), *[*range(10)] * 2]), packed=packed, max_seq_len=90
    )
    (train,), (val,) = hold_out([dataset], val_split, seed=5)
    kept, held = documents(train), documents(val)
    assert len(held) == size
    assert sorted(kept + held) == sorted(documents(dataset))
    assert not set(kept) & set(held)
    for side, tokens in ((train, kept), (val, held)):
        report = side.report()
        assert report.num_examples == len(tokens)
        assert report.num_tokens == sum(map(len, tokens))
        labels = [label for index in range(len(side)) for label in side[index]["labels"][1:]]
        assert report.num_target_tokens == sum(label != -100 for label in labels)
    assert f"{size} of 60 examples are set aside for validation" in str(train.report())
    assert train.render_prompt("x") == dataset.render_prompt("x")


def test_the_seed_alone_decides(tokenizer, write):
    dataset = instruct_dataset(tokenizer, source=write("a.jsonl", [*range(40)]))

    def held(seed: int, source=dataset):
        return set(documents(hold_out([source], 0.2, seed)[1][0]))

    assert held(1) == held(1) != held(2)
    grown = instruct_dataset(tokenizer, source=write("b.jsonl", [*range(42)]))
    assert len(held(1) & held(1, grown)) >= 6  # further rows change little


def test_a_list_shares_what_is_set_aside(tokenizer, write):
    components = tuple(
        Component(INSTRUCT, {"source": write(name, numbers)})
        for name, numbers in (("a.jsonl", [*range(30)]), ("b.jsonl", [*range(20, 60)]))
    )
    train, val = build_splits(components, None, 0.3, "first_exhausted", tokenizer, 2)
    kept, held = documents(train), documents(val)
    assert len(held) == 21
    assert len(kept) + len(held) == 70
    assert not set(kept) & set(held)  # rows 20 to 29 are in both files


@pytest.mark.parametrize(("numbers", "val_split"), [([0, 0, 0], 0.5), ([0, 1], 2), ([0, 0, 1, 1], 1)])
def test_what_leaves_nothing_is_an_error(tokenizer, write, numbers, val_split):
    dataset = instruct_dataset(tokenizer, source=write("a.jsonl", numbers))
    with pytest.raises(DataError, match=f"val_split={val_split} "):
        hold_out([dataset], val_split, seed=0)


def test_weights_make_a_mixture_and_are_not_passed_on(tokenizer, write):
    first, second = write("a.jsonl", [*range(30)]), write("b.jsonl", [*range(30, 40)])
    components = (
        Component(INSTRUCT, {"source": first, "weight": 3.0}),
        Component(INSTRUCT, {"source": second, "weight": 1.0}),
    )
    dataset = build_datasets(components, tokenizer)
    assert isinstance(dataset, ConcatDataset)
    assert dataset.mixture is not None
    assert dataset.mixture.counts == (30, 10)
    (note,) = dataset.report().remarks
    assert note.startswith("an epoch mixes 40 examples, until the first is exhausted: ")
    assert "a.jsonl: 30 of 30 (75.0%, of the tokens " in note
    with pytest.raises(ConfigError, match="1 of 2 datasets have a weight"):
        build_datasets((components[0], Component(INSTRUCT, {"source": second})), tokenizer)
    train, val = build_splits(components, None, 8, "all_exhausted", tokenizer, 1)
    assert len(train) == sum(train.mixture.sizes) == 32
    assert len(val) == 8


def test_packed_sequences_hold_one_source(tokenizer, write):
    components = tuple(
        Component(
            INSTRUCT, {"source": write(f"{n}.jsonl", [*range(n, n + 9)]), "packed": True, "max_seq_len": 99}
        )
        for n in (0, 30)
    )
    dataset = build_datasets(components, tokenizer)
    own = [set(documents(build_datasets(component, tokenizer))) for component in components]
    for index in range(len(dataset)):
        inside = set(documents([dataset[index]]))
        assert inside <= own[0] or inside <= own[1]
