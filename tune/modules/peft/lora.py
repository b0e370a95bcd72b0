"""A frozen matrix with a trained adapter of low rank beside it.

Shapes: t tokens, i width in, o width out, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune.errors import ConfigError
from tune.modules.cast_matmul import cast_matmul
from tune.modules.peft.frozen import FrozenLinear, compute_dtype
from tune.modules.peft.nf4 import NF4Weight, nf4_matmul
from tune.modules.products import linear, multiply
from tune.utils.sharding import init_sharded_, is_sharded, local_part


class LoRALinear(FrozenLinear):
    """W x + scaling * B A dropout(x), where W is frozen and A and B are trained.  # arXiv:2106.09685, 4.1

    With `use_dora` each row of W + scaling * B A is brought to a trained length, its magnitude; the length it had is
    a constant to the gradient.  # arXiv:2402.09353, eq. 5 and section 4.3

    B starts at zero and magnitudes at the lengths of W's rows, so that at first the result is the frozen matrix's, to
    the bit. The adapter may be of another dtype than W; products are of x's dtype, or autocast's.

    Args:
        in_dim: i.
        out_dim: o.
        rank: r.
        alpha: scaling is alpha / rank, or alpha / sqrt(rank) with `use_rslora`.  # arXiv:2312.03732, theorem 3.2
        dropout: probability that an input of the adapter is dropped, in training mode only.
        use_bias: the frozen matrix has a bias, frozen as well.
        quantize_base: W is kept in 4 bits (NF4) from `fill_weight` on; until then it is on the meta device.
        use_dora: train magnitudes.
        use_rslora: see `alpha`.

    Raises:
        ConfigError: a rank below 1, or a dropout that is no probability below one.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        use_bias: bool = False,
        quantize_base: bool = False,
        use_dora: bool = False,
        use_rslora: bool = False,
    ) -> None:
        if rank < 1 or not 0 <= dropout < 1:
            raise ConfigError(
                f"an adapter has a rank of at least 1 and a dropout of at least 0, below 1; these are {rank} and "
                f"{dropout}"
            )
        super().__init__(in_dim, out_dim, use_bias, quantize_base)
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.use_dora = use_dora
        self.use_rslora = use_rslora
        self.disabled = False  # True while the frozen matrix shall do alone, see `disable_adapter`
        self.scaling = alpha / (math.sqrt(rank) if use_rslora else rank)
        self.lora_a = nn.Linear(in_dim, rank, bias=False)
        self.lora_b = nn.Linear(rank, out_dim, bias=False)
        self.magnitude = nn.Parameter(torch.empty(out_dim)) if use_dora else None
        self.reset_adapter()

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., o] for x [..., i]."""
        if self.disabled:
            return super().forward(x)
        dtype = compute_dtype(x)
        dropout = self.dropout if self.training else 0.0
        with torch.autocast(x.device.type, enabled=False):
            if self.use_dora:
                return self._dora(x, dtype, dropout)
            return self._adapted(x, dtype, dropout)

    def merged_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the one matrix [o, i] that does what this module does without dropout; gradients reach the adapter.

        Args:
            dtype: what it is computed and returned in; None: the frozen matrix's.
        """
        base = self._base_matrix(dtype)
        if self.disabled:
            return base
        with torch.autocast(base.device.type, enabled=False):
            a, b = self.lora_a.weight.to(base.dtype), self.lora_b.weight.to(base.dtype)
            merged = torch.addmm(base, b, a, alpha=self.scaling)
            if not self.use_dora:
                return merged
            # Where the sum is exact enough its rows are measured, and not what their parts promise.
            is_wide = base.dtype == torch.promote_types(base.dtype, torch.float32)
            stretch = self._stretch(_lengths_of_rows(merged.detach()) if is_wide else None)
            return (merged * stretch[:, None]).to(base.dtype)

    def adapter_params(self) -> list[str]:
        """Return the names of the parameters that are trained."""
        return ["lora_a.weight", "lora_b.weight", *(["magnitude"] if self.use_dora else [])]

    @torch.no_grad()
    def fill_weight(self, tensor: Tensor) -> None:
        """As `FrozenLinear.fill_weight`; DoRA's magnitudes then begin anew, unless they have no memory yet."""
        super().fill_weight(tensor)
        if not self.lora_b.weight.is_meta:
            self.initialize_dora_magnitude()

    @torch.no_grad()
    def reset_adapter(self, dtype: torch.dtype | None = None) -> None:
        """Begin anew: A uniform as peft starts it, B zero, magnitudes the lengths of the frozen rows.

        Parameters on the meta device, or of another dtype than asked for, are replaced by ones with memory beside the
        frozen matrix. Nothing is done where that has no memory itself.

        Args:
            dtype: what the adapter becomes; None: what it is, or the frozen matrix's where it was on the meta device.
        """
        if self.base_device.type == "meta":
            return
        for owner, name in ((self.lora_a, "weight"), (self.lora_b, "weight"), (self, "magnitude")):
            old = getattr(owner, name)
            if old is not None:
                wanted = dtype or (self.base_dtype if old.is_meta else old.dtype)
                if old.is_meta or old.dtype != wanted:
                    fresh = torch.empty(old.shape, dtype=wanted, device=self.base_device)
                    setattr(owner, name, nn.Parameter(fresh, requires_grad=old.requires_grad))
        init_sharded_(
            self.lora_a.weight, partial(nn.init.kaiming_uniform_, a=math.sqrt(5))
        )  # uniform within 1 / sqrt(i)
        local_part(self.lora_b.weight).zero_()
        self.initialize_dora_magnitude()

    def extra_repr(self) -> str:
        """What torch prints between the brackets."""
        kind = f"{'rs' if self.use_rslora else ''}{'dora' if self.use_dora else 'lora'}"
        text = f"{super().extra_repr()}, {kind}, rank={self.rank}, alpha={self.alpha}"
        return text + (f", dropout={self.dropout}" if self.dropout else "")

    def _adapted(self, x: Tensor, dtype: torch.dtype, dropout: float) -> Tensor:
        """Return W x + scaling * B A dropout(x) + bias."""
        a, b = self.lora_a.weight.to(dtype), self.lora_b.weight.to(dtype)
        base = self._base
        tensors: tuple[Tensor, ...]
        if isinstance(base, NF4Weight):
            tensors, sizes = base.buffers_in_order(), base.sizes
        else:
            tensors, sizes = (base,), None
        out: Tensor = _AdaptedLinear.apply(  # type: ignore[no-untyped-call]
            x, a, b, self.bias, self.scaling, dropout, dtype, sizes, *tensors
        )
        return out

    def _dora(self, x: Tensor, dtype: torch.dtype, dropout: float) -> Tensor:
        # Less one, so that before anything is trained what is added below is zero, and not nearly zero.
        change = self._stretch() - 1.0  # [o]
        if dropout == 0.0:
            out = self._adapted(x, dtype, 0.0)
            return (out + change * (out if self.bias is None else out - self.bias)).to(dtype)
        # What the magnitudes change is dropped from as well, and the frozen result is not, as peft has it.
        x = x.to(dtype)
        dropped = F.dropout(x, dropout)
        a, b = self.lora_a.weight.to(dtype), self.lora_b.weight.to(dtype)
        added = F.linear(F.linear(dropped, a) * self.scaling, b)  # [..., o]
        turned = self._base_linear(dropped, None) + added
        return (self._base_linear(x, self.bias) + added + change * turned).to(dtype)

    def _stretch(self, lengths: Tensor | None = None) -> Tensor:
        """Return magnitude over length of each row of W + scaling * B A, [o]; the length is a constant."""
        assert self.magnitude is not None
        # Rounded as the magnitude was when it began, so that the two are the same then.
        lengths = (self._row_lengths() if lengths is None else lengths).to(self.magnitude.dtype)
        wide = torch.promote_types(self.magnitude.dtype, torch.float32)
        return self.magnitude.to(wide) / lengths.to(wide)

    @torch.no_grad()
    def _row_lengths(self) -> Tensor:
        """Return the length of each row of W + scaling * B A, at least fp32 [o], without forming that matrix.

        |w + s b A|^2 = |w|^2 + 2 s b (A w) + s^2 b (A A^T) b: besides W's rows, products of width r alone.
        """
        dtype = torch.promote_types(self.base_dtype, torch.float32)
        with torch.autocast(self.base_device.type, enabled=False):
            a, b = self.lora_a.weight, self.lora_b.weight.to(dtype) * self.scaling
            squares = torch.linalg.vector_norm(self._base_matrix(), dim=1, dtype=dtype).square()
            crossed = self._base_linear(a.to(self.base_dtype), None).to(dtype).t()  # W A^T, [o, r]
            gram = a.to(dtype) @ a.to(dtype).t()  # [r, r]
            squares = squares + (b * (2.0 * crossed + b @ gram)).sum(1)
            # A row of zeros, as for tokens that nobody uses, has no direction: it stays what it is.
            lengths: Tensor = squares.clamp(min=torch.finfo(torch.float32).tiny).sqrt()
        return lengths

    @torch.no_grad()
    def initialize_dora_magnitude(self) -> None:
        """Make the magnitudes the lengths of the rows as they are now; nothing without DoRA, or without memory."""
        if self.magnitude is None or self.base_device.type == "meta":
            return
        if is_sharded(self.magnitude):
            # B is zero here, and rows are cut as magnitudes are: each process has all it needs.
            rows = local_part(self._base_matrix())
            local_part(self.magnitude).copy_(_lengths_of_rows(rows))
        else:
            self.magnitude.copy_(self._row_lengths())


def _lengths_of_rows(matrix: Tensor) -> Tensor:
    """Return the length of each row, at least fp32 [o]; a row of zeros has next to none."""
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    squares = torch.linalg.vector_norm(matrix, dim=1, dtype=dtype).square()
    lengths: Tensor = squares.clamp(min=torch.finfo(torch.float32).tiny).sqrt()
    return lengths


class _AdaptedLinear(torch.autograd.Function):
    """W x + scaling * B A dropout(x) + bias with gradients for x, A and B.

    The plain form adds two results of full width in the forward pass and two gradients in the backward pass; here each
    small product is added where the large one was written. Of the dropout a byte per number is kept, and x once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        bias: Tensor | None,
        scaling: float,
        dropout: float,
        dtype: torch.dtype,
        sizes: tuple[int, int, int] | None,
        *base: Tensor,
    ) -> Tensor:
        """W is the one tensor of `base`, or in 4 bits: the buffers and sizes of an `NF4Weight`."""
        seen = x.to(dtype)
        out = _times_base(seen, None if bias is None else bias.to(dtype), sizes, base)  # [..., o]
        mask = None
        if dropout > 0.0:
            seen, mask = torch.native_dropout(seen, dropout, True)
        inside = multiply(seen.reshape(-1, seen.shape[-1]), a.t())  # [t, r]
        out.view(-1, out.shape[-1]).addmm_(inside, b.t(), alpha=scaling)
        # x as it came: its type may be wider, but q, k and v then keep one tensor together and not a copy each.
        ctx.save_for_backward(x, a, b, inside, mask, *base)
        ctx.scaling, ctx.dropout, ctx.dtype, ctx.sizes = scaling, dropout, dtype, sizes
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, inside, mask, *base = ctx.saved_tensors
        grad = grad_outputs[0].reshape(-1, b.shape[0])  # [t, o]
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[2]:
            grad_b = grad.t().mm(inside).mul_(ctx.scaling)  # [o, r]
        # What is dropped scales the rest up: a factor on the narrow gradient, and not once more on the wide ones.
        grad_inside = multiply(grad, b).mul_(ctx.scaling / (1.0 - ctx.dropout))  # [t, r]
        if ctx.needs_input_grad[1]:
            seen = x.to(ctx.dtype) if mask is None else x.to(ctx.dtype) * mask
            grad_a = grad_inside.t().mm(seen.reshape(-1, x.shape[-1]))  # [r, i]
        if ctx.needs_input_grad[0]:
            grad_x = _times_base(grad, None, ctx.sizes, base, transposed=False)  # [t, i]
            if mask is None:
                grad_x.addmm_(grad_inside, a)
            else:
                grad_x += grad_inside.mm(a).mul_(mask.view(grad_x.shape))
            grad_x = grad_x.view(x.shape).to(x.dtype)
        return grad_x, grad_a, grad_b, *(None,) * (5 + len(base))


def _times_base(
    x: Tensor,
    bias: Tensor | None,
    sizes: tuple[int, int, int] | None,
    base: Sequence[Tensor],
    transposed: bool = True,
) -> Tensor:
    """Return x W^T + bias [..., o], or x W [..., i]; W as `_AdaptedLinear` takes it."""
    if sizes is None:
        weight = base[0]
        if weight.dtype == x.dtype:
            return linear(x, weight if transposed else weight.t(), bias)
        out: Tensor = cast_matmul(x, weight, bias, transposed)
        return out
    out = nf4_matmul(x, bias, *base, *sizes, transposed)
    return out
