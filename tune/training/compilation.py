"""Compiling blocks: one graph for all lengths, and a word where there would be too many."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tune.modules.kv_cache import LayerCache
from tune.utils import get_logger

__all__ = ["compile_blocks"]


def compile_blocks(blocks: Iterable[nn.Module], backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile each block in place: equal blocks share their graphs, and batches of all lengths do.

    There is a graph for training and one for validation; another of each where batches of a single row, or batches
    with and without a mask, come as well. With a cache (generation) blocks run as they are: each token would be
    compiled anew. Past torch's limit (`torch._dynamo.config.recompile_limit`) what fits no graph runs uncompiled, and a
    warning says so; with `torch._dynamo.config.fail_on_recompile_limit_hit` it is an error.

    Call it after `checkpoint_activations`, so that the recomputation is part of what is compiled. Where experts
    run one by one (`MixtureOfExperts`), they stay as they are, and a recomputed block that has them.

    Args:
        blocks: their first argument is the residual stream.
        backend: of `torch.compile`.
    """
    for block in blocks:
        # Not the call: the hooks around it, FSDP's among them, are no part of the graph.
        block.forward = _compiled(block.forward, backend)


def _compiled(forward: Callable[..., Any], backend: str | Callable[..., Any]) -> Callable[..., Any]:
    compiled = torch.compile(forward, dynamic=True, backend=backend)

    def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, LayerCache) for value in (*args, *kwargs.values())):
            return forward(x, *args, **kwargs)
        if torch.is_grad_enabled() and not x.requires_grad:
            # Where nothing before the first block is trained: it would be the one block with a graph of its own.
            x = x.detach().requires_grad_()
        from torch._dynamo import config
        from torch._dynamo.exc import FailOnRecompileLimitHit

        try:
            is_error = config.fail_on_recompile_limit_hit
            with config.patch(fail_on_recompile_limit_hit=True):
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
