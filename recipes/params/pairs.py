"""Parameters of recipes that learn from preferences: pairs of answers of which one is better."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from tune.config.component import Component
from tune.config.diagnostics import Diagnostic, problem
from tune.config.params import param
from tune.config.slots import COLLATE_FN, STREAMING
from tune.recipes.params.data_checks import PREFERENCES, each_dataset
from tune.recipes.params.full_or_lora import FullOrLoraParams


@dataclass(frozen=True)
class PairParams(FullOrLoraParams):
    """What such a recipe can be told; each adds its loss."""

    known_scores: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "margin")

    collate_fn: Component = param(
        "tune.data.padded_collate_dpo",
        slot=COLLATE_FN,
        group="Data",
        fixed_on_resume=True,
        help="Function that turns a list of pairs into one padded batch.",
    )

    def memory_settings(self) -> dict[str, Any]:
        """Return what decides how much memory the run needs, as `PlannedRun` takes it: a pair has two rows."""
        is_packed = any(one.kwargs.get("packed") for _, one in each_dataset(dataset=self.dataset))
        return super().memory_settings() | {"batch_size": self.batch_size * (1 if is_packed else 2)}

    def cross_checks(self) -> Iterator[Diagnostic]:
        """Yield what is wrong between fields that are each right on their own."""
        yield from super().cross_checks()
        if self.collate_fn.path.endswith(".padded_collate_sft"):
            yield problem(
                "makes rows of answers that stand alone: pairs need tune.data.padded_collate_dpo",
                ("collate_fn",),
                suggestion="tune.data.padded_collate_dpo",
            )

    def _check_task(self) -> Iterator[Diagnostic]:
        for where, one in each_dataset(dataset=self.dataset, dataset_val=self.dataset_val):
            builder = one.path.rpartition(".")[2]
            if not one.path.startswith("tune.datasets."):
                continue
            if builder not in PREFERENCES:
                yield problem(
                    f"is {builder}, whose answers have no others to be compared with: use preference (pairs) or "
                    "unpaired (answers with a verdict)",
                    (where,),
                )
                continue
            if one.kwargs.get(STREAMING) is True:
                yield problem(
                    "must be false: preferences are read whole, once, and kept as tokens; split (train[:10000]) or "
                    "limit takes a part of them",
                    (f"{where}.{STREAMING}",),
                )
            is_judged = builder == "unpaired_dataset"
            yield from self._check_dataset(where, is_judged)
            if is_judged and one.kwargs.get("packed") is True:
                yield problem(
                    "must be false: a judged answer is compared with the prompts of other rows, so each has a row of "
                    "its own; a greater batch_size takes more of them at once",
                    (f"{where}.packed",),
                )

    def _check_dataset(self, where: str, is_judged: bool) -> Iterator[Diagnostic]:
        """Yield why a dataset of ours is of the wrong kind for the loss.

        Args:
            where: it stands.
            is_judged: it holds answers that are each judged good or bad; else pairs.
        """
        yield from ()
