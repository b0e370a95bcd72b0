"""Matrices that multiply the same input, with adapters beside them, as one step of autograd.

Apart, each of q, k and v (or of gate and up) reads the input for a narrow product of its own, and gives a gradient of
full width that autograd adds to the others'. Together the narrow matrices are one, and each gradient is added where
the last one was written. To the compiler both passes are one operator each, which keeps no copy of a matrix in another
type or out of 4 bits between them.

Shapes: t tokens, i width in, o width out, r rank, R the ranks of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tune.modules.linear import Linear
from tune.modules.peft.frozen import FrozenLinear, compute_dtype
from tune.modules.peft.lora import LoRALinear
from tune.modules.peft.nf4 import NF4Weight, nf4_matmul
from tune.modules.peft.nf4_codes import dequantize_buffers
from tune.modules.products import linear, multiply, multiply_add

# Of each matrix: tensors it is kept in, o, i, double block size, whether there is a bias, r.
_FACTS = 6


def linear_together(x: Tensor, *modules: nn.Module) -> list[Tensor]:
    """Return [..., o] of each module for x [..., i], as if each were called."""
    if not _can_join(modules):
        return [module(x) for module in modules]
    facts: list[int] = []
    scalings: list[float] = []
    tensors: list[Tensor] = []
    adapters: list[Tensor] = []
    for module in modules:
        base = module.nf4 if isinstance(module, FrozenLinear) and module.weight is None else module.weight
        bias: Any = module.bias
        is_quantized = isinstance(base, NF4Weight)
        kept: tuple[Any, ...] = base.buffers_in_order() if is_quantized else (base,)  # type: ignore[union-attr, operator]
        sizes: Any = base.sizes if is_quantized else (*base.shape, 0)  # type: ignore[union-attr, misc]
        rank = module.rank if isinstance(module, LoRALinear) else 0
        facts += [len(kept), *sizes, int(bias is not None), rank]
        tensors += [*kept, *([] if bias is None else [bias])]
        if isinstance(module, LoRALinear):
            scalings.append(module.scaling)
            adapters += [module.lora_a.weight, module.lora_b.weight]
    dtype = compute_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        outs: tuple[Tensor, ...] = _Together.apply(  # type: ignore[no-untyped-call]
            x, dtype, facts, scalings, len(tensors), *tensors, *adapters
        )
    return list(outs)


def _can_join(modules: Sequence[nn.Module]) -> bool:
    """Whether these are frozen matrices, one of them at least with an adapter, and no more than that."""
    return any(type(module) is LoRALinear for module in modules) and all(map(_is_simple, modules))


def _is_simple(module: nn.Module) -> bool:
    # Of exactly these types: what FSDP gathers by itself is of another, and wants to be called.
    if type(module) is LoRALinear:
        has_dropout = module.dropout > 0.0 and module.training
        is_simple = not (has_dropout or module.use_dora or module.disabled)
        return is_simple and not (
            _is_watched(module.lora_a) or _is_watched(module.lora_b) or _is_watched(module)
        )
    if type(module) in (nn.Linear, Linear):
        is_frozen = not any(parameter.requires_grad for parameter in module.parameters())
        return is_frozen and not _is_watched(module)
    return type(module) is FrozenLinear and not _is_watched(module)


def _is_watched(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return any(hooks) or bool(module._backward_pre_hooks)


class _Together(torch.autograd.Function):
    """Gradients for x and the adapters; kept are x as it came and the narrow results, beside what there is anyway."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dtype: torch.dtype,
        facts: list[int],
        scalings: list[float],
        num_kept: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        kept, adapters = list(tensors[:num_kept]), list(tensors[num_kept:])
        *outs, inside = adapted_forward(x.to(dtype), kept, adapters, facts, scalings)
        ctx.save_for_backward(x, inside, *tensors)
        ctx.dtype, ctx.facts, ctx.scalings, ctx.num_kept = dtype, facts, scalings, num_kept
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        x, inside, *tensors = ctx.saved_tensors
        kept, adapters = tensors[: ctx.num_kept], tensors[ctx.num_kept :]
        needs_x = ctx.needs_input_grad[0]
        grad_x, *grads = adapted_backward(
            list(grad_outputs), x.to(ctx.dtype), inside, kept, adapters, ctx.facts, ctx.scalings, needs_x
        )
        of_x = grad_x.view(x.shape).to(x.dtype) if needs_x else None
        of_adapters = [grad.to(adapter.dtype) for grad, adapter in zip(grads, adapters, strict=True)]
        return of_x, *(None,) * (4 + ctx.num_kept), *of_adapters


@torch.library.custom_op("tune::adapted_forward", mutates_args=())
def adapted_forward(
    x: Tensor,
    kept: Sequence[Tensor],
    adapters: Sequence[Tensor],
    facts: Sequence[int],
    scalings: Sequence[float],
) -> list[Tensor]:
    """Return W x + scaling * B A x + bias of each matrix [..., o], and at last A x of all adapters [t, R].

    Args:
        x: [..., i].
        kept: of each matrix what it is kept in, and its bias if it has one.
        adapters: A [r, i] and B [o, r] of each matrix that has one.
        facts: numbers of each matrix, see `_FACTS`.
        scalings: of each adapter.
    """
    flat = x.reshape(-1, x.shape[-1])  # [t, i]
    inside = multiply(flat, torch.cat([a.to(x.dtype) for a in adapters[::2]]).t())  # [t, R]
    outs, place, start = [], 0, 0
    for parts, bias, sizes, rank in _parts(kept, facts):
        bias = None if bias is None else bias.to(x.dtype)
        if len(parts) == 1:
            out = linear(x, parts[0].to(x.dtype), bias)
        else:
            out = nf4_matmul(x, bias, *parts, *sizes, True)
        if rank:
            b = adapters[2 * place + 1].to(x.dtype)
            out.view(-1, out.shape[-1]).addmm_(inside[:, start : start + rank], b.t(), alpha=scalings[place])
            place, start = place + 1, start + rank
        outs.append(out)
    return [*outs, inside]


@adapted_forward.register_fake
def _forward_shapes(
    x: Tensor,
    kept: Sequence[Tensor],
    adapters: Sequence[Tensor],
    facts: Sequence[int],
    scalings: Sequence[float],
) -> list[Tensor]:
    widths = [facts[start + 1] for start in range(0, len(facts), _FACTS)]
    outs = [x.new_empty(*x.shape[:-1], width) for width in widths]
    return [*outs, x.new_empty(x.numel() // x.shape[-1], sum(facts[_FACTS - 1 :: _FACTS]))]


@torch.library.custom_op("tune::adapted_backward", mutates_args=())
def adapted_backward(
    grads: Sequence[Tensor],
    x: Tensor,
    inside: Tensor,
    kept: Sequence[Tensor],
    adapters: Sequence[Tensor],
    facts: Sequence[int],
    scalings: Sequence[float],
    needs_x: bool,
) -> list[Tensor]:
    """Return the gradients of x [t, i] (empty if it is not needed) and of each A and B.

    Args:
        grads: of each result [..., o].
        inside: A x of all adapters [t, R].
        x, kept, adapters, facts, scalings: as in `adapted_forward`.
        needs_x: the gradient of x is wanted.
    """
    flats = [grad.reshape(-1, grad.shape[-1]) for grad in grads]  # [t, o] each
    ranks = facts[_FACTS - 1 :: _FACTS]
    narrow: list[Tensor] = []
    of_b: list[Tensor] = []
    start = 0
    for flat, rank in zip(flats, ranks, strict=True):
        if rank:
            place = len(narrow)
            of_b.append(flat.t().mm(inside[:, start : start + rank]).mul_(scalings[place]))  # [o, r]
            narrow.append(multiply(flat, adapters[2 * place + 1].to(x.dtype)).mul_(scalings[place]))  # [t, r]
            start += rank
    of_inside = narrow[0] if len(narrow) == 1 else torch.cat(narrow, 1)  # [t, R]
    of_a = torch.split(
        of_inside.t().mm(x.reshape(-1, x.shape[-1])), [rank for rank in ranks if rank]
    )  # [r, i] each
    grad_x = x.new_empty(0)
    if needs_x:
        a = torch.cat([a.to(x.dtype) for a in adapters[::2]])  # [R, i]
        for place, (flat, matrix) in enumerate(zip(flats, _matrices(kept, facts, x.dtype), strict=True)):
            grad_x = multiply(flat, matrix) if place == 0 else multiply_add(grad_x, flat, matrix)
        grad_x.addmm_(of_inside, a)
    # An operator's results share no memory: of the one product, each A gets a copy of its rows.
    pairs = zip([a.clone() for a in of_a] if len(of_a) > 1 else of_a, of_b, strict=True)
    return [grad_x, *(grad for pair in pairs for grad in pair)]


@adapted_backward.register_fake
def _backward_shapes(
    grads: Sequence[Tensor],
    x: Tensor,
    inside: Tensor,
    kept: Sequence[Tensor],
    adapters: Sequence[Tensor],
    facts: Sequence[int],
    scalings: Sequence[float],
    needs_x: bool,
) -> list[Tensor]:
    grad_x = x.new_empty(x.numel() // x.shape[-1], x.shape[-1]) if needs_x else x.new_empty(0)
    return [grad_x, *(x.new_empty(adapter.shape) for adapter in adapters)]


def _parts(
    kept: Sequence[Tensor], facts: Sequence[int]
) -> Iterator[tuple[Sequence[Tensor], Tensor | None, tuple[int, int, int], int]]:
    """Yield of each matrix what it is kept in, its bias, sizes as `nf4_matmul` takes them, and its adapter's rank."""
    start = 0
    for first in range(0, len(facts), _FACTS):
        num_kept, o, i, double_block_size, has_bias, rank = facts[first : first + _FACTS]
        end = start + num_kept
        yield kept[start:end], kept[end] if has_bias else None, (o, i, double_block_size), rank
        start = end + has_bias


def _matrices(kept: Sequence[Tensor], facts: Sequence[int], dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield each matrix [o, i] in `dtype`; one is there at a time."""
    for parts, _, sizes, _ in _parts(kept, facts):
        if len(parts) == 1:
            yield parts[0].to(dtype)
        else:
            codes, scale_codes, range_bits, mean_bits = parts
            yield dequantize_buffers(codes, scale_codes, range_bits, mean_bits, *sizes, dtype)
