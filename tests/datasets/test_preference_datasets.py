"""Pairs and judged answers, in all the forms they are published in: what is learnt, cut, left out and told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tune.config import resolve
from tune.data import padded_collate_dpo, preview_example
from tune.data.packing import join_examples
from tune.data.sampler import FilledDataset
from tune.datasets import (
    PackedDataset,
    hh_rlhf_helpful_dataset,
    preference_dataset,
    stack_exchange_paired_dataset,
    unpaired_dataset,
)
from tune.datasets.holdout import hold_out
from tune.datasets.preview import look_at
from tune.errors import ConfigError, DataError
from tune.tokenizers import Tokenizer, from_checkpoint

TEMPLATE = """{% for m in messages %}{{ '<|start|>' + m.role + ':' + m.content + '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant:' }}{% endif %}"""
ASKED = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}
B = {"role": "assistant", "content": "b"}
EARLIER = [ASKED, {"role": "assistant", "content": "x"}, {"role": "user", "content": "r"}]
PAIR = ["|user:q.|assistant:[a.]", "|user:q.|assistant:[b.]"]
LONGER = [f"|user:q.|assistant:x.|user:r.|assistant:[{answer}.]" for answer in "ab"]
TRANSCRIPT = "\n\nHuman: q\n\nAssistant: x\n\nHuman: r\n\nAssistant: "
Read = Callable[..., tuple[list[list[str]], Any]]


@pytest.fixture
def tokenizer(chat_folder: Callable[..., Path]) -> Tokenizer:
    return from_checkpoint(chat_folder(TEMPLATE))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[list[dict[str, Any]]], str]:
    def to_file(rows: list[dict[str, Any]]) -> str:
        file = tmp_path / "data.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(file)

    return to_file


def sides_of(tokenizer: Tokenizer, item: dict[str, Any]) -> list[str]:
    """Return each document as text, with what is learnt in brackets."""
    starts = [place for place, position in enumerate(item["input_pos"]) if position == 0]
    texts = []
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        side = {name: item[name][start:end] for name in ("tokens", "labels")}
        text = "".join(f"[{t}]" if learnt else t for t, learnt in preview_example(tokenizer, side))
        texts.append(text.replace("<|start|>", "|").replace("<|end|>", "."))
    return texts


@pytest.fixture
def read(tokenizer: Tokenizer, write: Callable[..., str]) -> Read:
    def pairs(rows: list[dict[str, Any]], build: Any = preference_dataset, **settings: Any) -> Any:
        dataset = build(tokenizer, source=write(rows), **settings)
        assert [dataset.length(index) for index in range(len(dataset))] == [len(i["tokens"]) for i in dataset]
        return [sides_of(tokenizer, item) for item in dataset], dataset.report()

    return pairs


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, PAIR),
        ({"prompt": [ASKED], "chosen": [A], "rejected": [B]}, PAIR),
        ({"prompt": [ASKED], "chosen": A, "rejected": B}, PAIR),
        ({"prompt": json.dumps([ASKED]), "chosen": json.dumps([A]), "rejected": json.dumps([B])}, PAIR),
        ({"chosen": [ASKED, A], "rejected": [ASKED, B]}, PAIR),
        ({"chosen": [*EARLIER, A], "rejected": [*EARLIER, B]}, LONGER),
        ({"prompt": "q", "chosen": [ASKED, A], "rejected": [ASKED, B]}, PAIR),  # UltraFeedback
        ({"prompt": "r", "chosen": [*EARLIER, A], "rejected": [*EARLIER, B]}, LONGER),
        ({"chosen": TRANSCRIPT + "a", "rejected": TRANSCRIPT + "b"}, LONGER),  # HH-RLHF
        ({"prompt": TRANSCRIPT.rstrip(), "chosen": "a", "rejected": "b"}, LONGER),
        ({"input": {"messages": [ASKED]}, "preferred_output": [A], "non_preferred_output": [B]}, PAIR),
        ({"question": "q", "response_j": "a", "response_k": "b"}, PAIR),
        (
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            },
            PAIR,
        ),
        (
            {"instruction": "q", "input": "more", "chosen": "a", "rejected": "b"},
            [side.replace("q", "q\n\nmore") for side in PAIR],
        ),
        (
            {"system": "s", "prompt": "q", "chosen": "a", "rejected": "b"},
            [f"|system:s.{side}" for side in PAIR],
        ),
        # a prompt's system message stays, also before whole conversations
        (
            {
                "prompt": [{"role": "system", "content": "s"}, ASKED],
                "chosen": [ASKED, A],
                "rejected": [ASKED, B],
            },
            [f"|system:s.{side}" for side in PAIR],
        ),
        # texts that look like JSON are texts
        (
            {"prompt": "q", "chosen": '[{"a": 1}]', "rejected": "[ ] a"},
            ['|user:q.|assistant:[[{"a": 1}].]', "|user:q.|assistant:[[ ] a.]"],
        ),
        # of an empty answer no more than its end is learnt
        ({"prompt": "q", "chosen": "a", "rejected": ""}, [PAIR[0], "|user:q.|assistant:[.]"]),
        ({"prompt": "q", "chosen": "a", "rejected": None}, [PAIR[0], "|user:q.|assistant:[.]"]),
        # answers of several turns: where they part, all that the assistant says is learnt
        (
            {"chosen": [ASKED, A, *EARLIER[2:], A], "rejected": [ASKED, B]},
            ["|user:q.|assistant:[a.]|user:r.|assistant:[a.]", PAIR[1]],
        ),
    ],
)
def test_forms_of_pairs(read: Read, row: dict[str, Any], expected: list[str]) -> None:
    examples, _ = read([row])
    assert examples == [expected]


def test_torchtunes_builders_and_arguments(read: Read) -> None:
    row = {"question": "q", "response_j": "a", "response_k": "b", "date": "2019"}
    examples, report = read([row], stack_exchange_paired_dataset)
    assert examples == [PAIR]
    assert report.unused == {"column date": 1}
    whole = {"c": [ASKED, A], "r": [ASKED, B]}
    examples, _ = read(
        [whole],
        hh_rlhf_helpful_dataset,
        column_map={"chosen": "c", "rejected": "r"},
        new_system_prompt="s",
        train_on_input=True,
    )
    assert examples == [[f"|[system:s.|user:q.|assistant:{answer}.]" for answer in "ab"]]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "q", "chosen": "", "rejected": ""}, "both answers are empty"),
        ({"chosen": "a", "rejected": "b"}, "'chosen' is a text without a prompt"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "column 'prompt' is empty"),
        ({"prompt": "z", "chosen": [ASKED, A], "rejected": [ASKED, B]}, "another question than any in it"),
        ({"chosen": [ASKED, A], "rejected": [EARLIER[2], B]}, "part at message 1, which is by the user"),
        ({"chosen": [ASKED], "rejected": [ASKED, B]}, "ends without an answer"),
        ({"prompt": "q", "chosen": 1.5, "rejected": ["x"]}, "expected"),
        ({"prompt": "q", "answer": "a"}, "Say which with dataset.column_map.chosen"),
    ],
)
def test_what_is_no_pair(read: Read, row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        read([row])


def test_numbers_are_read_as_text(read: Read) -> None:
    examples, report = read([{"prompt": "q", "chosen": 7, "rejected": 0.5}])
    assert examples == [["|user:q.|assistant:[7.]", "|user:q.|assistant:[0.5.]"]]
    assert "numbers read as text" in str(report)


def test_the_report_tells_what_teaches_nothing(read: Read) -> None:
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "a", "score": 3},
        {"prompt": "q", "chosen": "a", "rejected": "", "score": 4},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
    ]
    _, report = read(rows)
    assert report.num_examples == 3
    said = str(report)
    assert "pairs whose two answers are the same, from which nothing can be learnt: 1" in said
    assert "pairs with an empty answer, of which no more than its end is learnt: 1" in said
    assert "not used: column score (2 times)" in said
    assert "in pairs" in said
    mean, longest = map(int, re.findall(r"\(mean (\d+), longest (\d+) of each side\)", said)[0])
    assert mean <= longest


def test_a_pair_is_cut_on_both_sides_or_left_out(read: Read) -> None:
    short, long = "a", "apple river seven twelve green walk " * 3
    rows = [
        {"prompt": "q", "chosen": short, "rejected": long},
        {"prompt": long, "chosen": short, "rejected": "b"},  # the prompt alone is longer
        {"prompt": "q", "chosen": short, "rejected": "b"},
    ]
    whole, _ = read(rows)
    examples, report = read(rows, max_seq_len=14)
    assert [len(pair) for pair in examples] == [2, 2]
    assert examples[1] == PAIR
    assert examples[0][0] == PAIR[0]
    assert whole[0][1].startswith(examples[0][1].rstrip("]"))
    assert (report.num_examples, report.num_truncated, report.num_lost) == (2, 2, 1)
    assert "1 are left out, their answer lies beyond the cut" in str(report)
    examples, report = read(rows, max_seq_len=14, on_too_long="drop")
    assert examples == [PAIR]
    assert report.num_long_dropped == 2
    with pytest.raises(DataError, match=r"2 examples .* are longer than max_seq_len=14"):
        read(rows, max_seq_len=14, on_too_long="error")
    with pytest.raises(ConfigError, match="expected one of cut, drop, error"):
        read(rows, max_seq_len=14, on_too_long="split")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "completion": "a", "label": True}, [("|user:q.|assistant:[a.]", 1)]),
        ({"prompt": [ASKED], "completion": [A], "label": False}, [("|user:q.|assistant:[a.]", -1)]),
        ({"instruction": "q", "output": "a", "kto_tag": "false"}, [("|user:q.|assistant:[a.]", -1)]),
        ({"messages": [*EARLIER, A], "label": 1}, [(LONGER[0], 1)]),
        # a column of truths with a gap in it, written by a table's library
        ({"prompt": "q", "completion": "a", "label": 0.0}, [("|user:q.|assistant:[a.]", -1)]),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, [(PAIR[0], 1), (PAIR[1], -1)]),
    ],
)
def test_judged_answers(
    tokenizer: Tokenizer, write: Callable[..., str], row: dict[str, Any], expected: list[tuple[str, int]]
) -> None:
    dataset = unpaired_dataset(tokenizer, source=write([row]))
    found = [
        (sides_of(tokenizer, {**item, "input_pos": range(len(item["tokens"]))})[0], item["verdict"])
        for item in dataset
    ]
    assert found == expected
    good = sum(verdict > 0 for _, verdict in expected)
    assert f"{good} answers are judged good, {len(expected) - good} bad" in str(dataset.report())


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "q", "completion": "a", "label": "perhaps"}, "expected true .* or false"),
        ({"prompt": "q", "completion": "a"}, "could say whether an answer is good"),
        ({"prompt": "q", "completion": "", "label": True}, "the answer is empty"),
        ({"prompt": "q", "completion": "a", "response": "b", "label": True}, "could hold the answer"),
    ],
)
def test_what_is_not_judged(
    tokenizer: Tokenizer, write: Callable[..., str], row: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        unpaired_dataset(tokenizer, source=write([row]))


ROWS = [{"prompt": "q", "chosen": "a" * (n + 1), "rejected": "b" * (5 - n)} for n in range(5)]


def test_batches_have_chosen_rows_first(tokenizer: Tokenizer, write: Callable[..., str]) -> None:
    dataset = preference_dataset(tokenizer, source=write(ROWS))
    items = [dataset[index] for index in range(3)]
    batch = padded_collate_dpo([*items, FilledDataset(dataset, 9, -100)[~0]], padding_idx=9)
    ends = [item["input_pos"].index(0, 1) for item in items]
    chosen = [item["tokens"][:end] for item, end in zip(items, ends, strict=True)]
    rejected = [item["tokens"][end:] for item, end in zip(items, ends, strict=True)]
    for row, side in zip(batch["tokens"][[0, 1, 2, 4, 5, 6]].tolist(), [*chosen, *rejected], strict=True):
        assert row == side + [9] * (len(row) - len(side))
    assert batch["verdicts"].tolist() == [1, 1, 1, 0]
    assert batch["answers"].amax(1).tolist() == list(range(8))
    theirs = [
        {
            "chosen_input_ids": item["tokens"][:end],
            "chosen_labels": item["labels"][:end],
            "rejected_input_ids": item["tokens"][end:],
            "rejected_labels": item["labels"][end:],
        }
        for item, end in zip(items, ends, strict=True)
    ]
    ours, same = padded_collate_dpo(items, padding_idx=9), padded_collate_dpo(theirs, padding_idx=9)
    assert all(torch.equal(ours[name], same[name]) for name in ours)
    with pytest.raises(DataError, match="holds no pair"):
        padded_collate_dpo([{"tokens": [1, 2], "labels": [1, 2]}])


def test_packs_hold_whole_pairs(tokenizer: Tokenizer, write: Callable[..., str]) -> None:
    dataset = preference_dataset(tokenizer, source=write(ROWS), packed=True, max_seq_len=40)
    assert isinstance(dataset, PackedDataset)
    assert dataset.capacity == 80
    assert len(dataset) < len(ROWS)
    batch = padded_collate_dpo([dataset[index] for index in range(len(dataset))], padding_idx=9)
    assert batch["verdicts"].tolist() == [1] * len(ROWS)
    for number in range(len(ROWS)):
        for answer in (number, number + len(ROWS)):
            places = (batch["answers"] == answer).nonzero()
            assert batch["input_pos"][tuple(places.t())].tolist() == list(range(len(places)))
    learnt = batch["labels"] >= 0
    assert (batch["answers"][learnt] >= 0).all()


def test_judged_batches_have_prompts_with_other_answers(
    tokenizer: Tokenizer, write: Callable[..., str]
) -> None:
    rows = [{"prompt": "q" * (n + 1), "completion": "abc"[n], "label": n % 2 == 0} for n in range(3)]
    dataset = unpaired_dataset(tokenizer, source=write(rows))
    items = [*(dataset[index] for index in range(3)), FilledDataset(dataset, 9, -100)[~0]]
    batch = padded_collate_dpo(items, padding_idx=9)
    assert batch["verdicts"].tolist() == [1, -1, 1, 0]
    texts = [
        tokenizer.decode(row[answers >= 0].tolist(), skip_special=False)
        for row, answers in zip(batch["tokens"], batch["answers"], strict=True)
    ]
    for number, other in ((0, 2), (1, 0), (2, 1)):
        assert "q" * (number + 1) in texts[4 + number]
        assert f"assistant:{'abc'[other]}" in texts[4 + number]
    assert (batch["labels"][7] < 0).all()
    alone = padded_collate_dpo(items[:1], padding_idx=9)
    assert (alone["labels"][1] < 0).all(), "with nobody else there is no other answer"


def test_pairs_are_held_out_whole(tokenizer: Tokenizer, write: Callable[..., str]) -> None:
    dataset = preference_dataset(tokenizer, source=write(ROWS))
    (train,), (held,) = hold_out([dataset], 2, seed=0)
    texts = [sides_of(tokenizer, item) for side in (train, held) for item in side]
    assert len(train) == 3
    for side in (train, held):
        report = side.report()
        assert report.num_sides == 2 * len(side)
        assert report.num_tokens / report.num_sides <= report.longest
    assert sorted(texts) == sorted(sides_of(tokenizer, item) for item in dataset)


def test_the_cache_gives_the_same_pairs(tokenizer: Tokenizer, write: Callable[..., str]) -> None:
    source = write([*ROWS, {"prompt": "q", "chosen": "a", "rejected": "a"}])
    first, again = (preference_dataset(tokenizer, source=source) for _ in range(2))
    assert [first[index] for index in range(6)] == [again[index] for index in range(6)]
    assert str(first.report()) == str(again.report())
    judged, again = (unpaired_dataset(tokenizer, source=source) for _ in range(2))
    assert [judged[index] for index in range(12)] == [again[index] for index in range(12)]


def test_a_look_shows_both_sides(tokenizer: Tokenizer, write: Callable[..., str]) -> None:
    from tune.recipes.params.preference_finetune import PreferenceFinetuneParams

    overrides = ["output_dir=x", "model_checkpoint=x", "lr=1", f"dataset.source={write(ROWS)}"]
    for packed in (False, True):
        more = ["dataset=preference", f"dataset.packed={str(packed).lower()}", "dataset.max_seq_len=12"]
        params = resolve(PreferenceFinetuneParams, overrides=[*more, *overrides]).params
        assert params is not None
        (shown,) = look_at({"dataset": params.dataset}, tokenizer, max_examples=2)
        example = shown.examples[0]
        assert list(example.names[:2]) == ["chosen", "rejected"]
        assert len(example.names) == len(example.sources) == example.preview[-1].document + 1
        # the first row's rejected answer is longer than the limit, its chosen one is not
        cuts = [cut for row in shown.examples for cut in row.cuts]
        assert any(cuts)
        assert not all(cuts)
        assert example.to_json()["names"] == list(example.names)
    judged = look_at(
        {
            "dataset": resolve(
                PreferenceFinetuneParams, overrides=["dataset=unpaired", "loss=kto", *overrides]
            ).params.dataset
        },
        tokenizer,
        max_examples=2,
    )
    assert judged[0].examples[1].describe().endswith("judged bad")


def test_joined_items_keep_their_documents() -> None:
    pair = join_examples([{"tokens": [1, 2], "labels": [-100, 2]}, {"tokens": [1, 3], "labels": [-100, 3]}])
    both = join_examples([pair, pair])
    assert both["input_pos"] == [0, 1] * 4
    assert both["labels"] == [-100, 2, -100, 3] * 2
