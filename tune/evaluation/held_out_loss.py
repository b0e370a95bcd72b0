"""The loss of each example by itself: the same whatever else is in its batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from tune.data import CROSS_ENTROPY_IGNORE_IDX, padded_collate_sft, shift_labels, shift_weights
from tune.data.collate import GPU_MULTIPLE
from tune.modules import TransformerDecoder
from tune.modules.loss.log_probs import target_log_probs

__all__ = ["example_losses"]


@torch.no_grad()
def example_losses(
    model: TransformerDecoder, items: Sequence[Mapping[str, Any]], *, batch_size: int, padding_idx: int
) -> Iterator[list[tuple[int, float, int]]]:
    """Yield, batch by batch, of each example its place in `items`, its loss summed over its targets, and their number.

    The loss is the cross-entropy that is trained: of the tokens with a label, in nats, times their weights. The longest
    examples come first: what does not fit into memory does not at once.

    Args:
        model: in eval mode.
        items: `tokens` and `labels`, as datasets give them, with `weights` and `input_pos` where there are some.
        batch_size: examples that go through the model together.
        padding_idx: the token that pads.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(items)), key=lambda place: -len(items[place]["tokens"]))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        collated = padded_collate_sft(
            [items[place] for place in places],
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
        yield list(zip(places, sums, counts, strict=True))
