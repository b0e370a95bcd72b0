"""Validation data out of the training data: drawn by the seed, and never the same example on both sides."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from tune.data import CROSS_ENTROPY_IGNORE_IDX, DataReport
from tune.datasets.packed import PackedDataset, ReportingDataset
from tune.errors import DataError

__all__ = ["hold_out"]

# Tokens at the end of a question with which templates begin an answer, such as "<think>".
_NUM_BEGUN = 4


class Subset(Dataset[dict[str, Any]]):
    """Some examples of a dataset, in its order.

    Args:
        dataset: has them all.
        indices: which.
        report: what there is to say of them.
    """

    def __init__(self, dataset: ReportingDataset, indices: Sequence[int], report: DataReport) -> None:
        self._dataset = dataset
        self.indices = array("q", indices)
        self._report = report

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._dataset[self.indices[index]]

    def length(self, index: int) -> int:
        """Return the number of tokens of an example without making it."""
        return self._dataset.length(self.indices[index])

    def report(self) -> DataReport:
        """Return what there is: examples, tokens, the share trained on."""
        return self._report

    def render_prompt(self, text: str) -> str | list[int]:
        """Return what the model reads when a user says `text`."""
        return self._dataset.render_prompt(text)


def hold_out(
    datasets: Sequence[ReportingDataset], val_split: float, seed: int
) -> tuple[list[ReportingDataset], list[ReportingDataset]]:
    """Return the datasets without the examples set aside for validation, and these, packed where the datasets are.

    Examples of the same tokens are set aside together, whichever dataset they are in; so are those of one conversation
    that became several. Which ones follows from the seed and their tokens alone, so that a few rows more change little.

    Args:
        datasets: one or several, which share the examples to set aside by chance.
        val_split: the share of all examples, below 1, or their number.
        seed: of the draw.

    Raises:
        DataError: there are too few examples, or all of a dataset would be set aside.
    """
    whole = [dataset.documents if isinstance(dataset, PackedDataset) else dataset for dataset in datasets]
    keys = _keys(whole, seed)
    chosen = _choose(np.concatenate(keys), val_split)
    kept: list[ReportingDataset] = []
    held: list[ReportingDataset] = []  # one for each, perhaps empty
    for dataset, documents, own in zip(datasets, whole, keys, strict=True):
        is_held = np.isin(own, chosen)
        train, val = _parts(documents, np.flatnonzero(~is_held).tolist(), np.flatnonzero(is_held).tolist())
        if not len(train):
            raise DataError(
                f"val_split={val_split:g} sets aside all {len(val):,} examples of {dataset.report().source}: lower it, "
                "or give dataset_val"
            )
        kept.append(_packed_like(dataset, train))
        held.append(_packed_like(dataset, val))
    return kept, held


def _keys(datasets: Sequence[ReportingDataset], seed: int) -> list[np.ndarray]:
    """Return a number for each example, the same for those that stay together. [n] uint64 for each dataset"""
    salt = seed.to_bytes(8, "little")
    joined: dict[int, int] = {}  # to a smaller one of the same group

    def number(content: bytes) -> int:
        return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=salt).digest(), "little")

    def first_of(key: int) -> int:
        while key in joined:
            key = joined[key]
        return key

    keys = []
    for dataset in datasets:
        own = np.empty(len(dataset), dtype=np.uint64)
        before: dict[str, Any] | None = None
        for index in range(len(dataset)):
            item = dataset[index]
            own[index] = key = number(array("q", item["tokens"]).tobytes())
            if before is not None and _goes_on(before, item):
                low, high = sorted((first_of(key), first_of(int(own[index - 1]))))
                if low != high:
                    joined[high] = low
            before = item
        keys.append(own)
    if joined:
        # Anew, for the smallest of many is smaller than others.
        keys = [
            np.array([number(first_of(key).to_bytes(8, "little")) for key in own.tolist()], dtype=np.uint64)
            for own in keys
        ]
    return keys


def _goes_on(before: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    """Tell whether an example goes on with the conversation of the one before it: a later answer of the same row.

    It then begins with what was asked there, and is learnt later. Where a question ends in what begins an answer, a
    later one may lack some tokens of that.
    """
    asked, learnt = _num_asked(before), _num_asked(item)
    same = asked - _NUM_BEGUN
    return learnt > asked and same > 1 and before["tokens"][:same] == item["tokens"][:same]


def _num_asked(item: Mapping[str, Any]) -> int:
    """Return the number of tokens before the first one that is learnt."""
    labels = item["labels"]
    return next(
        (place for place, label in enumerate(labels) if label != CROSS_ENTROPY_IGNORE_IDX), len(labels)
    )


def _choose(keys: np.ndarray, val_split: float) -> np.ndarray:
    """Return the keys of the examples to set aside."""
    wanted = max(round(val_split * len(keys)), 1) if val_split < 1 else int(val_split)
    values, counts = np.unique(keys, return_counts=True)  # ascending, which is at random
    if wanted >= len(keys) or len(values) < 2:
        raise DataError(
            f"val_split={val_split:g} would set aside {wanted:,} of {len(keys):,} examples ({len(values):,} different "
            "ones), which leaves none to train on: lower it"
        )
    chosen, total = [], 0
    for value, count in zip(values.tolist(), counts.tolist()):
        if total + count <= wanted:
            chosen.append(value)
            total += count
        if total == wanted:
            break
    if not chosen:
        raise DataError(
            f"val_split={val_split:g} is to set aside {wanted:,} of {len(keys):,} examples, but each is there more "
            "often than that, and equal ones stay together: raise it, or leave out what is there twice"
        )
    return np.array(chosen, dtype=np.uint64)


def _parts(dataset: ReportingDataset, train: list[int], val: list[int]) -> tuple[Subset, Subset]:
    whole = dataset.report()
    tokens = sum(dataset.length(index) for index in val)
    sides = whole.num_sides // max(whole.num_examples, 1)
    targets = weighted = longest = 0
    for index in val:
        item = dataset[index]
        # Positions begin anew with each side of an example.
        longest = max(longest, max(item["input_pos"]) + 1 if sides else dataset.length(index))
        # A row's first label has no token before it that could predict it.
        learnt = [label != CROSS_ENTROPY_IGNORE_IDX for label in item["labels"][1:]]
        targets += sum(learnt)
        weighted += sum(
            is_learnt and weight != 1 for is_learnt, weight in zip(learnt, item.get("weights", ())[1:])
        )
    held = DataReport(
        source=f"{whole.source}, set aside",
        format=whole.format,
        template=whole.template,
        max_seq_len=whole.max_seq_len,
        num_examples=len(val),
        num_sides=sides * len(val),
        num_tokens=tokens,
        num_target_tokens=targets,
        num_weighted_tokens=weighted,
        longest=longest,
    )
    remark = f"{len(val):,} of {len(train) + len(val):,} examples are set aside for validation (val_split)"
    kept = replace(
        whole,
        num_examples=len(train),
        num_sides=sides * len(train),
        num_tokens=whole.num_tokens - tokens,
        num_target_tokens=whole.num_target_tokens - targets,
        num_weighted_tokens=whole.num_weighted_tokens - weighted,
        remarks=[*whole.remarks, remark],
    )
    return Subset(dataset, train, kept), Subset(dataset, val, held)


def _packed_like(dataset: ReportingDataset, documents: Subset) -> ReportingDataset:
    return PackedDataset(documents, dataset.capacity) if isinstance(dataset, PackedDataset) else documents
