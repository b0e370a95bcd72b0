"""What every fine-tuning recipe has in common: five steps, no shared code."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class FTRecipeInterface(Protocol):
    """The shape of a fine-tuning recipe. Satisfied by having the methods; nothing is inherited.

    A recipe is built from its params dataclass, then driven in this order:
    `setup()`, `train()`, `cleanup()`; it calls the other two itself.
    """

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Find and open the weights to start from (and the saved step, when resuming)."""

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Build everything `train` uses: model, tokenizer, data, loss, optimizer, schedule, loggers."""

    def train(self, *args: Any, **kwargs: Any) -> None:
        """Run the loop to its end, or to the request to stop."""

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Write one complete step: weights other tools can load, and all that exact resuming needs."""

    def cleanup(self, *args: Any, **kwargs: Any) -> None:
        """Close what `setup` opened; runs after success and after failure."""
