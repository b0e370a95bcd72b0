"""Two models' logits side by side, from hidden states: both output matrices are applied piece by piece.

Shapes: b batch, s sequence, t target tokens, r targets of one piece, d width (the two models' own), v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tune.modules.decoder import TransformerDecoder
from tune.modules.loss.linear_cross_entropy import add_product_


class Head(NamedTuple):
    """What a model's logits are made of: hidden states [b, s, d], the output matrix [v, d], the bound of a tanh."""

    hidden: Tensor
    weight: Tensor
    softcap: float | None = None

    @classmethod
    def of(cls, model: TransformerDecoder, hidden: Tensor) -> Self:
        """Return a model's head, on hidden states that it gave."""
        return cls(hidden, model.output_weight, model.config.final_softcap)


class PiecewiseSum(NamedTuple):
    """A sum over target rows of a function of two models' logits, of which no more than a piece stands.

    Args:
        per_token: gives each row's part of the sum [r], from logits [r, v] of both.
        rows: of the hidden states, those with a target. [t]
        factors: what each target's part is multiplied by [t]; None: 1.
        num_rows: that stand at once.
        dtypes: of the products, student's and teacher's.
        softcaps: bounds that a tanh keeps the logits within; None: they are as they are.
    """

    per_token: Callable[[Tensor, Tensor], Tensor]
    rows: Tensor
    factors: Tensor | None
    num_rows: int
    dtypes: tuple[torch.dtype, torch.dtype]
    softcaps: tuple[float | None, float | None]

    def run(self, hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor) -> Tensor:
        """Return the sum, an fp32 scalar, with gradients for hidden [b * s, d] and weight [v, d]."""
        tensors = hidden, weight, teacher_hidden, teacher_weight
        if self.dtypes[0] == torch.float16:
            return self._checkpointed(*tensors)
        total: Tensor = _TwoHeadSum.apply(*tensors, self)  # type: ignore[no-untyped-call]
        return total

    def parts(self) -> list[slice]:
        """Return which of the target rows stand at once."""
        starts = range(0, self.rows.shape[0], self.num_rows)
        return [slice(start, start + self.num_rows) for start in starts]

    def piece_sum(self, student: Tensor, teacher: Tensor, part: slice) -> Tensor:
        """Return the sum over a piece from logits [r, v] of both, before their caps."""
        student, teacher = (
            logits if cap is None else (logits.float() / cap).tanh() * cap
            for logits, cap in zip((student, teacher), self.softcaps, strict=True)
        )
        losses = self.per_token(student, teacher)  # [r]
        return losses.sum() if self.factors is None else losses @ self.factors[part]

    def _checkpointed(
        self, hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor
    ) -> Tensor:
        """Return the sum with gradients left to the backward pass, which makes the logits anew."""
        vocab_size = min(weight.shape[0], teacher_weight.shape[0])

        def run(student: Tensor, matrix: Tensor, part: slice) -> Tensor:
            logits, teacher = (
                F.linear(x.to(dtype), w[:vocab_size].to(dtype))
                for x, w, dtype in zip(
                    (student, teacher_hidden[self.rows[part]]),
                    (matrix, teacher_weight),
                    self.dtypes,
                    strict=True,
                )
            )
            return self.piece_sum(logits, teacher, part)

        # Tied to the graph, so that backward gives zeros and not an error where no position has a target.
        total = 0.0 * hidden[:0].float().sum() + 0.0 * weight[:0].float().sum()
        for part in self.parts():
            piece = hidden[self.rows[part]]
            total = total + checkpoint(
                run, piece, weight, part, use_reentrant=False, preserve_rng_state=False
            )
        return total


class _TwoHeadSum(torch.autograd.Function):
    """The sum and its gradients in one pass over pieces of the rows.

    What a piece's logits get is found by autograd within the piece; the products that bring it to hidden states and
    matrix are those of the cross-entropy.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        pieces: PiecewiseSum,
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        dtype, teacher_dtype = pieces.dtypes
        vocab_size = min(weight.shape[0], teacher_weight.shape[0])
        matrix, teacher_matrix = (
            weight[:vocab_size].to(dtype),
            teacher_weight[:vocab_size].to(teacher_dtype),
        )
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        # fp32, since a sum over many pieces would lose the small ones in bf16
        wide = torch.promote_types(dtype, torch.float32)
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needs_weight else None
        for index, part in enumerate(pieces.parts()):
            rows = pieces.rows[part]
            piece = hidden[rows].to(dtype)  # [r, d]
            logits = torch.mm(piece, matrix.t())  # [r, v]
            teacher_logits = torch.mm(teacher_hidden[rows].to(teacher_dtype), teacher_matrix.t())  # [r, v]
            if not (needs_hidden or needs_weight):
                total += pieces.piece_sum(logits, teacher_logits, part)
                continue
            with torch.enable_grad():
                leaf = logits.requires_grad_()
                loss = pieces.piece_sum(leaf, teacher_logits, part)
            (grad_logits,) = torch.autograd.grad(loss, leaf)  # [r, v]
            total += loss.detach()
            if grad_hidden is not None:
                grad_hidden[rows] = torch.mm(grad_logits, matrix).to(grad_hidden.dtype)
            if grad_weight is not None:
                add_product_(grad_weight[:vocab_size], grad_logits, piece, is_first=index == 0)
        ctx.gradients = (grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("a distillation loss can be differentiated once per forward pass")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [None if grad is None else grad.mul_(grad_outputs[0]) for grad in gradients]
        return scaled[0], scaled[1], None, None, None
