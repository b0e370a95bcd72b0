"""Models and tokenizers by the short names configs use."""

from __future__ import annotations

from typing import Any

from tune.config.instantiate import instantiate_by_name
from tune.config.slots import MODEL, TOKENIZER
from tune.modules import TransformerDecoder
from tune.tokenizers import Tokenizer


def get_model(name: str, **arguments: Any) -> TransformerDecoder:
    """Return the model that a short name or dotted path builds, as `model:` in a config does.

    Args:
        name: such as "llama2_7b", "llama2" or "auto".
        **arguments: of the builder.

    Raises:
        ConfigError: no such model, or arguments it does not take.
    """
    model: TransformerDecoder = instantiate_by_name(name, MODEL, **arguments)
    return model


def get_tokenizer(name: str, **arguments: Any) -> Tokenizer:
    """Return the tokenizer that a short name or dotted path builds, as `tokenizer:` in a config does.

    Args:
        name: such as "llama2" or "auto".
        **arguments: of the builder.

    Raises:
        ConfigError: no such tokenizer, or arguments it does not take.
    """
    tokenizer: Tokenizer = instantiate_by_name(name, TOKENIZER, **arguments)
    return tokenizer
