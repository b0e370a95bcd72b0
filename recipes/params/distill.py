"""The parameters of the distillation recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tune.config.component import Component
from tune.config.diagnostics import Diagnostic, problem
from tune.config.params import fields_of, param
from tune.config.slots import CHECKPOINTER, KD_LOSS, MODEL, TOKENIZER
from tune.recipes.params.checks import check_checkpointer, check_sizes, default_of
from tune.recipes.params.data_checks import each_dataset
from tune.recipes.params.full_or_lora import FullOrLoraParams
from tune.recipes.params.limits import MANY


@dataclass(frozen=True)
class DistillParams(FullOrLoraParams):
    """Parameters of `distill`: a student learns what a teacher would say next, all of it or through adapters."""

    known_scores: ClassVar[tuple[str, ...]] = ("loss", "kd_loss", "ce_loss")
    recipe_names: ClassVar[tuple[str, ...]] = (
        "distill",
        "knowledge_distillation_single_device",
        "knowledge_distillation_distributed",
    )

    # --- Teacher: who is learnt from --------------------------------------------------------------------
    teacher_model: Component = param(
        "auto",
        slot=MODEL,
        group="Teacher",
        fixed_on_resume=True,
        help="Architecture of the teacher: a builder such as llama3_1_8b, or auto to build what its checkpoint "
        "describes. Any family will do that has the student's vocabulary.",
    )
    teacher_checkpoint: str | None = param(
        None,
        short_for="teacher_checkpointer.checkpoint_dir",
        group="Teacher",
        help="Folder with the teacher's weights (Hugging Face or Meta layout, or a saved step of a run).",
    )
    teacher_checkpointer: Component = param(
        "tune.training.FullModelCheckpointer",
        slot=CHECKPOINTER,
        group="Teacher",
        help="Reads the teacher's weights.",
    )
    teacher_tokenizer: Component = param(
        "auto",
        slot=TOKENIZER,
        group="Teacher",
        help="The teacher's tokenizer, compared with the student's token by token; auto reads the one beside its "
        "weights.",
    )
    quantize_teacher: bool = param(
        False,
        group="Teacher",
        fixed_on_resume=True,
        help="Keep the matrices of the teacher's blocks in 4 bits (NF4).",
    )

    # --- Objective --------------------------------------------------------------------------------------
    kd_loss: Component | None = param(
        None,
        slot=KD_LOSS,
        group="Objective",
        fixed_on_resume=True,
        help="How far the student is from the teacher: forward_kl, reverse_kl, symmetric_kl or jensen_shannon, each "
        "with a temperature. null takes forward_kl, and reverse_kl with on_policy.",
    )
    kd_ratio: float | None = param(
        None,
        above=0.0,
        maximum=1.0,
        group="Objective",
        fixed_on_resume=True,
        help="Share of kd_loss in what is learnt; the rest is loss, on the answers of the data. null takes 0.5, and 1 "
        "with on_policy.",
    )
    on_policy: bool = param(
        False,
        group="Objective",
        fixed_on_resume=True,
        help="Learn from answers that the student writes itself, to the prompts of the data, as the teacher sees them.",
    )
    on_policy_share: float = param(
        1.0,
        above=0.0,
        maximum=1.0,
        group="Objective",
        fixed_on_resume=True,
        help="With on_policy, the share of steps whose answers the student writes; the others learn from the data's.",
    )
    max_new_tokens: int = param(
        128,
        minimum=1,
        maximum=MANY,
        group="Objective",
        fixed_on_resume=True,
        help="Longest answer that the student writes, in tokens.",
    )
    sampling_temperature: float = param(
        1.0,
        minimum=0.0,
        maximum=1e3,
        group="Objective",
        fixed_on_resume=True,
        help="Of the student's writing: 1 samples from its own distribution, 0 takes the likeliest token.",
    )

    def kd_component(self) -> Component:
        """Return the divergence that is learnt."""
        if self.kd_loss is not None:
            return self.kd_loss
        return Component(f"tune.modules.loss.{'Reverse' if self.on_policy else 'Forward'}KLLoss", {})

    def kd_share(self) -> float:
        """Return the divergence's share in what is learnt."""
        return self.kd_ratio if self.kd_ratio is not None else 1.0 if self.on_policy else 0.5

    def teacher_settings(self) -> dict[str, Any]:
        """Return what the teacher is, as `Teacher` takes it."""
        return {
            "component": self.teacher_model,
            "checkpointer": self.teacher_checkpointer,
            "tokenizer": self.teacher_tokenizer,
            "quantize": self.quantize_teacher,
        }

    def writing_settings(self) -> dict[str, Any]:
        """Return how the student writes, as `AnsweredBatches` takes it."""
        return {
            "share": self.on_policy_share,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.sampling_temperature,
        }

    def memory_settings(self) -> dict[str, Any]:
        """Return what decides how much memory the run needs, as `PlannedRun` takes it."""
        return super().memory_settings() | {"num_written": self.max_new_tokens if self.on_policy else 0}

    def notices(self, is_sharded: bool) -> Iterator[str]:
        """Yield what is to be said of settings that do nothing."""
        yield from super().notices(is_sharded)
        builder = self.teacher_model.path.rpartition(".")[2]
        if builder.startswith(("lora_", "qlora_")):
            yield (
                f"teacher_model: the adapters of {builder} are left out, since a teacher learns nothing and its "
                f"checkpoint has none: it is {builder.split('lora_', 1)[1]}"
            )

    def cross_checks(self) -> Iterator[Diagnostic]:
        """Yield what is wrong between fields that are each right on their own."""
        yield from super().cross_checks()
        yield from self._check_teacher()
        if self.kd_loss is not None and self.kd_loss.kwargs.get("ignore_index", -100) != -100:
            yield problem(
                "must be -100: that is the label of positions without a target; remove it",
                ("kd_loss.ignore_index",),
                suggestion="-100",
            )
        if self.on_policy:
            yield from self._check_on_policy()
            return
        for name in ("on_policy_share", "max_new_tokens", "sampling_temperature"):
            if getattr(self, name) != fields_of(type(self))[name].default:
                yield problem("has no effect without on_policy", (name, "on_policy"))

    def _check_teacher(self) -> Iterator[Diagnostic]:
        if not self.teacher_checkpointer.kwargs.get("checkpoint_dir"):
            yield problem(
                "is required: the folder with the teacher's weights",
                ("teacher_checkpoint", "teacher_checkpointer.checkpoint_dir"),
            )
        for item in (*check_checkpointer(self.teacher_checkpointer), *check_sizes(self.teacher_model)):
            yield _of_teacher(item)
        if self.teacher_checkpointer.kwargs.get("adapter_checkpoint"):
            yield problem(
                "names an adapter; merge it into the teacher's weights first (tune merge)",
                ("teacher_checkpointer.adapter_checkpoint",),
            )
        if self.quantize_teacher and self.dtype == "fp16":
            yield problem("is dequantised to bf16 or fp32; use bf16", ("quantize_teacher", "dtype"))

    def _check_on_policy(self) -> Iterator[Diagnostic]:
        if self.kd_ratio not in (None, 1.0):
            yield problem(
                f"is {self.kd_ratio:g}, and the rest would teach the student to say what it says already; set it to 1, "
                "or remove it",
                ("kd_ratio", "on_policy"),
                suggestion="1",
            )
        for where, one in each_dataset(dataset=self.dataset, dataset_val=self.dataset_val):
            if one.kwargs.get("train_on_input", default_of(one.path, "train_on_input")):
                yield problem(
                    "leaves nothing to be the prompt that the student would answer; set it to false",
                    (f"{where}.train_on_input", "on_policy"),
                )


def _of_teacher(item: Diagnostic) -> Diagnostic:
    """Return a problem with a field of the student's as one with the teacher's."""
    fields = tuple(f"teacher_{name}" for name in item.fields)
    return replace(item, path=f"teacher_{item.path}", message=f"teacher_{item.message}", fields=fields)
