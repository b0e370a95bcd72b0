"""One call for every kind of loss a recipe may be given."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tune.errors import ConfigError
from tune.modules.decoder import TransformerDecoder
from tune.modules.loss.linear_cross_entropy import LossFromHidden


def loss_sum(
    loss_fn: nn.Module,
    model: TransformerDecoder,
    tokens: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    input_pos: Tensor | None = None,
    weights: Tensor | None = None,
    num_targets: int | None = None,
) -> Tensor:
    """Return the loss summed over the target tokens, an fp32 scalar.

    Args:
        loss_fn: a `LossFromHidden`, which reads hidden states and never holds all logits, or a module called with
            fp32 logits [b * s, v] and labels [b * s] that sums, as torch.nn.CrossEntropyLoss(reduction="sum").
        model: the decoder.
        tokens: [b, s].
        labels: what each position should say next [b, s]: shifted already; the loss's ignore_index marks no target.
        mask: as in `TransformerDecoder.forward`.
        input_pos: as in `TransformerDecoder.forward`.
        weights: what the loss of each target is multiplied by [b, s], shifted as the labels; None: 1. A loss other
            than those of this package and torch's gets them as an argument `weights`.
        num_targets: how many labels are not -100, where the host knows; a loss that would otherwise wait for the device
            to count them gets it as an argument `num_targets`.

    Raises:
        ConfigError: there are weights, and the loss takes none.
    """
    hidden = model.hidden(tokens, mask=mask, input_pos=input_pos)  # [b, s, d]
    return loss_from_hidden(loss_fn, model, hidden, labels, weights, num_targets)


def loss_from_hidden(
    loss_fn: nn.Module,
    model: TransformerDecoder,
    hidden: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    num_targets: int | None = None,
) -> Tensor:
    """Return what `loss_sum` does, from hidden states [b, s, d] that the model gave; for a second loss on the same.

    Raises:
        ConfigError: there are weights, and the loss takes none.
    """
    if weights is not None:
        require_weights(loss_fn)
    asked: dict[str, Any] = {} if weights is None else {"weights": weights}
    if isinstance(loss_fn, LossFromHidden):
        if _takes(loss_fn, "num_targets"):
            asked["num_targets"] = num_targets
        loss: Tensor = loss_fn(hidden, model.output_weight, labels, model.config.final_softcap, **asked)
        return loss
    logits, labels = model.unembed(hidden).flatten(0, 1).float(), labels.flatten()  # [b * s, v], [b * s]
    if weights is None:
        loss = loss_fn(logits, labels)
    elif isinstance(loss_fn, nn.CrossEntropyLoss) and _is_torch_s(loss_fn):
        loss = F.cross_entropy(
            logits,
            labels,
            loss_fn.weight,
            ignore_index=loss_fn.ignore_index,
            reduction="none",
            label_smoothing=loss_fn.label_smoothing,
        )  # [b * s]
        loss = loss @ weights.flatten()
    else:
        loss = loss_fn(logits, labels, weights=weights.flatten())
    return loss


def require_weights(loss_fn: nn.Module) -> None:
    """Check that a loss can multiply the loss of each target by a weight.

    Raises:
        ConfigError: it cannot.
    """
    if not _is_torch_s(loss_fn) and not _takes(loss_fn, "weights"):
        raise ConfigError(
            f"the data gives tokens weights other than 1, which the loss {type(loss_fn).__name__} cannot take: its "
            "forward has no argument `weights`. Give it one, use loss=LinearCrossEntropyLoss, or leave the weights "
            "out of the data"
        )


def _takes(loss_fn: nn.Module, name: str) -> bool:
    return name in inspect.signature(loss_fn.forward).parameters


def _is_torch_s(loss_fn: nn.Module) -> bool:
    return isinstance(loss_fn, nn.CrossEntropyLoss) and type(loss_fn).forward is nn.CrossEntropyLoss.forward
