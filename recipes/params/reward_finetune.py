"""The parameters of the recipe that trains reward models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from tune.config.component import Component
from tune.config.diagnostics import Diagnostic, problem
from tune.config.params import fields_of, param
from tune.config.slots import REWARD_LOSS
from tune.recipes.params.limits import MANY
from tune.recipes.params.pairs import PairParams


@dataclass(frozen=True)
class RewardFinetuneParams(PairParams):
    """Parameters of `reward_finetune`: every weight is trained, or a head and adapters where `lora_rank` is set."""

    recipe_names: ClassVar[tuple[str, ...]] = ("reward_finetune", "reward")
    gives_scores: ClassVar[bool] = True  # in place of logits

    loss: Component = param(
        "bradley_terry",
        slot=REWARD_LOSS,
        group="Optimization",
        fixed_on_resume=True,
        help="Loss over the scores of two answers: bradley_terry, with the margins of the data where it has some.",
    )
    sample_prompts: list[str] | None = param(
        None,
        group="Logging",
        help="Texts to score as training goes on, each as it stands: prompt and answer, in the template of the data.",
    )
    sample_max_new_tokens: int = param(
        64, minimum=1, maximum=MANY, group="Logging", help="Without effect: a reward model writes nothing."
    )

    def notices(self, is_sharded: bool) -> Iterator[str]:
        """Yield what is to be said of settings that do nothing."""
        yield from super().notices(is_sharded)
        of_writing = {**self.eval_settings(), "sample_max_new_tokens": self.sample_max_new_tokens}
        infos = fields_of(type(self))
        for name, value in of_writing.items():
            field = name if name in infos else f"eval_{name}"
            if value != infos[field].default and field != "eval_metrics":
                yield f"{field} has no effect: a reward model writes nothing"

    def cross_checks(self) -> Iterator[Diagnostic]:
        """Yield what is wrong between fields that are each right on their own."""
        yield from super().cross_checks()
        if self.eval_every_n_steps:
            yield problem(
                "has no effect: a reward model writes no answers; a validation measures its accuracy",
                ("eval_every_n_steps",),
            )
        if self.apply_lora_to_output:
            yield problem(
                "has no effect: a reward model has a score in place of an output matrix",
                ("apply_lora_to_output",),
            )
        if self.checkpointer.path.endswith(".FullModelMetaCheckpointer"):
            yield problem(
                "also writes Meta's layout, which has no place for a score: use FullModelCheckpointer, which reads it, "
                "too",
                ("checkpointer",),
                suggestion="FullModelCheckpointer",
            )

    def _check_dataset(self, where: str, is_judged: bool) -> Iterator[Diagnostic]:
        if is_judged:
            yield problem(
                "is unpaired, and scores are learnt from pairs: use preference, which reads rows with two answers",
                (where,),
                suggestion="preference",
            )
