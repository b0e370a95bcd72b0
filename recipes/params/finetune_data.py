"""What a fine-tuning recipe can be told about its data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tune.config.component import Component
from tune.config.diagnostics import Diagnostic, problem
from tune.config.params import param
from tune.config.slots import COLLATE_FN, DATASET
from tune.recipes.params.data_checks import (
    check_answers,
    check_collation,
    check_datasets,
    check_mixing,
    check_val_split,
)
from tune.recipes.params.limits import MANY, MANY_SEQUENCES


@dataclass(frozen=True)
class DataParams:
    """What the model learns from, and what it is validated on."""

    dataset: Component | tuple[Component, ...] = param(
        "",
        slot=DATASET,
        required=True,
        group="Data",
        help="Training data: a builder such as alpaca or instruct. A list of them is joined into one, or mixed where "
        "each has a weight.",
    )
    mix_until: Literal["first_exhausted", "all_exhausted"] = param(
        "first_exhausted",
        group="Data",
        help="When an epoch of datasets with weights ends: first_exhausted, so that no example comes twice; or "
        "all_exhausted, so that every example comes, and some again.",
    )
    train_on_input: bool | None = param(
        None,
        short_for="dataset.train_on_input",
        group="Data",
        help="Whether the prompt is trained on too, or only the response.",
    )
    dataset_val: Component | None = param(
        None,
        slot=DATASET,
        inherits="dataset",
        group="Data",
        help="Validation data; its loss is reported, never trained on. Without a _component_ it is read as dataset is: "
        "dataset_val.source alone will do.",
    )
    val_split: float | None = param(
        None,
        above=0,
        maximum=MANY,
        group="Data",
        help="Validate on a part of dataset that is set aside, drawn by seed: a share below 1, or a number of "
        "examples. Equal examples are never on both sides.",
    )
    dataset_num_proc: int | None = param(
        None,
        minimum=1,
        maximum=1024,
        group="Data",
        help="Processes that tokenize the data, where it takes more than a moment; null takes one per core.",
    )
    data_cache_dir: str | None = param(
        None,
        group="Data",
        help="Folder in which tokenized data is kept for the next run; null means $XDG_CACHE_HOME/tune/data (or "
        "~/.cache/tune/data), off keeps none. TUNE_DATA_CACHE_GB bounds its size.",
    )
    shuffle: bool = param(
        True, group="Data", fixed_on_resume=True, help="Take the examples in a new random order every epoch."
    )
    batch_size: int = param(
        2,
        minimum=1,
        maximum=MANY_SEQUENCES,
        group="Data",
        help="Sequences per device and micro-step.",
    )
    num_workers: int = param(
        0,
        minimum=0,
        maximum=256,
        group="Data",
        help="Processes that prepare batches ahead, for each process that trains; 0 prepares them in between.",
    )
    batch_size_val: int | None = param(
        None,
        minimum=1,
        maximum=MANY_SEQUENCES,
        group="Data",
        help="Sequences per device in validation; null means batch_size.",
    )
    collate_fn: Component = param(
        "tune.data.padded_collate_sft",
        slot=COLLATE_FN,
        group="Data",
        fixed_on_resume=True,
        help="Function that turns a list of examples into one padded batch.",
    )

    @property
    def validates(self) -> bool:
        """Whether there is something to validate on."""
        return self.dataset_val is not None or self.val_split is not None

    def data_settings(self) -> dict[str, Any]:
        """Return how data is tokenized, as `build_datasets` takes it."""
        return {"num_proc": self.dataset_num_proc, "data_cache_dir": self.data_cache_dir}

    def check_data(self) -> Iterator[Diagnostic]:
        """Yield what is wrong with the datasets, or between what is said of them."""
        yield from check_datasets(dataset=self.dataset, dataset_val=self.dataset_val)
        yield from check_mixing(self.dataset, self.mix_until)
        yield from self._check_task()
        yield from check_val_split(self.val_split, self.dataset_val)
        yield from check_collation(self.collate_fn)
        if self.batch_size_val and not self.validates:
            yield problem(
                "has no effect without dataset_val or val_split",
                ("batch_size_val", "dataset_val", "val_split"),
            )

    def _check_task(self) -> Iterator[Diagnostic]:
        """Yield which datasets hold something else than this recipe learns from."""
        yield from check_answers(dataset=self.dataset, dataset_val=self.dataset_val)
