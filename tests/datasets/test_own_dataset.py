"""A dataset of one's own needs a length and items; what is wrong with an item is said with its number."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import warm_python
from tune.data import DataReport
from tune.datasets.concat import ConcatDataset
from tune.datasets.own import OwnDataset
from tune.errors import DataError

GOOD = [
    {"tokens": [3, 5, 7], "labels": [-100, 5, 7]},
    {"tokens": torch.tensor([3, 9]), "labels": [np.int64(-100), torch.tensor(9)]},
    {"tokens": np.array([3, 8, 8, 2]), "labels": np.array([-100, -100, 8, 2]), "weight": 0.5},
]


def test_it_is_counted_and_items_are_lists() -> None:
    dataset = OwnDataset(GOOD, "mine")
    assert [dataset[index]["tokens"] for index in range(3)] == [[3, 5, 7], [3, 9], [3, 8, 8, 2]]
    assert dataset[2]["weight"] == 0.5
    report = dataset.report()
    assert (report.num_examples, report.num_tokens, report.num_target_tokens, report.longest) == (3, 9, 5, 4)
    assert dataset.render_prompt("hello") == "hello"
    both = ConcatDataset([dataset, OwnDataset(GOOD[:1], "more")])
    assert len(both) == 4
    assert both[3]["labels"] == [-100, 5, 7]
    assert both.report().source == "mine + more"


def test_what_more_it_offers_is_used() -> None:
    class Mine(list[Any]):
        def report(self) -> DataReport:
            return DataReport(source="hand-made", num_examples=len(self), longest=9)

        def render_prompt(self, text: str) -> list[int]:
            return [3, len(text)]

    dataset = OwnDataset(Mine(GOOD), "mine")
    assert dataset.report().source == "hand-made"
    assert dataset.render_prompt("hello") == [3, 5]


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ([3, 5], "is a list, not a mapping with tokens and labels"),
        ({"labels": [3]}, "has no tokens, only labels"),
        ({"tokens": [3, 5]}, "has no labels, only tokens"),
        ({"tokens": [3, 5], "labels": [5]}, "has 2 tokens, but 1 labels"),
        ({"tokens": [], "labels": []}, "has tokens that are no list of token ids, or an empty one"),
        ({"tokens": "ab", "labels": [1, 2]}, "has tokens that are no list of token ids"),
        ({"tokens": torch.tensor(3), "labels": [3]}, "has tokens that are no list of token ids"),
        ({"tokens": [3, 2.5], "labels": [3, 5]}, r"has 2\.5 among its tokens"),
        ({"tokens": [3, True], "labels": [3, 5]}, "has True among its tokens"),
        ({"tokens": [3, None], "labels": [3, 5]}, "has None among its tokens"),
        ({"tokens": [3, -1], "labels": [3, 5]}, "has a token below 0: -1"),
        ({"tokens": [3, 5], "labels": [-5, 5]}, "has a label -5; one that is not learnt is -100"),
    ],
)
def test_a_wrong_item_is_told_with_its_number(item: Any, says: str) -> None:
    with pytest.raises(DataError, match=f"^mine: example 3 {says}"):
        OwnDataset([*GOOD, item], "mine")


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to learn from mine: it is empty"):
        OwnDataset([], "mine")
    with pytest.raises(DataError, match="nothing to learn from mine: every label is -100"):
        # The first label has nothing before it that could predict it.
        OwnDataset([{"tokens": [3, 5], "labels": [3, -100]}], "mine")


MODULE = """
class Questions:
    def __init__(self, tokenizer, size: int = 12) -> None:
        self.tokenizer, self.size = tokenizer, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        prompt = self.tokenizer.encode(f"{index} + 1 =", add_bos=True, add_eos=False)
        answer = self.tokenizer.encode(f" {index + 1}", add_bos=False, add_eos=True)
        return {"tokens": prompt + answer, "labels": [-100] * len(prompt) + answer}
"""


def test_a_run_on_the_dataset_of_the_docs(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    docs = (root / "docs" / "data.md").read_text(encoding="utf-8")
    assert "size: int = 100" in docs
    assert MODULE.replace("size: int = 12", "size: int = 100").strip() in docs
    (tmp_path / "my_data.py").write_text(MODULE)
    arguments = [
        "run",
        "full_finetune",
        "--config",
        "tiny/full_finetune",
        "output_dir=out",
        "max_steps_per_epoch=2",
        "epochs=1",
    ]
    done = warm_python.run(
        [
            sys.executable,
            "-m",
            "tune",
            *arguments,
            "--trust",
            "my_data",
            "dataset=my_data.Questions",
            "dataset.size=9",
        ]
        + ["dataset_val=my_data.Questions", "generate_every_n_steps=1", 'sample_prompts=["3 + 1 ="]'],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "9 examples" in done.stderr
    rows = [json.loads(row) for row in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert "val_loss" in rows[-1]
