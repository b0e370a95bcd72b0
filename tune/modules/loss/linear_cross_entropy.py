"""Cross-entropy from hidden states: the output matrix is applied piece by piece, inside the loss.

Shapes: b batch, s sequence, t target tokens, d width, v vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tune.errors import ConfigError, TrainingError
from tune.modules.kernels import has_triton
from tune.modules.loss.target_rows import target_rows
from tune.modules.products import multiply

# Rows of logits in one piece, at least and at most. On a CPU a piece should stay in cache and a smaller one wastes the
# matrix product; an accelerator needs thousands of rows to be busy, and writes the gradient of the matrix for each.
_CPU_ROWS = (256, 256)
_ROWS_ELSEWHERE = (4096, 8192)
_CPU_VOCABULARY = 1024


class LossFromHidden(nn.Module, ABC):
    """A loss that reads hidden states and the output matrix instead of logits."""

    @abstractmethod
    def forward(
        self,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        softcap: float | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the fp32 sum over targets, from hidden [b, s, d], weight [v, d], labels [b, s].

        `softcap` is the bound that a tanh keeps the logits within, for models that have one. `weights` [b, s] is what
        the loss of each target is multiplied by; a loss that has no such argument is refused where data has weights.
        """


class LinearCrossEntropyLoss(LossFromHidden):
    """Sum of cross-entropies over target tokens, never holding more than one piece of the logits.

    Gradients are formed in the forward pass, while the piece's logits are at hand, so no matrix product is done
    twice. Only target tokens are looked at. The log-sum-exp is fp32 in every precision.

    Args:
        num_output_chunks: pieces that the target tokens are cut into, at least; more where a piece would grow
            beyond what the device likes (256 rows on a CPU, 8192 elsewhere), and fewer where pieces would be too small
            to be fast (256 rows, 4096).
        ignore_index: label of a position without a target.
    """

    def __init__(self, num_output_chunks: int = 8, ignore_index: int = -100) -> None:
        super().__init__()
        if num_output_chunks < 1:
            raise ConfigError(f"num_output_chunks is {num_output_chunks}; it must be at least 1")
        self.num_output_chunks = num_output_chunks
        self.ignore_index = ignore_index

    def forward(
        self,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        softcap: float | None = None,
        weights: Tensor | None = None,
        num_targets: int | None = None,
    ) -> Tensor:
        """Return the summed loss, an fp32 scalar; 0 with zero gradients where no position has a target.

        Args:
            hidden: [b, s, d], after the final norm.
            weight: output matrix [v, d].
            labels: [b, s], shifted: position i holds the token that should follow it.
            softcap: bound that a tanh keeps the logits within; None: they are as they are.
            weights: what the loss of each target is multiplied by, [b, s], shifted as the labels; None: 1.
            num_targets: see `target_rows`.

        Raises:
            TrainingError: shapes do not fit, or (on a CPU) a label lies outside the vocabulary.
        """
        if weights is not None and weights.shape != labels.shape:
            raise TrainingError(
                f"weights {list(weights.shape)} and labels {list(labels.shape)} do not fit: expected [b, s] both"
            )
        if hidden.shape[:-1] != labels.shape or hidden.shape[-1] != weight.shape[-1]:
            raise TrainingError(
                f"hidden states {list(hidden.shape)}, labels {list(labels.shape)} and output matrix "
                f"{list(weight.shape)} do not fit: expected [b, s, d], [b, s] and [v, d]"
            )
        flat = hidden.reshape(-1, hidden.shape[-1])  # [b * s, d]
        rows = target_rows(labels.reshape(-1), num_targets, self.ignore_index)  # [t]
        targets = labels.reshape(-1)[rows]  # [t]
        target_weights = None if weights is None else weights.reshape(-1)[rows].float()  # [t]
        self.check_targets(targets, weight.shape[0])
        dtype = compute_loss_dtype(flat, weight)
        num_rows = self.rows_per_piece(rows.shape[0], flat.device)
        asked = (rows, targets, target_weights, num_rows)
        with torch.autocast(flat.device.type, enabled=False):
            if dtype == torch.float16:
                return _checkpointed_sum(flat.to(dtype), weight.to(dtype), *asked, softcap)
            loss: Tensor = _LinearCrossEntropy.apply(flat, weight, *asked, dtype, softcap)  # type: ignore[no-untyped-call]
            return loss

    def rows_per_piece(self, num_targets: int, device: torch.device) -> int:
        """Return how many targets' logits may stand at once, of `num_targets`."""
        least, most = _CPU_ROWS if device.type == "cpu" else _ROWS_ELSEWHERE
        num_pieces = max(min(self.num_output_chunks, num_targets // least), -(-num_targets // most), 1)
        return max(1, -(-num_targets // num_pieces))

    def check_targets(self, targets: Tensor, vocab_size: int) -> None:
        """Raise TrainingError where a target [t] lies outside the vocabulary, as far as no device is waited for."""
        if targets.device.type != "cpu" or not targets.numel():
            return  # elsewhere the check would wait for the device, which refuses such an index itself
        lowest, highest = targets.aminmax()
        if lowest < 0 or highest >= vocab_size:
            wrong = int(lowest if lowest < 0 else highest)
            raise TrainingError(
                f"a label is {wrong}, and the model's vocabulary has {vocab_size} entries (positions without a "
                f"target hold {self.ignore_index}): do tokenizer and model belong together?"
            )

    def extra_repr(self) -> str:
        return f"num_output_chunks={self.num_output_chunks}, ignore_index={self.ignore_index}"


class CEWithChunkedOutputLoss(LinearCrossEntropyLoss):
    """`LinearCrossEntropyLoss` under the name torchtune's earlier configs use."""


def compute_loss_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return what logits are computed in: autocast's dtype where that is on, else the wider of the two."""
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return torch.promote_types(hidden.dtype, weight.dtype)


def _checkpointed_sum(
    hidden: Tensor,
    weight: Tensor,
    rows: Tensor,
    targets: Tensor,
    target_weights: Tensor | None,
    num_rows: int,
    softcap: float | None,
) -> Tensor:
    """Return the loss with gradients left to the backward pass, at the price of one more matrix product.

    In fp16 small gradients vanish unless they are multiplied by the loss scale before they are rounded, and the
    scale is only known in the backward pass.
    """
    total = hidden.new_zeros((), dtype=torch.float32)
    # Tied to the graph, so that backward gives zeros and not an error where no position has a target.
    total = total + 0.0 * hidden[:0].sum() + 0.0 * weight[:0].sum()
    for start in range(0, rows.shape[0], num_rows):
        piece = slice(start, start + num_rows)
        total = total + checkpoint(
            _plain_sum,
            hidden[rows[piece]],
            weight,
            targets[piece],
            None if target_weights is None else target_weights[piece],
            softcap,
            use_reentrant=False,
            preserve_rng_state=False,
        )
    return total


def _plain_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, target_weights: Tensor | None, softcap: float | None
) -> Tensor:
    logits = F.linear(hidden, weight).float()
    if softcap is not None:
        logits = (logits / softcap).tanh() * softcap
    if target_weights is not None:
        return F.cross_entropy(logits, targets, reduction="none") @ target_weights
    return F.cross_entropy(logits, targets, reduction="sum")


def has_kernel(logits: Tensor) -> bool:
    """Return whether a kernel makes losses and gradients of such logits."""
    return logits.is_cuda and logits.dtype in (torch.bfloat16, torch.float32) and has_triton()


def cross_entropy_(
    logits: Tensor,
    targets: Tensor,
    factors: Tensor | None,
    softcap: float | None,
    needs_grad: bool,
    room: Tensor | None,
) -> Tensor:
    """Return the losses [r] of logits [r, v]; where asked, the logits become the gradient of their sum.

    d loss / d logits = softmax(logits) - onehot(target). Where the logits are c = cap tanh(z / cap),
    d c / d z = 1 - (c / cap)^2 is multiplied in. `room` [r, v] is for wider numbers; None: the logits' own will do.
    """
    scores = logits if room is None else room.copy_(logits)
    slope = None
    if softcap is not None:
        scores.div_(softcap).tanh_()
        slope = 1.0 - scores.square()  # [r, v]
        scores.mul_(softcap)
    highest = scores.amax(1, keepdim=True)  # [r, 1]
    at_target = scores.gather(1, targets[:, None])  # [r, 1]
    # From here on `scores` is overwritten, step by step, to become the gradient.
    exp_sum = scores.sub_(highest).exp_().sum(1, keepdim=True)  # [r, 1]
    losses = exp_sum.log() + highest - at_target  # [r, 1]
    factor: Tensor | float = 1.0 if factors is None else factors[:, None]
    if needs_grad:
        scores.mul_(factor / exp_sum)
        scores.scatter_(1, targets[:, None], scores.gather(1, targets[:, None]) - factor)
        if slope is not None:
            scores.mul_(slope)
        if scores is not logits:
            logits.copy_(scores)
    return (losses * factor).squeeze(1)


# An operator, since torch's has no form for tensors without memory: a plan of the memory would run it in earnest.
@torch.library.custom_op("tune::add_wide_product_", mutates_args=("total",))
def _add_wide_product_(total: Tensor, left: Tensor, right: Tensor, beta: float) -> None:
    """Make the fp32 total beta total + left right, the half-precision factors' product never rounded; on a GPU."""
    torch.addmm(total, left, right, out_dtype=total.dtype, beta=beta, out=total)


@_add_wide_product_.register_fake
def _(total: Tensor, left: Tensor, right: Tensor, beta: float) -> None:
    return None


def add_product_(grad_weight: Tensor, grad_logits: Tensor, piece: Tensor, is_first: bool) -> None:
    """Add the product of grad_logits [r, v], transposed, and piece [r, d] to the sum; the first one fills it."""
    beta = 0.0 if is_first else 1.0
    if grad_logits.dtype == grad_weight.dtype:
        grad_weight.addmm_(grad_logits.t(), piece, beta=beta)
        return
    if grad_weight.is_cuda:  # the product stays fp32, and is added where it is formed
        _add_wide_product_(grad_weight, grad_logits.t(), piece, beta)
        return
    # A CPU widens a whole tensor before it adds it, into fresh pages; small parts stay in its cache.
    step = _CPU_VOCABULARY if grad_weight.device.type == "cpu" else grad_weight.shape[0]
    for start in range(0, grad_weight.shape[0], step):
        part = slice(start, start + step)
        product = torch.mm(grad_logits[:, part].t(), piece)
        if is_first:
            grad_weight[part] = product
        else:
            grad_weight[part] += product


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients of linear + softmax cross-entropy in one pass over pieces of the rows.

    Once d loss / d logits is known, both gradients follow by one matrix product each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        rows: Tensor,
        targets: Tensor,
        target_weights: Tensor | None,
        num_rows: int,
        dtype: torch.dtype,
        softcap: float | None,
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        needs_grad = needs_hidden or needs_weight
        matrix = weight.to(dtype)  # [v, d]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        num_targets, vocab_size = rows.shape[0], weight.shape[0]
        # fp32, since a sum over many pieces would lose the small ones in bf16; a single product is rounded once
        wide = torch.promote_types(dtype, torch.float32)
        summed = weight.dtype if num_targets <= num_rows and weight.dtype == dtype else wide
        make = torch.empty if num_targets else torch.zeros  # the first piece fills it
        grad_weight = make(weight.shape, dtype=summed, device=weight.device) if needs_weight else None
        # One buffer for the logits of every piece, and for a device without the kernel a wide one beside it.
        shape = (min(num_rows, num_targets), vocab_size)
        all_logits = torch.empty(shape, dtype=dtype, device=hidden.device)
        uses_kernel = has_kernel(all_logits)
        needs_room = dtype != wide and not uses_kernel
        room = torch.empty(shape, dtype=wide, device=hidden.device) if needs_room else None
        for start in range(0, num_targets, num_rows):
            part = slice(start, start + num_rows)
            piece = hidden[rows[part]].to(dtype)  # [r, d]
            num = piece.shape[0]
            logits = torch.mm(piece, matrix.t(), out=all_logits[:num])  # [r, v]
            factors = None if target_weights is None else target_weights[part]
            asked = (logits, targets[part], factors, softcap, needs_grad)
            if uses_kernel:
                from tune.modules.kernels import cross_entropy_triton

                losses = cross_entropy_triton.cross_entropy_(*asked)
            else:
                losses = cross_entropy_(*asked, None if room is None else room[:num])
            total += losses.sum()
            if grad_hidden is not None:
                grad_hidden[rows[part]] = multiply(logits, matrix).to(grad_hidden.dtype)
            if grad_weight is not None:
                add_product_(grad_weight, logits, piece, is_first=start == 0)
        ctx.gradients = (grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("LinearCrossEntropyLoss can be differentiated once per forward pass")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [None if grad is None else grad.mul_(grad_outputs[0]) for grad in gradients]
        return scaled[0], scaled[1], None, None, None, None, None, None
