"""The frozen matrices of a layer's experts, with a trained adapter of low rank beside each.

Shapes: n rows, sorted by expert; E experts, i width in, o width out, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tune.errors import ConfigError
from tune.modules.expert_bias import add_expert_bias
from tune.modules.experts import ExpertLinear
from tune.modules.grouped_linear import grouped_matmul, grouped_outer
from tune.modules.peft.frozen import FrozenLinear, compute_dtype
from tune.modules.peft.nf4 import NF4Weight
from tune.modules.peft.nf4_experts import NF4Experts, nf4_grouped_matmul
from tune.utils.sharding import init_sharded_, local_part


class FrozenExperts(FrozenLinear):
    """W_e x + bias_e for each row and its expert e, neither of which is trained.

    Args:
        num_experts: E.
        in_dim: i.
        out_dim: o.
        quantize_base: the matrices are kept in 4 bits (NF4) from `fill_weight` or `fill_expert` on; until then they
            are on the meta device.
    """

    def __init__(self, num_experts: int, in_dim: int, out_dim: int, quantize_base: bool = False) -> None:
        super().__init__(in_dim, out_dim, False, quantize_base)
        assert self.weight is not None
        self.num_experts = num_experts
        stack = self.weight.new_empty(num_experts, out_dim, in_dim)
        self.weight = nn.Parameter(stack, requires_grad=False)
        if not stack.is_meta:
            nn.init.uniform_(self.weight, -1 / math.sqrt(in_dim), 1 / math.sqrt(in_dim))

    def forward(self, x: Tensor, ends: Tensor | None = None) -> Tensor:
        """Return [n, o] for x [n, i]; `ends` as in `grouped_linear`."""
        assert ends is not None, "an expert's rows are told by where they end"
        dtype = compute_dtype(x)
        out: Tensor = _AdaptedExperts.apply(  # type: ignore[no-untyped-call]
            x, ends, None, None, 1.0, 0.0, dtype, *self._base_in_parts()
        )
        return add_expert_bias(out, ends, self.bias)

    def merged_expert(self, place: int, dtype: torch.dtype | None, stack: Tensor | None = None) -> Tensor:
        """Return the one matrix [o, i] that does what an expert's do here.

        Args:
            place: the expert's.
            dtype: what it is computed and returned in; None: what the frozen matrices are kept for.
            stack: the frozen matrices, where this module itself lacks them for the time being.
        """
        base = self._base if stack is None else stack
        matrix = base.dequantize_expert(place) if isinstance(base, NF4Experts) else base[place]  # type: ignore[index]
        return matrix.to(self.base_dtype if dtype is None else dtype)

    @torch.no_grad()
    def fill_weight(self, tensor: Tensor) -> None:
        """Take matrices [E, o, i] as the frozen ones, as they are or quantised.

        Raises:
            ConfigError: they are of another shape.
        """
        shape = (self.num_experts, self.out_dim, self.in_dim)
        if tensor.shape != shape:
            raise ConfigError(f"matrices {list(tensor.shape)} cannot stand where {list(shape)} are needed")
        if self.quantize_base:
            self.nf4, self.weight = self.empty_nf4(tensor.dtype, tensor.device).fill_(tensor), None
        else:
            self.weight = nn.Parameter(tensor.detach(), requires_grad=False)

    @torch.no_grad()
    def fill_expert(self, place: int, tensor: Tensor) -> None:
        """Quantise the matrix of one expert; all of them are filled so, one after the other, on one device."""
        if self.nf4 is None:
            self.nf4, self.weight = self.empty_nf4(tensor.dtype, tensor.device), None
        assert isinstance(self.nf4, NF4Experts)
        self.nf4.fill_expert_(place, tensor)

    def empty_nf4(self, dtype: torch.dtype, device: torch.device | str) -> NF4Experts:
        """Return room for the matrices in 4 bits, which dequantise to `dtype`."""
        return NF4Experts((self.num_experts, self.out_dim, self.in_dim), dtype=dtype, device=device)

    def extra_repr(self) -> str:
        """What torch prints between the brackets."""
        return f"{self.num_experts} x ({self.in_dim}, {self.out_dim}), bias={self.bias is not None}"

    def _base_in_parts(self) -> tuple[Any, ...]:
        """Return what `_AdaptedExperts` takes last."""
        base = self._base
        return (base.sizes, *base.buffers_in_order()) if isinstance(base, NF4Weight) else (None, base)


class LoRAExperts(FrozenExperts):
    """W_e x + bias_e + scaling * B_e A_e dropout(x), where A and B are trained.

    An expert without rows gets gradients of zero. peft adapts experts so, too (`target_parameters`).

    Args:
        num_experts: E.
        in_dim: i.
        out_dim: o.
        rank: r, of each expert's adapter.
        alpha: scaling is alpha / rank, or alpha / sqrt(rank) with `use_rslora`.
        dropout: probability that an input of the adapters is dropped, in training mode only.
        quantize_base: as in `FrozenExperts`.
        use_rslora: see `alpha`.

    Raises:
        ConfigError: a rank below 1, or a dropout that is no probability below one.
    """

    use_dora = False
    magnitude = None

    def __init__(
        self,
        num_experts: int,
        in_dim: int,
        out_dim: int,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        quantize_base: bool = False,
        use_rslora: bool = False,
    ) -> None:
        if rank < 1 or not 0 <= dropout < 1:
            raise ConfigError(
                f"an adapter has a rank of at least 1 and a dropout of at least 0, below 1; these are {rank} and "
                f"{dropout}"
            )
        super().__init__(num_experts, in_dim, out_dim, quantize_base)
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.use_rslora = use_rslora
        self.disabled = False  # True while the frozen matrices shall do alone, see `disable_adapter`
        self.scaling = alpha / (math.sqrt(rank) if use_rslora else rank)
        self.lora_a = ExpertLinear(num_experts, in_dim, rank)
        self.lora_b = ExpertLinear(num_experts, rank, out_dim)
        self.reset_adapter()

    def forward(self, x: Tensor, ends: Tensor | None = None) -> Tensor:
        """Return [n, o] for x [n, i]; `ends` as in `grouped_linear`."""
        if self.disabled:
            return super().forward(x, ends)
        assert ends is not None, "an expert's rows are told by where they end"
        dtype = compute_dtype(x)
        a, b = self.lora_a.weight.to(dtype), self.lora_b.weight.to(dtype)
        dropout = self.dropout if self.training else 0.0
        out: Tensor = _AdaptedExperts.apply(  # type: ignore[no-untyped-call]
            x, ends, a, b, self.scaling, dropout, dtype, *self._base_in_parts()
        )
        return add_expert_bias(out, ends, self.bias)

    def merged_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the matrices [E, o, i] that do what this module does without dropout; gradients reach the adapters."""
        return torch.stack([self.merged_expert(place, dtype) for place in range(self.num_experts)])

    def merged_expert(self, place: int, dtype: torch.dtype | None, stack: Tensor | None = None) -> Tensor:
        """As in `FrozenExperts`, with the adapter."""
        base = super().merged_expert(place, dtype, stack)
        if self.disabled:
            return base
        a, b = self.lora_a.weight[place].to(base.dtype), self.lora_b.weight[place].to(base.dtype)
        return torch.addmm(base, b, a, alpha=self.scaling)

    def adapter_params(self) -> list[str]:
        """Return the names of the parameters that are trained."""
        return ["lora_a.weight", "lora_b.weight"]

    @torch.no_grad()
    def reset_adapter(self, dtype: torch.dtype | None = None) -> None:
        """Begin anew, as `LoRALinear.reset_adapter`: A uniform, B zero."""
        if self.base_device.type == "meta":
            return
        for owner in (self.lora_a, self.lora_b):
            old = owner.weight
            wanted = dtype or (self.base_dtype if old.is_meta else old.dtype)
            if old.is_meta or old.dtype != wanted:
                fresh = torch.empty(old.shape, dtype=wanted, device=self.base_device)
                owner.weight = nn.Parameter(fresh, requires_grad=old.requires_grad)
        bound = 1 / math.sqrt(self.in_dim)
        init_sharded_(self.lora_a.weight, partial(nn.init.uniform_, a=-bound, b=bound))
        local_part(self.lora_b.weight).zero_()

    def extra_repr(self) -> str:
        """What torch prints between the brackets."""
        kind = "rslora" if self.use_rslora else "lora"
        text = f"{super().extra_repr()}, {kind}, rank={self.rank}, alpha={self.alpha}"
        return text + (f", dropout={self.dropout}" if self.dropout else "")


class _AdaptedExperts(torch.autograd.Function):
    """W_e x + scaling * B_e A_e dropout(x), or W_e x alone, with gradients for x, A and B; as `_AdaptedLinear`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        ends: Tensor,
        a: Tensor | None,
        b: Tensor | None,
        scaling: float,
        dropout: float,
        dtype: torch.dtype,
        sizes: tuple[int, int, int] | None,
        *base: Tensor,
    ) -> Tensor:
        """W are the one tensor of `base`, or in 4 bits: the buffers and sizes of `NF4Experts`."""
        seen = x.to(dtype)
        out = _times_base(seen, ends, sizes, base, True)  # [n, o]
        mask = inside = None
        if a is not None and b is not None:
            if dropout > 0.0:
                seen, mask = torch.native_dropout(seen, dropout, True)
            inside = grouped_matmul(seen, ends, a, True)  # [n, r]
            # Not in place: torch 2.11, compiled, then takes the operator's gradient for this function's, and it is 0.
            out = out.add(grouped_matmul(inside, ends, b, True), alpha=scaling)
        # x is kept for A's gradient alone, and by w1 and w3 once.
        ctx.save_for_backward(None if a is None else x, ends, a, b, inside, mask, *base)
        ctx.scaling, ctx.dropout, ctx.dtype, ctx.sizes, ctx.from_dtype = (
            scaling,
            dropout,
            dtype,
            sizes,
            x.dtype,
        )
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, ends, a, b, inside, mask, *base = ctx.saved_tensors
        grad = grad_outputs[0]  # [n, o]
        grad_x = grad_a = grad_b = grad_inside = None
        if a is not None:
            grad_inside = grouped_matmul(grad, ends, b, False).mul_(
                ctx.scaling / (1.0 - ctx.dropout)
            )  # [n, r]
            if ctx.needs_input_grad[3]:
                grad_b = grouped_outer(grad, inside, ends, b.dtype).mul_(ctx.scaling)  # [E, o, r]
            if ctx.needs_input_grad[2]:
                seen = x.to(ctx.dtype) if mask is None else x.to(ctx.dtype) * mask
                grad_a = grouped_outer(grad_inside, seen, ends, a.dtype)  # [E, r, i]
        if ctx.needs_input_grad[0]:
            grad_x = _times_base(grad, ends, ctx.sizes, base, False)  # [n, i]
            if grad_inside is not None:
                narrow = grouped_matmul(grad_inside, ends, a, False)
                grad_x.add_(narrow if mask is None else narrow.mul_(mask))
            grad_x = grad_x.to(ctx.from_dtype)
        return grad_x, None, grad_a, grad_b, *(None,) * (4 + len(base))


def _times_base(
    x: Tensor, ends: Tensor, sizes: tuple[int, int, int] | None, base: Sequence[Tensor], transposed: bool
) -> Tensor:
    """Return x W^T [n, o], or x W [n, i]; W as `_AdaptedExperts` takes them."""
    if sizes is None:
        out: Tensor = grouped_matmul(x, ends, base[0], transposed)
    else:
        out = nf4_grouped_matmul(x, ends, *base, *sizes, transposed)
    return out
