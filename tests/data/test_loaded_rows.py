"""Rows whose columns are more than plain values arrive as they were written, wherever they come from."""

from __future__ import annotations

import json

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from tune.data.hub import read_hub
from tune.data.sources import Source
from tune.errors import ConfigError, DataError

MIB = 1 << 20


def values_of(source, **settings):
    return [row.values for row in Source(str(source), **settings).rows()]


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="this version of datasets keeps no JSON columns")
def test_columns_of_mixed_kinds_are_values_and_not_their_text(tmp_path):
    rows = [{"a": [{"x": 1}], "b": "t"}, {"a": [{"x": "s"}], "b": "u"}, {"a": "t\n", "b": "v"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = datasets.load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train")
    assert "Json" in repr(loaded.features["a"])
    loaded.save_to_disk(tmp_path / "saved")
    assert values_of(tmp_path / "saved") == rows
    with pytest.raises(ConfigError, match=r"dataset\.field is 'a'"):
        values_of(tmp_path / "saved", field="a")


@pytest.mark.parametrize("split", ["train[:1%]", "train[:-100]", "train[:0]"])
def test_a_limit_does_not_fill_an_empty_range(tmp_path, split):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"q": 1}\n' * 20)
    assert values_of(file, split=split, limit=5) == []
    assert len(values_of(file, split="train[2:9]", limit=5)) == 5


def test_maps_of_many_rows_are_counted_row_by_row(tmp_path):
    kind = pyarrow.map_(pyarrow.string(), pyarrow.string())
    maps = pyarrow.array([[("k", "v" * 30_000)]] * 1000, kind)
    parquet.write_table(pyarrow.table({"m": maps}), tmp_path / "rows.parquet")
    rows = values_of(tmp_path / "rows.parquet")
    assert len(rows) == 1000
    assert not any(row.problem for row in Source(str(tmp_path / "rows.parquet"), limit=3).rows())
    assert rows[999] == {"m": [("k", "v" * 30_000)]}


def test_fields_beside_the_rows_may_be_large(tmp_path):
    file = tmp_path / "rows.json"
    large = [{"q": "x" * MIB}] * 20
    file.write_text(json.dumps({"meta": {"by": [1]}, "train": large, "validation": large, "none": []}))
    for field in ("train", "validation"):
        assert len(values_of(file, field=field)) == 20
    with pytest.raises(DataError, match=r"dataset\.field=train or dataset\.field=validation"):
        values_of(file)
    with pytest.raises(DataError, match="empty list"):
        values_of(file, field="none")


CALLS = [
    {"name": "f", "arguments": {"city": "Paris", "near": [{"name": "Lille"}]}},
    {"name": "g", "arguments": {"zip": 75001, "near": [{"size": 3, "name": None}]}},
]


@pytest.mark.parametrize("where", ["rows.parquet", "saved"])
def test_objects_have_the_keys_they_were_written_with(tmp_path, where):
    """A table gives all objects of a column the same keys: those that one lacked are null there."""
    rows = [{"tools": [call], "note": None, "messages": [{"role": "user", "content": "q"}]} for call in CALLS]
    rows[1]["messages"].append({"role": "assistant", "tool_calls": [{"function": CALLS[1]}]})
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(tmp_path / "rows.parquet") if "." in where else table.save_to_disk(tmp_path / where)
    CALLS[1]["arguments"]["near"][0].pop("name", None)
    assert values_of(tmp_path / where) == rows


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="this version of datasets keeps no JSON columns")
@pytest.mark.parametrize("where", ["rows.parquet", "saved"])
def test_nulls_in_json_columns_stay(tmp_path, where):
    kinds = {"tools": datasets.Json(), "turns": [{"value": datasets.Json(), "of": datasets.Value("string")}]}
    rows = [
        {"tools": {"city": "Paris", "zip": None}, "turns": [{"value": [None, {"x": None}], "of": "a"}]},
        {"tools": "text", "turns": [{"value": 3}]},
    ]
    table = datasets.Dataset.from_list(rows, features=datasets.Features(kinds))
    table.to_parquet(tmp_path / "rows.parquet") if "." in where else table.save_to_disk(tmp_path / where)
    assert values_of(tmp_path / where) == rows


def test_streamed_rows_begin_anywhere_in_a_shard(tmp_path):
    for number in range(3):
        rows = [{"q": f"{number} {place}", "a": [place]} for place in range(5 + number)]
        table = pyarrow.Table.from_pylist(rows)
        parquet.write_table(table, tmp_path / f"train-{number}.parquet", row_group_size=2)
    whole, streamed = (read_hub(str(tmp_path), "train", None, None, streamed=on) for on in (False, True))
    wanted = [make().values for make in whole.unmade()]
    for rows in (whole, streamed):
        assert [make().values for make in rows.unmade(4)] == wanted[4:]
        assert [make().values for shard in rows.shards() for make in shard.unmade()] == wanted
    shards = streamed.shards()
    assert [len([*shard.unmade(3)]) for shard in shards] == [2, 3, 4]
    assert next(shards[1].unmade(3))().place.endswith("train, shard 1, row 4")
    assert len(whole.shards()) == 1
