"""Which weights are trained, and which of them by rules of their own: without decay, or at another rate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import Tensor, nn

from tune.config.suggestions import nearest
from tune.errors import ConfigError

__all__ = ["find_exceptions", "freeze"]

M = TypeVar("M", bound=nn.Module)

_RANGE = re.compile(r"(\d+)-(\d+)\Z")
# What these parts are called elsewhere.
_ELSEWHERE = {
    "embed_tokens": "tok_embeddings",
    "wte": "tok_embeddings",
    "lm_head": "output",
    "self_attn": "attn",
}


def freeze(model: M, patterns: Sequence[str] | None) -> M:
    """Leave weights out of training by their names; return the model.

    Args:
        model: before it is wrapped, so that its weights have the names that it was made with.
        patterns: names of modules or weights, or parts of such names between dots ("layers.0.attn", "mlp", "*norm"), or
            ranges of layers, both ends included ("layers.0-7"); None or none freezes nothing.

    Raises:
        ConfigError: a pattern is no name of this model, or of nothing that is trained; or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for pattern in patterns or ():
        wanted = pattern.split(".")
        if not any(_matches(name, wanted) for name in names):
            raise ConfigError(f"freeze: {pattern!r} is no part of this model{_hint(pattern, names)}")
        found = [weight for name, weight in trained.items() if _matches(name, wanted)]
        if not found:
            raise ConfigError(f"freeze: nothing of {pattern!r} is trained in any case; remove it")
        for weight in found:
            weight.requires_grad_(False)
    if patterns and not any(weight.requires_grad for weight in trained.values()):
        raise ConfigError(f"freeze: nothing is left to train beside {', '.join(patterns)}")
    return model


def _matches(name: str, wanted: Sequence[str]) -> bool:
    """Tell whether the parts of a pattern stand one after the other in a name."""
    parts = name.split(".")
    starts = range(len(parts) - len(wanted) + 1)
    return any(all(map(_is_meant, parts[start:], wanted)) for start in starts)


def _is_meant(part: str, wanted: str) -> bool:
    if found := _RANGE.match(wanted):
        return part.isdigit() and int(found[1]) <= int(part) <= int(found[2])
    return fnmatchcase(part, wanted)


def _hint(pattern: str, names: Sequence[str]) -> str:
    """Return what to say of names that there are: the nearest one, and all of them, each kind of layer once."""
    parts = dict.fromkeys(part for name in names for part in name.split(".")[:-1] if not part.isdigit())
    layers = {int(found[1]) for name in names if (found := re.match(r"layers\.(\d+)\.", name))}
    listed = [name for name in parts if name != "layers"]
    if layers:
        listed.insert(1, f"layers.0-{max(layers)}")
    word = re.sub(r"\.?[\d-]+", "", pattern).rpartition(".")[2]
    close = _ELSEWHERE.get(word) or nearest(word, parts)
    meant = f"; did you mean {close}?" if close and close != word else ""
    return f"{meant}. Its parts: {', '.join(listed)}"


def find_exceptions(
    model: nn.Module,
    lr: float | None,
    *,
    decay_norms_and_biases: bool = True,
    embedding_lr: float | None = None,
    loraplus_lr_ratio: float | None = None,
) -> dict[int, dict[str, Any]]:
    """Return what an optimizer is told of weights besides its own arguments, by the `id` of each such weight.

    Args:
        model: its weights that are trained count; wrapped or not.
        lr: of all others.
        decay_norms_and_biases: whether weights of fewer than two dimensions are drawn towards zero, too.
        embedding_lr: of the embedding; where the output matrix is the same one, it is that, too.
        loraplus_lr_ratio: how much faster the second matrices of adapters learn than the first.
            # arXiv:2402.12354, 4

    Raises:
        ConfigError: there is nothing that a setting could be about, or no rate that the ratio is of.
    """
    exceptions: dict[int, dict[str, Any]] = {}
    weights = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]

    def let(setting: str, found: Sequence[Tensor], **options: float) -> None:
        if not found:
            raise ConfigError(f"{setting} has no effect: none of the weights it is about are trained")
        for weight in found:
            exceptions.setdefault(id(weight), {}).update(options)

    if not decay_norms_and_biases:
        small = [weight for name, weight in weights if weight.ndim < 2 or name.endswith("bias")]
        let("decay_norms_and_biases", small, weight_decay=0.0)
    if embedding_lr is not None:
        embeddings = [weight for name, weight in weights if "tok_embeddings" in name.split(".")]
        let("embedding_lr", embeddings, lr=embedding_lr)
    if loraplus_lr_ratio is not None:
        if lr is None:
            raise ConfigError("loraplus_lr_ratio is a ratio to the learning rate: set lr, too")
        second = [weight for name, weight in weights if "lora_b" in name.split(".")]
        let("loraplus_lr_ratio", second, lr=lr * loraplus_lr_ratio)
    return exceptions
