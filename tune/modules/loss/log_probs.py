"""Log-probabilities of target tokens from hidden states: the output matrix is applied piece by piece.

Shapes: b rows, s sequence, t target tokens, r targets of a piece, d width, v vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tune.modules.decoder import TransformerDecoder
from tune.modules.loss.linear_cross_entropy import (
    LinearCrossEntropyLoss,
    add_product_,
    compute_loss_dtype,
    cross_entropy_,
    has_kernel,
)
from tune.modules.loss.target_rows import target_rows

# Says how many targets' logits may stand at once, for this and for the cross-entropy alike.
_PIECES = LinearCrossEntropyLoss()


def target_log_probs(
    model: TransformerDecoder, hidden: Tensor, labels: Tensor, num_targets: int | None = None
) -> Tensor:
    """Return log p of each target, fp32 [b, s]; 0 where there is none. Logits never stand whole.

    Args:
        model: has the output matrix.
        hidden: as its `hidden` gives them. [b, s, d]
        labels: shifted: position i holds the token that should follow it, -100 for none. [b, s]
        num_targets: see `target_rows`.

    Raises:
        TrainingError: a label lies outside the vocabulary (on a CPU).
    """
    weight, softcap = model.output_weight, model.config.final_softcap
    flat, wanted = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)  # [b * s, d], [b * s]
    rows = target_rows(wanted, num_targets)  # [t]
    targets = wanted[rows]  # [t]
    _PIECES.check_targets(targets, weight.shape[0])
    num_rows = _PIECES.rows_per_piece(rows.shape[0], flat.device)
    dtype = compute_loss_dtype(flat, weight)
    with torch.autocast(flat.device.type, enabled=False):
        found = _TargetLogProbs.apply(flat, weight, rows, targets, num_rows, dtype, softcap)  # type: ignore[no-untyped-call]
    return torch.zeros(wanted.shape, device=flat.device).index_copy(0, rows, found).view(labels.shape)


class _TargetLogProbs(torch.autograd.Function):
    """log softmax(x W^T)[target] for each target row x, [t] fp32.

    What each token's gradient is multiplied by, a preference loss knows only once all log-probabilities are there. To
    the hidden states it comes as a factor of each row: where the matrix is frozen, the rows' gradients are formed while
    the logits are at hand, and scaled later. The matrix's own gradient adds up rows that have their factors already, so
    where that is trained (or where fp16 would lose small unscaled gradients) the logits are made anew, piece by piece.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        rows: Tensor,
        targets: Tensor,
        num_rows: int,
        dtype: torch.dtype,
        softcap: float | None,
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        ctx.forms_now = needs_hidden and not needs_weight and dtype != torch.float16
        pieces = _Pieces(weight, min(num_rows, rows.shape[0]), dtype, softcap)
        found = torch.empty(rows.shape, dtype=torch.float32, device=hidden.device)  # [t]
        formed = hidden.new_empty(rows.shape[0], hidden.shape[1]) if ctx.forms_now else None  # [t, d]
        for start in range(0, rows.shape[0], num_rows):
            part = slice(start, start + num_rows)
            losses, gradient = pieces.run(hidden[rows[part]], targets[part], None, ctx.forms_now)
            found[part] = -losses
            if formed is not None:
                formed[part] = torch.mm(gradient, pieces.matrix).to(formed.dtype)
        ctx.save_for_backward(hidden if needs_hidden or needs_weight else None, weight, rows, targets, formed)
        ctx.num_rows, ctx.dtype, ctx.softcap = num_rows, dtype, softcap
        return found

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, rows, targets, formed = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        factors = -grad_outputs[0].float()  # [t], of the cross-entropy, whose gradient is known
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        if formed is not None and grad_hidden is not None:
            grad_hidden[rows] = (formed * factors[:, None]).to(grad_hidden.dtype)
            return grad_hidden, *(None,) * 6
        wide = torch.promote_types(ctx.dtype, torch.float32)
        make = torch.empty if rows.shape[0] else torch.zeros  # the first piece fills it
        grad_weight = make(weight.shape, dtype=wide, device=weight.device) if needs_weight else None
        pieces = _Pieces(weight, min(ctx.num_rows, rows.shape[0]), ctx.dtype, ctx.softcap)
        for start in range(0, rows.shape[0], ctx.num_rows):
            part = slice(start, start + ctx.num_rows)
            piece = hidden[rows[part]]
            _, gradient = pieces.run(piece, targets[part], factors[part], needs_grad=True)
            if grad_hidden is not None:
                grad_hidden[rows[part]] = torch.mm(gradient, pieces.matrix).to(grad_hidden.dtype)
            if grad_weight is not None:
                add_product_(grad_weight, gradient, piece.to(ctx.dtype), is_first=start == 0)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), *(None,) * 5


class _Pieces:
    """The output matrix in the dtype of products, and one buffer for the logits of every piece."""

    def __init__(self, weight: Tensor, num_rows: int, dtype: torch.dtype, softcap: float | None) -> None:
        self.matrix = weight.to(dtype)  # [v, d]
        shape = (num_rows, weight.shape[0])
        self._logits = torch.empty(shape, dtype=dtype, device=weight.device)
        wide = torch.promote_types(dtype, torch.float32)
        self._has_kernel = has_kernel(self._logits)
        needs_room = dtype != wide and not self._has_kernel
        self._room = torch.empty(shape, dtype=wide, device=weight.device) if needs_room else None
        self._softcap = softcap

    def run(
        self, hidden: Tensor, targets: Tensor, factors: Tensor | None, needs_grad: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-entropies [r], times their factors; and the gradient of their sum by the logits [r, v]."""
        num = hidden.shape[0]
        logits = torch.mm(hidden.to(self.matrix.dtype), self.matrix.t(), out=self._logits[:num])  # [r, v]
        if self._has_kernel:
            from tune.modules.kernels import cross_entropy_triton

            losses = cross_entropy_triton.cross_entropy_(logits, targets, factors, self._softcap, needs_grad)
            return losses, logits
        room = None if self._room is None else self._room[:num]
        return cross_entropy_(logits, targets, factors, self._softcap, needs_grad, room), logits
