"""The parameters of the preference recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from tune.config.component import Component
from tune.config.diagnostics import Diagnostic, problem
from tune.config.params import param
from tune.config.slots import CHECKPOINTER, PREFERENCE_LOSS
from tune.recipes.params.pairs import PairParams

_JUDGED_LOSS = "KTOLoss"


@dataclass(frozen=True)
class PreferenceFinetuneParams(PairParams):
    """Parameters of `preference_finetune`: every weight is trained, or adapters where `lora_rank` is set."""

    recipe_names: ClassVar[tuple[str, ...]] = (
        "preference_finetune",
        "dpo",
        "full_dpo_distributed",
        "lora_dpo_single_device",
        "lora_dpo_distributed",
    )

    loss: Component = param(
        "dpo",
        slot=PREFERENCE_LOSS,
        group="Optimization",
        fixed_on_resume=True,
        help="Loss over pairs of answers: dpo, ipo, hinge, robust, sigmoid_norm, simpo, orpo; over judged ones: kto.",
    )
    ref_checkpointer: Component | None = param(
        None,
        slot=CHECKPOINTER,
        group="Model",
        help="Reads the weights of the reference, where all weights are trained; null takes those that are trained.",
    )
    precompute_reference: bool = param(
        False,
        group="Optimization",
        fixed_on_resume=True,
        help="Compute the reference's log-probabilities once, before training, and keep them with the tokenized data.",
    )

    def checkpointer_of_reference(self) -> Component:
        """Return what reads the weights of the reference, where that is a copy."""
        return self.ref_checkpointer or self.checkpointer

    def requires_shards(self) -> bool:
        """Tell whether weights have to be sharded, where one could choose: those that are trained are."""
        return not self.trains_adapters() or super().requires_shards()

    def memory_settings(self) -> dict[str, Any]:
        """Return what decides how much memory the run needs, as `PlannedRun` takes it."""
        keeps_copy = not self.trains_adapters() and not self.precompute_reference
        return super().memory_settings() | {"keeps_copy": keeps_copy}

    def cross_checks(self) -> Iterator[Diagnostic]:
        """Yield what is wrong between fields that are each right on their own."""
        yield from super().cross_checks()
        if self.ref_checkpointer is not None and self.trains_adapters():
            yield problem(
                "has no effect beside adapters, whose reference is the model without them",
                ("ref_checkpointer",),
            )
        elif self.ref_checkpointer is not None and not self.ref_checkpointer.kwargs.get("checkpoint_dir"):
            yield problem(
                "is required: the folder with the reference's weights", ("ref_checkpointer.checkpoint_dir",)
            )
        name = self.loss.path.rpartition(".")[2]
        if name == _JUDGED_LOSS and self.batch_size < 2:
            yield problem(
                "is 1, but kto compares each answer with those of others in its batch: use at least 2",
                ("batch_size", "loss"),
            )
        if self.precompute_reference and name in (_JUDGED_LOSS, "ORPOLoss", "SimPOLoss"):
            why = (
                "has no reference" if name != _JUDGED_LOSS else "compares answers with prompts of their batch"
            )
            yield problem(f"has no effect: {name} {why}", ("precompute_reference", "loss"))
        if self.precompute_reference and self.checkpointer.kwargs.get("adapter_checkpoint"):
            yield problem(
                "is computed without adapters, and the reference has those of adapter_checkpoint; set it to false",
                ("precompute_reference", "checkpointer.adapter_checkpoint"),
            )

    def _check_dataset(self, where: str, is_judged: bool) -> Iterator[Diagnostic]:
        name = self.loss.path.rpartition(".")[2]
        if self.loss.path.startswith("tune.") and is_judged is not (name == _JUDGED_LOSS):
            field = where.partition(".")[0]
            kind, other = ("judged answers", "kto") if is_judged else ("pairs", "dpo, or another of pairs")
            fits = "preference" if is_judged else "unpaired"
            yield problem(
                f"is {name}, and {'the dataset' if field == 'dataset' else field} holds {kind}: use loss={other}, or "
                f"{where}={fits}",
                ("loss", where),
            )
