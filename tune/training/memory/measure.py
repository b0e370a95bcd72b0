"""What a training step allocates, measured by running it on tensors without memory.

One block of each kind runs, forward and backward, between the model's own embedding and loss; what is kept, and the
most that stands at once, is counted by the storages that operators return. So whatever the modules are, it is right
for them. Not seen is what an operator takes for itself while it works, and what allocators lose between tensors.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache, partial
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from tune.errors import TuneError, first_line
from tune.modules import TransformerDecoder
from tune.modules.loss import loss_sum
from tune.modules.peft.apply import is_adapter
from tune.modules.peft.frozen import FrozenLinear
from tune.training.memory.live_bytes import LiveBytes, storage_key

__all__ = ["CANNOT_RUN", "BlockBytes", "StepBytes", "measure_step", "without_memory"]

# What modules and optimizers raise that look at the values of tensors, which have none without memory; or that are not
# installed.
CANNOT_RUN = (
    *(TuneError, RuntimeError, TypeError, ValueError, ArithmeticError, AttributeError, LookupError),
    *(AssertionError, ImportError),
)


@dataclass
class BlockBytes:
    """Bytes of one block.

    Attributes:
        input: what comes in, and what is lent to later blocks: kept where the block is recomputed.
        kept: for the backward pass; without weights, and without the next.
        casts: weights that autocast has turned into its own dtype.
        in_backward: the most that stands beside what earlier blocks keep and the gradients of later ones: what the
            block itself keeps, the gradients of its weights, and what comes and goes.
    """

    input: int = 0
    kept: int = 0
    casts: int = 0
    in_backward: int = 0


@dataclass
class StepBytes:
    """Bytes of a step's parts: each block in the model's order, and what is around them.

    Attributes:
        trunk: kept outside the blocks, up to the hidden states.
        at_start: the most that stands until the first block begins.
        at_loss, in_loss_backward: the most that stands beside what the blocks keep and the gradients there are: in the
            forward pass of the last block or after it, and before the last block's backward pass begins.
        head_gradients: gradients there are when the last block's backward pass begins.
        unknown: why nothing of this could be measured.
    """

    blocks: list[BlockBytes] = field(default_factory=list)
    trunk: int = 0
    at_start: int = 0
    at_loss: int = 0
    in_loss_backward: int = 0
    head_gradients: int = 0
    unknown: str = ""


def measured_device(device_type: str) -> str:
    """Return whose kernels are measured here.

    A GPU's where there is one. Elsewhere a CPU's, which keep rather more: autograd cannot pretend to a device that
    torch was built without (2.13 ends the process).
    """
    return "cuda" if device_type == "cuda" and torch.cuda.is_available() else "cpu"


def without_memory(
    model: TransformerDecoder,
    dtype: torch.dtype | None,
    device: str = "meta",
    blocks: Sequence[int] | None = None,
) -> TransformerDecoder:
    """Return a copy of a model without memory: its weights in `dtype` (None: as they are), adapters in fp32.

    Args:
        model: with memory, or on the meta device.
        dtype: of its weights.
        device: what the copy says it is on; one with memory within a `FakeTensorMode` only.
        blocks: which of its `layers` the copy has; None: all.
    """
    memo: dict[int, Any] = {}
    for name, weight in model.named_parameters():
        kind = torch.float32 if is_adapter(name) else dtype or weight.dtype
        empty = torch.empty(weight.shape, dtype=kind, device=device)
        memo[id(weight)] = nn.Parameter(empty, weight.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    with _disable_current_modes():  # other tensors that a module holds stay as they are
        if blocks is not None:
            memo[id(model.layers)] = nn.ModuleList(copy.deepcopy(model.layers[i], memo) for i in blocks)
        copied = copy.deepcopy(model, memo)
    for module in list(copied.modules()):
        # What was wrapped (recomputed, compiled) would still call the original.
        module.__dict__.pop("forward", None)
        if isinstance(module, FrozenLinear) and module.quantize_base and module.weight is not None:
            module.nf4, module.weight = module.empty_nf4(module.weight.dtype, device), None
    return copied


@lru_cache(maxsize=64)  # advice asks for the same ones in many combinations
def measure_step(
    model: TransformerDecoder,
    loss_fn: nn.Module,
    shape: tuple[int, int],
    packed: bool,
    autocast_dtype: torch.dtype | None,
    gradients: Literal["stand", "grow", "go"],
    device: str,
) -> StepBytes:
    """Return what a step takes, measured on one block of each kind.

    Args:
        model: as `without_memory` gives it, in the dtypes it is trained in.
        loss_fn: the loss.
        shape: rows of a micro-batch and the tokens of the longest.
        packed: rows hold several documents, so positions are given.
        autocast_dtype: of the forward pass; None: it runs without autocast.
        gradients: "stand" from an earlier micro-batch, "grow" from none, or "go" as soon as each is there.
        device: whose kernels are chosen, see `measured_device`.
    """
    kinds = _kinds(model)
    firsts = sorted({kinds.index(kind) for kind in kinds})
    max_targets = None
    rows_per_piece: Any = getattr(loss_fn, "rows_per_piece", None)
    if rows_per_piece is not None and device == "cpu":
        # Its pieces are small there, and alike from the second one on: thousands would be run to no purpose.
        max_targets = 2 * rows_per_piece(prod(shape), torch.device(device))
    try:
        # On this thread, where the modes are entered.
        with FakeTensorMode(allow_non_fake_inputs=True), torch.autograd.set_multithreading_enabled(False):
            part = without_memory(model, None, device, firsts).train()
            autocast = (
                nullcontext() if autocast_dtype is None else torch.autocast(device, dtype=autocast_dtype)
            )
            tokens = torch.zeros(shape, dtype=torch.int64, device=device)
            step = _Recorder(part, gradients, max_targets).run(loss_fn, tokens, packed, autocast)
    except CANNOT_RUN as error:
        return StepBytes([BlockBytes() for _ in kinds], unknown=first_line(error))
    measured = {kinds[i]: block for i, block in zip(firsts, step.blocks, strict=True)}
    step.blocks = [measured[kind] for kind in kinds]
    return step


def _kinds(model: TransformerDecoder) -> list[tuple[bool, bool, bytes]]:
    """Return for each block what those have in common that take as much memory: parts and settings."""
    kinds: list[tuple[bool, bool, bytes]] = []
    # What comes before the first trained weight gets no gradient, and is kept less often.
    has_gradient = model.tok_embeddings.weight.requires_grad
    for block in model.layers:
        # When the first one ends, so do all blocks' own inputs.
        ends_inputs = not kinds and model.per_layer_input is not None
        kinds.append((has_gradient, ends_inputs, _digest(block)))
        has_gradient |= any(weight.requires_grad for weight in block.parameters())
    return kinds


def _digest(block: nn.Module) -> bytes:
    digest = hashlib.blake2b(digest_size=16)  # part by part: it is also asked for where memory has run out
    for name, part in block.named_modules(remove_duplicate=False):
        # Tensors without memory are written with shape and type. What has no text of its own is written with its
        # address, and equals itself alone.
        settings = [pair for pair in vars(part).items() if pair[0] != "_modules"]
        digest.update(repr((name, type(part), settings)).encode())
    return digest.digest()


class _Recorder:
    """Runs a step and notes what stands whenever a block begins or ends, and which of them keeps what."""

    def __init__(self, model: TransformerDecoder, gradients: str, max_targets: int | None) -> None:
        self.model = model
        self.step = StepBytes([BlockBytes() for _ in model.layers])
        self.trained = [weight for weight in model.parameters() if weight.requires_grad]
        for weight in self.trained:
            if gradients == "stand":
                weight.grad = torch.empty_like(weight)
            if gradients == "go":
                weight.register_post_accumulate_grad_hook(_drop_gradient)  # type: ignore[no-untyped-call]
        standing = [weight.grad for weight in self.trained if weight.grad is not None]
        self.live = LiveBytes([*model.parameters(), *model.buffers(), *standing], max_targets)
        self.block: BlockBytes | None = None  # whose forward pass runs
        self.there: set[int] = set()  # storages that are not of that block
        self.saved: set[int] = set()
        self.place = len(
            model.layers
        )  # of the block whose backward pass runs; beyond them the loss, -1 the end
        self.gradients = 0
        for index, block in enumerate(model.layers):
            block.register_forward_pre_hook(partial(self._enter, index))
            block.register_forward_hook(partial(self._leave, index))

    def run(
        self, loss_fn: nn.Module, tokens: Tensor, packed: bool, autocast: AbstractContextManager[object]
    ) -> StepBytes:
        """Return what was noted of the forward and the backward pass of tokens [b, s]."""
        with self.live:
            tokens, labels = tokens.clone(), tokens.clone()
            positions = tokens.clone() if packed else None
            with autocast, torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor):
                loss = loss_sum(loss_fn, self.model, tokens, labels, None, positions)
            self.step.at_loss = self.live.restart() - self._kept(self.place)
            loss.backward()  # type: ignore[no-untyped-call]
            self._next(-1)
        return self.step

    def _enter(self, index: int, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.block = self.step.blocks[index]
        self.block.input = args[0].nbytes
        self.there = self.live.seen - {storage_key(args[0])}
        if index == 0:
            self.step.at_start = self.live.restart()
        if index == 0 and args[0].requires_grad:
            args[0].register_hook(lambda _: self._next(-1))  # type: ignore[no-untyped-call]

    def _leave(
        self,
        index: int,
        module: nn.Module,
        args: tuple[Tensor, ...],
        result: Tensor | tuple[Tensor, tuple[Tensor, Tensor]],
    ) -> None:
        self.block = None
        out = result
        if isinstance(result, tuple):  # keys and values that later blocks attend to are kept by these
            out, lent = result
            self.step.blocks[index].input += sum(tensor.nbytes for tensor in lent)
        assert isinstance(out, Tensor)
        if out.requires_grad:
            out.register_hook(lambda _: self._next(index))  # type: ignore[no-untyped-call]

    def _save(self, tensor: Tensor) -> Tensor:
        key, size = storage_key(tensor), tensor.untyped_storage().nbytes()
        if key in self.saved or key in self.live.weights:
            return tensor
        self.saved.add(key)
        if self.block is None or key in self.there:
            self.step.trunk += size
        elif key in self.live.casts:
            self.block.casts += size
        else:
            self.block.kept += size
        return tensor

    def _kept(self, place: int) -> int:
        return sum(block.kept + block.casts for block in self.step.blocks[: max(place, 0)])

    def _next(self, place: int) -> None:
        """Note the part of the backward pass that has ended; that of the block at `place` begins."""
        most = self.live.restart() - self._kept(self.place) - self.gradients
        given = (weight.grad for weight in self.trained if weight.grad is not None)
        self.gradients = sum(grad.nbytes for grad in given if storage_key(grad) not in self.live.weights)
        if self.place == len(self.step.blocks):
            self.step.in_loss_backward, self.step.head_gradients = most, self.gradients
        elif self.place >= 0:
            self.step.blocks[self.place].in_backward = most
        self.place = place


def _drop_gradient(weight: Tensor) -> None:
    weight.grad = None
