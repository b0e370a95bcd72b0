"""The same rows learnt and validated on: said before a run, as far as settings and files tell."""

from __future__ import annotations

import pytest

from tune.config.component import Component
from tune.recipes.params.shared_rows import warn_of_shared_rows

INSTRUCT = "tune.datasets.instruct_dataset"


@pytest.mark.parametrize(
    ("learnt", "held", "is_shared"),
    [
        ({"source": "a.jsonl"}, {"source": "a.jsonl"}, True),
        ({"source": "a.jsonl"}, {"source": "./a.jsonl"}, True),
        ({"source": "a.jsonl"}, {"source": "copy.jsonl"}, True),  # of the same content
        ({"source": "a.jsonl"}, {"source": "b.jsonl"}, False),
        ({"source": "a.jsonl"}, {"source": "nowhere.jsonl"}, False),
        ({"source": "org/name"}, {"source": "org/name"}, True),
        ({"source": "org/name"}, {"source": "org/name", "split": "test"}, False),
        ({"source": "org/name"}, {"source": "org/name", "name": "other"}, False),
        ({"source": "json", "data_files": "x"}, {"source": "json", "data_files": "y"}, False),
        ({}, {}, True),
        ({"source": "a", "split": "train[:90%]"}, {"source": "a", "split": "train[90%:]"}, False),
        ({"source": "a", "split": "train"}, {"source": "a", "split": "train[90%:]"}, True),
        ({"source": "a", "split": "train[:95%]"}, {"source": "a", "split": "train[90%:]"}, True),
        ({"source": "a", "split": "train[:500]"}, {"source": "a", "split": "train[-100:]"}, False),
        ({"source": "a", "split": "train[:-100]"}, {"source": "a", "split": "train[-100:]"}, False),
        ({"source": "a", "split": "train[:-5%]"}, {"source": "a", "split": "train[-10%:]"}, True),
        (
            {"source": "a", "split": "train[:500]"},
            {"source": "a", "split": "train[90%:]"},
            False,
        ),  # nobody knows
    ],
)
def test_rows_that_both_read(tmp_path, monkeypatch, learnt, held, is_shared):
    monkeypatch.chdir(tmp_path)
    for name, text in (("a.jsonl", "1\n"), ("copy.jsonl", "1\n"), ("b.jsonl", "2\n")):
        (tmp_path / name).write_text(text)
    several = (Component(INSTRUCT, {"source": "z"}), Component(INSTRUCT, learnt))
    said = [*warn_of_shared_rows(several, Component(INSTRUCT, held))]
    assert len(said) == is_shared
    if said:
        assert "dataset and dataset_val read the same rows of" in said[0]
    assert not [*warn_of_shared_rows(several, None)]
