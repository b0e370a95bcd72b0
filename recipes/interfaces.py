"""What every fine-tuning recipe has in common: five steps, no shared code."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class FTRecipeInterface(Protocol):
    """The shape of a fine-tuning recipe. Satisfied by having the methods; nothing is inherited.

    A recipe is built from its params dataclass, then driven in this order: `setup()`, `train()`, `cleanup()`; it calls
    the other two itself.
    """

    def load_checkpoint(self) -> None:
        """Fill the model with the weights to start from: the checkpoint's, or a saved step's when resuming."""

    def setup(self) -> None:
        """Build everything `train` uses: model, tokenizer, data, loss, optimizer, schedule, loggers."""

    def train(self) -> None:
        """Run the loop to its end, or to the request to stop."""

    def save_checkpoint(self) -> None:
        """Write one complete step: weights other tools can load, and all that exact resuming needs."""

    def cleanup(self) -> None:
        """Close what `setup` opened; runs after success and after failure."""
