"""What a fine-tuning recipe can be told about its steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tune.config.component import Component
from tune.config.diagnostics import Diagnostic, problem
from tune.config.params import param
from tune.config.slots import LOSS, LR_SCHEDULER, OPTIMIZER
from tune.recipes.params.checks import check_loss, check_lr_scheduler, check_optimizer
from tune.recipes.params.limits import MANY, MANY_SEQUENCES


@dataclass(frozen=True)
class OptimizationParams:
    """How the model learns."""

    epochs: int = param(
        1, minimum=1, maximum=MANY, group="Optimization", help="Passes over the training data."
    )
    max_steps: int | None = param(
        None,
        minimum=1,
        maximum=MANY,
        group="Optimization",
        help="End the run after this many optimizer steps, in as many passes over the data as that takes: epochs then "
        "counts for nothing. null takes epochs.",
    )
    max_steps_per_epoch: int | None = param(
        None,
        minimum=1,
        maximum=MANY,
        group="Optimization",
        fixed_on_resume=True,
        help="End each epoch after this many optimizer steps.",
    )
    gradient_accumulation_steps: int = param(
        1,
        minimum=1,
        maximum=MANY_SEQUENCES,
        group="Optimization",
        help="Micro-steps whose gradients make one optimizer step.",
    )
    optimizer: Component = param(
        "tune.modules.optim.AdamW",
        slot=OPTIMIZER,
        group="Optimization",
        fixed_on_resume=True,
        help="Optimizer class, such as AdamW (which also learns in bf16) or SGD.",
    )
    lr: float | None = param(
        None,
        short_for="optimizer.lr",
        minimum=0.0,
        maximum=1e3,
        group="Optimization",
        help="Learning rate at its peak. It has to be given, here or as an argument of the optimizer.",
    )
    embedding_lr: float | None = param(
        None,
        minimum=0.0,
        maximum=1e3,
        group="Optimization",
        fixed_on_resume=True,
        help="Learning rate of the embedding; null means that of all weights.",
    )
    decay_norms_and_biases: bool = param(
        True,
        group="Optimization",
        fixed_on_resume=True,
        help="Whether the optimizer's weight_decay is for norms and biases, too.",
    )
    freeze: list[str] | None = param(
        None,
        group="Optimization",
        fixed_on_resume=True,
        help="Weights that are not trained: names of modules or parts of them, ranges of layers, such as "
        '[tok_embeddings, "layers.0-7"].',
    )
    lr_scheduler: Component | None = param(
        None,
        slot=LR_SCHEDULER,
        group="Optimization",
        fixed_on_resume=True,
        help="Learning-rate schedule over optimizer steps, such as cosine; null keeps the rate constant.",
    )
    loss: Component = param(
        "tune.modules.loss.LinearCrossEntropyLoss",
        slot=LOSS,
        group="Optimization",
        fixed_on_resume=True,
        help="Loss over the target tokens.",
    )
    clip_grad_norm: float | None = param(
        None,
        minimum=1e-6,
        group="Optimization",
        fixed_on_resume=True,
        help="Scale the gradient down to this 2-norm when it is larger.",
    )
    optimizer_in_bwd: bool = param(
        False,
        group="Optimization",
        fixed_on_resume=True,
        help="Step each weight as soon as its gradient is there, which saves the memory of all gradients.",
    )
    on_non_finite: Literal["stop", "skip"] = param(
        "stop",
        group="Optimization",
        help="What to do before a step whose loss or gradient is NaN or infinite.",
    )
    deterministic: bool = param(
        False,
        group="Optimization",
        help="Take only ways that give the same result each time, which a GPU otherwise does not: slower there.",
    )
    seed: int | None = param(
        None,
        minimum=0,
        maximum=2**32 - 1,
        group="Optimization",
        help="Seed of everything random; null draws one and writes it down.",
    )

    def optimizer_settings(self) -> dict[str, Any]:
        """Return how the optimizer steps, and what it is told of some weights alone, as `build_optimizer` takes it."""
        return {
            "in_backward": self.optimizer_in_bwd,
            "decay_norms_and_biases": self.decay_norms_and_biases,
            "embedding_lr": self.embedding_lr,
        }

    def check_optimization(self) -> Iterator[Diagnostic]:
        """Yield what is wrong with optimizer, schedule and loss, or between what is said of a step."""
        if self.optimizer_in_bwd and self.gradient_accumulation_steps > 1:
            yield problem(
                f"steps within one backward pass, but {self.gradient_accumulation_steps} are accumulated; use 1",
                ("optimizer_in_bwd", "gradient_accumulation_steps"),
            )
        if self.optimizer_in_bwd and self.clip_grad_norm is not None:
            yield problem(
                "never holds all gradients at once, so their norm cannot be clipped; set clip_grad_norm to null",
                ("optimizer_in_bwd", "clip_grad_norm"),
            )
        if self.optimizer_in_bwd and self.on_non_finite == "skip":
            yield problem(
                "has stepped before all gradients are known, so no step can be skipped; use stop",
                ("optimizer_in_bwd", "on_non_finite"),
            )
        yield from check_optimizer(self.optimizer)
        yield from check_lr_scheduler(self.lr_scheduler)
        yield from check_loss(self.loss)
