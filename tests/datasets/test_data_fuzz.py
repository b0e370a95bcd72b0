"""Whatever a file holds, a person gets an explanation and never a traceback."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune.data import CROSS_ENTROPY_IGNORE_IDX
from tune.data.rows import read_file
from tune.datasets import alpaca_dataset, chat_dataset, instruct_dataset, text_completion_dataset
from tune.errors import TuneError
from tune.tokenizers import SentencePieceTokenizer

SETTINGS = settings(max_examples=150)
marks = [
    b'{"a": 1}',
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b",",
    b":",
    b";",
    b" ",
    b"\t",
    b"\n",
    b"\r\n",
    b"a,b",
    b"x",
    b"null",
]
oddities = [
    b"\xff\xfe",
    b"\xe9",
    b"\xef\xbb\xbf",
    b"\x00",
    b"1e999",
    b"NaN",
    b"\\ud800",
    b"PAR1",
    b"\x1f\x8b",
]
fragments = st.sampled_from(marks + oddities)
contents = st.one_of(st.binary(max_size=60), st.lists(fragments, max_size=20).map(b"".join))


@given(
    content=contents,
    kind=st.sampled_from(["json", "jsonl", "csv", "tsv", "parquet", "txt"]),
    zipped=st.booleans(),
)
@SETTINGS
def test_any_bytes(tmp_path, content, kind, zipped):
    file = tmp_path / (f"data.{kind}.gz" if zipped and kind != "parquet" else f"data.{kind}")
    file.write_bytes(gzip.compress(content) if zipped and len(content) % 2 else content)
    try:
        rows = list(read_file(file))
    except TuneError as error:
        assert str(file) in str(error)  # noqa: PT017
        return
    assert rows
    assert all(row.problem or isinstance(row.values, dict) for row in rows)


texts = st.one_of(st.sampled_from(["", " ", "the river", "</s>", "\ud800", "[/INST]"]), st.text(max_size=9))
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
offsets = st.one_of(st.integers(-1, 9), scalars)
details = st.fixed_dictionaries(
    {}, optional={"begin_offset": offsets, "end_offset": offsets, "train": st.one_of(st.booleans(), scalars)}
)
turns = st.fixed_dictionaries(
    {},
    optional={
        "role": st.one_of(st.sampled_from(["user", "assistant", "system", "tool"]), scalars),
        "from": st.sampled_from(["human", "gpt"]),
        "content": scalars,
        "value": scalars,
        "weight": st.one_of(st.sampled_from([0, 0.5, 1, None]), scalars),
        "train": st.one_of(st.booleans(), scalars),
        "loss": st.one_of(st.sampled_from([0, 0.5, True, False]), scalars),
        "train_detail": st.one_of(st.lists(details, max_size=3), scalars),
    },
)
cells = st.one_of(scalars, st.lists(st.one_of(turns, scalars), max_size=4))
names = ["instruction", "input", "output", "question", "answer", "messages", "conversations", "text", "other"]
rows_of_data = st.lists(st.dictionaries(st.sampled_from(names), cells, max_size=4), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def tokenizer(spm_file):
    return SentencePieceTokenizer(spm_file)


@given(
    rows=rows_of_data,
    build=st.sampled_from([alpaca_dataset, instruct_dataset, chat_dataset, text_completion_dataset]),
    on_bad_rows=st.sampled_from(["error", "drop"]),
    max_seq_len=st.sampled_from([None, 2, 9]),
)
@SETTINGS
def test_any_rows(tmp_path, tokenizer, rows, build, on_bad_rows, max_seq_len):
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        dataset = build(tokenizer, source=str(file), on_bad_rows=on_bad_rows, max_seq_len=max_seq_len)
    except TuneError:
        return
    report = dataset.report()
    assert len(dataset) == report.num_examples > 0
    for item in dataset:
        assert len(item["tokens"]) == len(item["labels"]) <= (max_seq_len or 10**6)
        assert any(label != CROSS_ENTROPY_IGNORE_IDX for label in item["labels"][1:])
    assert str(report)
