"""Compiling blocks: one graph for all lengths, and a word where there would be too many."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tune.modules.kv_cache import LayerCache
from tune.modules.state_cache import ConvCache
from tune.utils import get_logger

__all__ = ["compile_blocks", "should_compile"]


def should_compile(choice: bool | Literal["auto"], device: torch.device) -> bool:
    """Return whether blocks are compiled, and say so where it was left open: on a GPU for which code can be made."""
    if choice != "auto":
        return choice
    if device.type != "cuda":
        return False
    from torch.utils._triton import has_triton

    # Triton builds a small library for each kernel with the system's own compiler.
    lacks = "triton" if not has_triton() else "" if _has_c_compiler() else "a C compiler"
    get_logger().info(f"compile: {f'off (auto: {lacks} is missing)' if lacks else 'on (auto: a GPU)'}")
    return not lacks


def _has_c_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang"))


def compile_blocks(blocks: Iterable[nn.Module], backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile each block in place: equal blocks share their graphs, and batches of all lengths do.

    There is a graph for training and one for validation; another of each where batches of a single row, or batches
    with and without a mask, come as well. With a cache (generation) blocks run as they are: each token would be
    compiled anew. Past torch's limit (`torch._dynamo.config.recompile_limit`) what fits no graph runs uncompiled, and a
    warning says so; with `torch._dynamo.config.fail_on_recompile_limit_hit` it is an error.

    Call it after `checkpoint_activations`, so that the recomputation is part of what is compiled.

    Args:
        blocks: their first argument is the residual stream.
        backend: of `torch.compile`.
    """
    blocks = list(blocks)
    num_kinds = len({_kind(block) for block in blocks})
    for block in blocks:
        # Not the call: the hooks around it, FSDP's among them, are no part of the graph.
        block.forward = _compiled(block.forward, backend, num_kinds)


def _kind(block: nn.Module) -> tuple[Any, ...]:
    """Return what tells blocks apart that have graphs of their own."""
    settings = (vars(part).items() for part in block.modules())
    plain = bool | int | float | str
    return tuple(tuple((name, value) for name, value in own if isinstance(value, plain)) for own in settings)


def _compiled(
    forward: Callable[..., Any], backend: str | Callable[..., Any], num_kinds: int
) -> Callable[..., Any]:
    compiled = torch.compile(forward, backend=backend)

    def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, LayerCache | ConvCache) for value in (*args, *kwargs.values())):
            return forward(x, *args, **kwargs)
        if torch.is_grad_enabled() and not x.requires_grad:
            # Where nothing before the first block is trained: it would be the one block with a graph of its own.
            x = x.detach().requires_grad_()
        _let_lengths_vary(x, args, kwargs)
        from torch._dynamo import config
        from torch._dynamo.exc import FailOnRecompileLimitHit

        try:
            is_error = config.fail_on_recompile_limit_hit
            # They share one code, and torch counts by that.
            limit = config.recompile_limit * num_kinds
            with config.patch(fail_on_recompile_limit_hit=True, recompile_limit=limit):
                return compiled(x, *args, **kwargs)
        except FailOnRecompileLimitHit:
            if is_error:
                raise
            get_logger().warning(
                f"compile: torch keeps {config.recompile_limit} graphs of a block, and batches came that need more; "
                "what fits none of them runs uncompiled from now on. TORCH_LOGS=recompiles says why."
            )
            torch.compiler.set_stance("eager_on_recompile")
            return forward(x, *args, **kwargs)

    return run


def _let_lengths_vary(*inputs: Any) -> None:
    """Mark batch and sequence as dynamic; `dynamic=True` would make numbers of heads so as well, within FSDP."""
    from torch._dynamo import maybe_mark_dynamic

    for tensor in tree_leaves(inputs):
        if isinstance(tensor, Tensor):
            # Channels come last; a mask has none.
            for dim in range(tensor.dim() - tensor.is_floating_point()):
                maybe_mark_dynamic(tensor, dim)
