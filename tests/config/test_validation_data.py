"""`dataset_val` that is read as `dataset` is, `val_split`, and weights in a list: judged before anything is read."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import pytest

from tune.config import json_schema, resolve
from tune.config.component import Component
from tune.recipes.params.full_finetune import FullFinetuneParams

TEXT = """
output_dir: out
lr: 1e-3
model_checkpoint: m
train_on_input: false
dataset:
  _component_: instruct
  source: my.jsonl
  split: train[:90%]
  column_map: {instruction: ask}
  packed: true
"""
INSTRUCT = "tune.datasets.instruct_dataset"
MEANING = {"column_map": {"instruction": "ask"}, "packed": True, "train_on_input": False}


def resolved(*overrides: str, text: str = TEXT):
    return resolve(FullFinetuneParams, text=text, overrides=overrides)


@pytest.mark.parametrize(
    ("overrides", "kwargs"),
    [
        (["dataset_val.source=held.csv"], {**MEANING, "source": "held.csv"}),
        (
            ["dataset_val.source=held.csv", "dataset_val.packed=false"],
            {**MEANING, "source": "held.csv", "packed": False},
        ),
        (
            ["dataset.streaming=true", "max_steps=9", "dataset_val.source=held.csv"],
            {**MEANING, "source": "held.csv"},
        ),
        (["dataset_val.split=train[90%:]"], {**MEANING, "source": "my.jsonl", "split": "train[90%:]"}),
    ],
)
def test_what_is_left_out_is_taken_from_dataset(overrides, kwargs):
    params = resolved(*overrides).params
    assert params is not None
    assert params.dataset_val == Component(INSTRUCT, kwargs)
    assert params.dataset.kwargs["split"] == "train[:90%]"
    in_file = resolve(FullFinetuneParams, text=TEXT + "dataset_val:\n  source: held.csv\n").params
    assert in_file is not None
    assert in_file.dataset_val == Component(INSTRUCT, {**MEANING, "source": "held.csv"})


def test_in_python_and_with_its_own_component():
    made = FullFinetuneParams(
        output_dir="o",
        lr=1e-3,
        model_checkpoint="m",
        dataset={"_component_": "chat", "source": "a.jsonl", "max_seq_len": 77},
        dataset_val={"source": "b.jsonl"},
    )
    assert made.dataset_val == Component(
        "tune.datasets.chat_dataset", {"source": "b.jsonl", "max_seq_len": 77}
    )
    own = resolved("dataset_val._component_=text_completion", "dataset_val.source=b.txt").params
    assert own.dataset_val == Component("tune.datasets.text_completion_dataset", {"source": "b.txt"})


def test_a_fault_of_dataset_is_told_once():
    found = resolved("dataset_val.source=held.csv", "dataset.sourse=1").errors
    assert [(item.code, item.path) for item in found] == [("unknown-argument", "dataset.sourse")]


def test_the_written_config_says_all_of_it():
    whole = resolved("dataset_val.source=held.csv")
    again = resolve(FullFinetuneParams, text=whole.dump())
    assert again.params == whole.params


TWO = "dataset=[{_component_: instruct, source: a%s}, {_component_: instruct, source: b%s}]"


@pytest.mark.parametrize(
    ("overrides", "path", "said"),
    [
        (["val_split=0"], "val_split", "above 0"),
        (["val_split=2.5"], "val_split", "a share below 1, or a whole number"),
        (["val_split=5", "dataset_val.source=b.jsonl"], "val_split", "keep one of the two"),
        (["run_val_every_n_steps=3"], "run_val_every_n_steps", "dataset_val or val_split"),
        (["mix_until=all_exhausted"], "mix_until", "no effect"),
        (["mix_until=never"], "mix_until", "one of first_exhausted, all_exhausted"),
        ([TWO % (", weight: 0.7", "")], "dataset.1", "has no weight"),
        ([TWO % (", weight: 0.7", ", weight: 0")], "dataset.1.weight", "must be between"),
        ([TWO % (", weight: 0.7", ", weight: -1")], "dataset.1.weight", "must be between"),
        ([TWO % (", weight: 0.7", ", weight: .nan")], "dataset.1.weight", "weight"),
        ([TWO % (", weight: 0.7", ", weight: much")], "dataset.1.weight", "takes a number"),
        (["dataset.streaming=true"], "max_steps", "streamed data has no known end"),
        (["dataset.streaming=yes please"], "dataset.streaming", "takes true or false"),
        (["dataset.shuffle_buffer=0"], "dataset.shuffle_buffer", "between 1 and"),
        (["dataset.shuffle_buffer=9"], "dataset.shuffle_buffer", "for data that is streamed"),
        (["max_steps=9", "dataset.streaming=true", "val_split=5"], "val_split", "never read whole"),
        (["dataset_val.streaming=true"], "dataset_val.streaming", "reads its data to the end"),
        ([TWO % (", streaming: true", ""), "max_steps=9"], "dataset.1.streaming", "must be streamed"),
        (["shuffle_buffer_size=0.1"], "shuffle_buffer_size", "here that is called dataset.shuffle_buffer"),
        (["val_set_size=0.1"], "val_set_size", "here that is called val_split"),
        (["dataset.weight=2"], "dataset.weight", "for one of a list"),
        ([TWO % ("", ""), "dataset_val.source=b.jsonl"], "dataset_val", "is a list"),
    ],
)
def test_what_cannot_be_is_told(overrides, path, said):
    (error,) = resolved(*overrides).errors
    assert error.path == path
    assert said in error.message


def test_editors_take_it_without_a_component():
    schema = json_schema(FullFinetuneParams)
    config = {"output_dir": "o", "dataset": "chat", "dataset_val": {"source": "held.csv"}, "val_split": 0.1}
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "dataset": {"source": "a"}}, schema)


def test_what_fits_is_taken():
    params = resolved(
        TWO % (", weight: 0.7", ", weight: 3"), "mix_until=all_exhausted", "val_split=200"
    ).params
    assert params is not None
    assert [component.kwargs["weight"] for component in params.dataset] == [0.7, 3.0]
    assert params.val_split == 200
    assert resolved("val_split=0.05", "run_val_every_n_steps=3", "batch_size_val=2").ok


def test_the_stream_of_the_docs_fits():
    docs = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n([^`]*streaming: true[^`]*)```", docs)
    rest = "output_dir: out\nlr: 1e-3\nmodel_checkpoint: m\n"
    params = resolve(FullFinetuneParams, text=text + rest).params
    assert params is not None
    assert params.dataset.kwargs["streaming"] is True
    assert params.dataset.kwargs["shuffle_buffer"] == 10_000
    (error,) = resolve(FullFinetuneParams, text=text.replace("max_steps: 20000", "") + rest).errors
    assert "no known end" in error.message
