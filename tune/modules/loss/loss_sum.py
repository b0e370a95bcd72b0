"""One call for every kind of loss a recipe may be given."""

from __future__ import annotations

from torch import Tensor, nn

from tune.modules.decoder import TransformerDecoder
from tune.modules.loss.linear_cross_entropy import LossFromHidden


def loss_sum(
    loss_fn: nn.Module,
    model: TransformerDecoder,
    tokens: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    input_pos: Tensor | None = None,
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
    """
    hidden = model.hidden(tokens, mask=mask, input_pos=input_pos)  # [b, s, d]
    if isinstance(loss_fn, LossFromHidden):
        loss: Tensor = loss_fn(hidden, model.output_weight, labels, model.config.final_softcap)
    else:
        loss = loss_fn(model.unembed(hidden).flatten(0, 1).float(), labels.flatten())
    return loss
