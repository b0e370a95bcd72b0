"""The loss of each example by itself: the same whatever else is in its batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tune.data import CROSS_ENTROPY_IGNORE_IDX, padded_collate_sft, shift_labels, shift_weights
from tune.data.collate import GPU_MULTIPLE
from tune.modules import TransformerDecoder
from tune.modules.loss.log_probs import target_log_probs

__all__ = ["batches_by_length", "example_losses"]


def batches_by_length(items: Sequence[Mapping[str, Any]], batch_size: int) -> list[list[int]]:
    """Return the places of examples in batches, the longest first: what does not fit into memory does not at once."""
    order = sorted(range(len(items)), key=lambda place: -len(items[place]["tokens"]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@torch.no_grad()
def example_losses(
    model: TransformerDecoder, items: Sequence[Mapping[str, Any]], *, padding_idx: int
) -> list[tuple[float, int]]:
    """Return the loss of each example, summed over its targets, and their number.

    The loss is the cross-entropy that is trained: of the tokens with a label, in nats, times their weights.

    Args:
        model: in eval mode.
        items: of one batch: `tokens` and `labels`, as datasets give them, with `weights` and `input_pos` where there
            are some.
        padding_idx: the token that pads.
    """
    device = next(model.parameters()).device
    collated = padded_collate_sft(
        items,
        padding_idx,
        pad_to_multiple_of=GPU_MULTIPLE if device.type == "cuda" else 1,
        max_seq_len=model.config.max_seq_len,
    )
    batch = {name: tensor.to(device) for name, tensor in collated.items()}
    labels, weights = shift_labels(batch["labels"]), shift_weights(batch.get("weights"))  # [b, s]
    hidden = model.hidden(batch["tokens"], input_pos=batch.get("input_pos"))  # [b, s, d]
    losses = -target_log_probs(model, hidden, labels).double()  # [b, s]
    sums = (losses if weights is None else losses * weights).sum(-1).tolist()
    counts = (labels != CROSS_ENTROPY_IGNORE_IDX).sum(-1).tolist()
    return list(zip(sums, counts, strict=True))
