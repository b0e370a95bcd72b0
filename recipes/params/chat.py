"""Every parameter of the chat recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tune.config.params import param
from tune.recipes.params.generate import AskParams


@dataclass(frozen=True)
class ChatParams(AskParams):
    """Parameters of `chat`: a conversation with a model."""

    recipe_names: ClassVar[tuple[str, ...]] = ("chat",)

    max_new_tokens: int = param(
        512, minimum=1, maximum=10**9, group="Sampling", help="Longest answer, in tokens."
    )
    temperature: float | None = param(
        None,
        minimum=0.0,
        maximum=1e3,
        group="Sampling",
        help="0 always takes the likeliest token; higher is more random; null takes what is saved with the model, "
        "and 0 where that is nothing.",
    )
