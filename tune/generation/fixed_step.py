"""One token a row at a time through shapes that never change: compiled once, and recorded where there is a GPU.

A step of one token is hundreds of small kernels: launching them takes a GPU's host longer than they run. With shapes
and addresses that stay, they are recorded once and launched as one.

Shapes: b sequences in the batch, v entries in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from tune.modules import TransformerDecoder
from tune.modules.grouped_linear import can_group
from tune.modules.kv_cache import KVCache
from tune.modules.moe import MixtureOfExperts
from tune.utils import get_logger
from tune.utils.sharding import is_sharded

__all__ = ["BatchCaches", "FixedStep", "can_fix_shapes", "can_record"]

# Recording takes about the time of three steps.
_LEAST_RECORDED = 12
# Of `torch.compile`.
_BACKEND = "inductor"
# Slots come in pieces of so many, so that batches are of few shapes.
_SLOTS = 256


class FixedStep:
    """What follows one token of each row: every call runs the same operators on the same memory.

    Args:
        model: in eval mode.
        batch_size: b.
        backend: of `torch.compile`, for the blocks; None: they run as they are.
        records: the operators are recorded on a GPU, and launched as one. The model's caches are emptied by that. Where
            one of them cannot be recorded, a warning says so, and each is launched by itself.
    """

    def __init__(
        self,
        model: TransformerDecoder,
        batch_size: int,
        *,
        backend: str | Callable[..., Any] | None = None,
        records: bool = False,
    ) -> None:
        self._model = model
        device = next(model.parameters()).device
        self._tokens = torch.zeros(batch_size, 1, dtype=torch.long, device=device)
        self._positions = torch.zeros_like(self._tokens)
        self._forwards = None
        if backend is not None:
            # The class's method, not what training has put in its place: nothing is recomputed or sharded here.
            self._forwards = [
                torch.compile(MethodType(type(block).forward, block), backend=backend, dynamic=False)
                for block in model.layers
            ]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)
        if records:
            self._record(device)

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return logits [b, v], which the next call writes over, for tokens and positions [b, 1]."""
        self._tokens.copy_(tokens)
        self._positions.copy_(positions)
        if self._graph is None:
            return self._run()
        self._graph.replay()
        return self._logits

    def _run(self) -> Tensor:
        compiled = nullcontext() if self._forwards is None else _replaced(self._model.layers, self._forwards)
        with self._model.fixed_cache_shapes(), compiled:
            hidden = self._model.hidden(self._tokens, input_pos=self._positions)  # [b, 1, d]
        return self._model.unembed(hidden)[:, 0]

    def _record(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            # What runs first sets up libraries, and makes code: neither may happen while it is recorded.
            side, current = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(2):
                    self._run()
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            try:
                # What other threads do meanwhile, such as loading data, is no part of it.
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self._logits = self._run()
                self._graph = graph
            except RuntimeError as error:  # an operator waits, or allocates otherwise than torch does
                first = str(error).partition("\n")[0]
                get_logger().warning("the steps of generation are not recorded, and so slower: %s", first)
        self._model.reset_caches()


class BatchCaches:
    """The caches of one batch after the other; those of one shape share them, and the step that runs on them.

    Args:
        model: whose caches they are.
        compiles: blocks are compiled for the step of one token.
    """

    def __init__(self, model: TransformerDecoder, *, compiles: bool = False) -> None:
        self._model = model
        self._compiles = compiles
        self._shape: tuple[int, int, bool] | None = None
        self._caches: KVCache | None = None
        self._step: FixedStep | None = None

    @contextmanager
    def lent(self, batch_size: int, longest: int, num_slots: int) -> Iterator[FixedStep | None]:
        """Let the model have empty caches meanwhile; yield the step on them, None where shapes are to grow.

        Args:
            batch_size: b.
            longest: tokens of the longest prompt.
            num_slots: that its text may grow to.
        """
        config = self._model.config
        fixed_slots = min(-(-num_slots // _SLOTS) * _SLOTS, config.max_text_len)
        is_fixed = can_fix_shapes(self._model, longest, fixed_slots) and (
            self._compiles or (num_slots - longest >= _LEAST_RECORDED and can_record(self._model))
        )
        shape = (batch_size, fixed_slots if is_fixed else num_slots, is_fixed)
        if shape != self._shape:
            self._shape = self._caches = self._step = None  # their memory first
            self._make(*shape)
        self._model.swap_caches(self._caches)
        self._model.reset_caches()
        try:
            yield self._step
        finally:
            self._model.delete_caches()

    def _make(self, batch_size: int, num_slots: int, is_fixed: bool) -> None:
        weight = next(self._model.parameters())
        kind = weight.device.type
        # Under autocast keys and values arrive in the autocast dtype, not in that of the weights.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        self._model.setup_caches(batch_size, num_slots, dtype, weight.device)
        try:
            if is_fixed:
                backend = _BACKEND if self._compiles else None
                with torch.no_grad():
                    self._step = FixedStep(
                        self._model, batch_size, backend=backend, records=can_record(self._model)
                    )
        finally:
            self._caches = self._model.swap_caches(None)
        self._shape = (batch_size, num_slots, is_fixed)


def can_fix_shapes(model: TransformerDecoder, shortest: int, longest: int) -> bool:
    """Return whether texts of these lengths are turned by the same frequencies, and all weights are at hand."""
    ropes = [rope for rope in (model.rope, model.local_rope) if rope is not None]
    scalings = [rope.scaling for rope in ropes if rope.scaling is not None]
    follows = any(scaling.alike(shortest) != scaling.alike(longest) for scaling in scalings)
    return not follows and not any(is_sharded(weight) for weight in model.parameters())


def can_record(model: TransformerDecoder) -> bool:
    """Return whether a GPU can record a step: none of its operators waits, and no weight is cast beforehand."""
    weight = next(model.parameters())
    if weight.device.type != "cuda" or torch.is_autocast_enabled("cuda"):
        return False
    experts = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    return all(can_group(weight.device, weight.dtype, *module.widths) for module in experts)


@contextmanager
def _replaced(blocks: nn.ModuleList, forwards: list[Any]) -> Iterator[None]:
    """Let blocks run other forwards for as long as the body runs."""
    own = [vars(block).get("forward") for block in blocks]
    for block, forward in zip(blocks, forwards, strict=True):
        block.forward = forward
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward
