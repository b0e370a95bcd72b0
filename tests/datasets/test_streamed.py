"""Streams of every builder: the very examples of the data that is read whole."""

from __future__ import annotations

import csv
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from pyarrow import Table, parquet

from tune.config.component import Component
from tune.datasets import build_datasets
from tune.datasets.streamed import StreamedDataset
from tune.tokenizers import SentencePieceTokenizer

WORDS = ["river", "seven", "green", "apple", "walk", "twelve", "answer"]


def words(number: int, length: int) -> str:
    return " ".join(WORDS[(number * 3 + place * place) % 7] for place in range(length))


def chat(number: int, **answer: Any) -> dict[str, Any]:
    asked = {"role": "user", "content": words(number, 3)}
    said = {"role": "assistant", "content": words(number, number % 4 + 1)}
    return {"messages": [asked, said, asked, {**said, **answer}]}


def write_rows(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(values) + "\n" for values in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        parquet.write_table(Table.from_pylist(rows), path, row_group_size=4)
    else:
        path.write_text("\n".join(rows) + "\n")
    return path


PAIRS = [{"question": words(n, n % 5 + 1), "answer": words(n + 1, n % 3 + 1)} for n in range(9)]
TEXTS = [words(n, 1 + 13 * (n % 3)) for n in range(9)]
INPUTS = [{"instruction": words(n, 4), "input": words(n, n % 2), "output": words(n, 2)} for n in range(9)]
GRAMMAR = [{"input": words(n, 4), "output": words(n, 3)} for n in range(9)]
KINDS: dict[str, tuple[str, str, list[Any], dict[str, Any]]] = {
    "instruct": ("instruct", "a.jsonl", PAIRS, {}),
    "csv": ("instruct", "a.csv", PAIRS, {"train_on_input": True}),
    "parquet": ("instruct", "a.parquet", PAIRS, {"max_seq_len": 20}),
    "json": ("instruct", "a.json", PAIRS, {"on_too_long": "split", "max_seq_len": 9}),
    "long": ("instruct", "a.jsonl", PAIRS, {"on_too_long": "drop", "max_seq_len": 30}),
    "alpaca": ("alpaca", "a.jsonl", INPUTS, {}),
    "published": ("grammar", "a.jsonl", GRAMMAR, {}),
    "chat": (
        "chat",
        "a.jsonl",
        [chat(n) for n in range(9)],
        {"prompt_template": "plain", "train_on": "last"},
    ),
    "weights": (
        "chat",
        "a.jsonl",
        [chat(n, weight=0.5 + n % 2 / 2) for n in range(9)],
        {"prompt_template": "plain"},
    ),
    "text": ("text_completion", "a.txt", TEXTS, {"text_unit": "line", "max_seq_len": 17}),
    "dropped": (
        "text_completion",
        "a.jsonl",
        [{"text": text} for text in (*TEXTS, "", "x")],
        {"on_bad_rows": "drop"},
    ),
    "tokenized": ("tokenized", "a.jsonl", [{"input_ids": [5, 6, 7 + n]} for n in range(9)], {}),
}


@pytest.fixture(scope="module")
def tokenizer(spm_file: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(spm_file)


def streamed(name: str, source: Path, tokenizer: Any, **settings: Any) -> StreamedDataset:
    kwargs = {"source": str(source), "max_seq_len": 90, **settings, "streaming": True}
    made = build_datasets(Component(f"tune.datasets.{name}_dataset", kwargs), tokenizer)
    assert isinstance(made, StreamedDataset)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_data_that_is_read_whole(tokenizer, tmp_path: Path, kind: str) -> None:
    name, file, rows, settings = KINDS[kind]
    path = write_rows(tmp_path / file, rows)
    stream = streamed(name, path, tokenizer, **settings)
    kwargs = {"source": str(path), "max_seq_len": 90, **settings}
    whole = build_datasets(Component(f"tune.datasets.{name}_dataset", kwargs), tokenizer)
    wanted = [whole[index] for index in range(len(whole))]
    found = islice(stream.stream(False, 0, 0, 1).examples(), 2 * len(wanted))
    assert [example for example, _ in found] == 2 * wanted  # and the second pass follows by itself
    assert stream.render_prompt("seven") == whole.render_prompt("seven")


def test_packed_all_at_once_the_packs_are_the_same(tokenizer, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", PAIRS * 5)
    settings = {"packed": True, "max_seq_len": 70}
    whole = build_datasets(
        Component("tune.datasets.instruct_dataset", {"source": str(path), **settings}), tokenizer
    )
    found = islice(
        streamed("instruct", path, tokenizer, **settings).stream(False, 0, 0, 1).examples(), len(whole)
    )
    assert [example for example, _ in found] == [whole[index] for index in range(len(whole))]


def test_other_files_and_settings_are_other_data(tokenizer, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", PAIRS)

    def described(**settings: Any) -> str:
        return streamed("instruct", path, tokenizer, **settings).describe_sources()

    before = described()
    assert described() == before
    for settings in ({"shuffle_buffer": 9}, {"packed": True}, {"on_bad_rows": "drop"}):
        assert described(**settings) != before
    path.write_text(path.read_text().replace("river", "wiver"))  # of the same size
    assert described() != before


def test_made_ahead_by_processes_it_is_the_same(
    tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune.datasets.tokenizing.ALONE_S", -1.0)
    path = write_rows(tmp_path / "a.jsonl", PAIRS * 20)
    component = Component(
        "tune.datasets.instruct_dataset",
        {"source": str(path), "streaming": True, "shuffle_buffer": 70, "max_seq_len": 90, "packed": True},
    )
    alone, many = (
        list(
            islice(build_datasets(component, tokenizer, num_proc=number).stream(True, 3, 0, 1).examples(), 60)
        )
        for number in (1, 2)
    )
    assert many == alone
    going_on = build_datasets(component, tokenizer, num_proc=2).stream(True, 3, 0, 1).examples(alone[37][1])
    assert list(islice(going_on, 22)) == alone[38:]
