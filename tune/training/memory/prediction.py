"""The peak memory of a training step on one rank: what one block of each kind was measured to take, put together.

A step has three moments of which one is the fullest. *At the loss* all activations stand, and the loss's own
buffers. *In the backward pass* activations go as gradients come. *At the optimizer's step* all gradients stand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import nn

from tune.config.component import Component
from tune.modules import TransformerDecoder
from tune.modules.delta_rule import has_fla
from tune.modules.kernels.gated_delta_rule import working_bytes
from tune.modules.peft.apply import is_adapter
from tune.modules.peft.nf4 import NF4Weight
from tune.training.memory.measure import StepBytes, measure_step, measured_device, without_memory
from tune.training.memory.optimizer_sizes import OptimizerSizes
from tune.training.precision import Precision

__all__ = ["MOMENTS", "PlannedRun", "Prediction", "WeightSizes", "predict", "weigh"]

# What a step of the smallest model makes resident beside its tensors, as measured.
_HOST_CODE = 0.1 * 1024**3
MOMENTS = ("at the loss", "in the backward pass", "at the optimizer's step")


@dataclass(frozen=True)
class PlannedRun:
    """What decides how much memory a run takes on one rank.

    Args:
        model: with memory, or on the meta device; with the adapters and the 4-bit base it will have.
        loss_fn: the loss.
        precision: of weights and of products; adapters are fp32.
        optimizer: its class and arguments.
        batch_size: rows of a micro-batch.
        shard_dim: ranks that the weights are cut over.
        accumulates: a step has several micro-batches.
        cpu_offload: shards wait in host memory.
        activation_checkpointing: blocks are recomputed in the backward pass; "auto": as few as memory allows, and all
            where it is not known what is needed or available.
        activation_offloading: what they keep for it waits in host memory.
        optimizer_in_backward: each weight steps as soon as its gradient is there.
        keeps_copy: where the loss compares with a reference, that is a frozen copy of the model.
        num_written: tokens that the model writes after each prompt, in place of the data's answers.
        frozen_model: runs beside, and is not trained: a teacher; in the dtype it will have.
        frozen_shard_dim: ranks that its weights are cut over.

    Attributes:
        seq_len, is_packed: tokens of the longest row, and whether rows hold several documents: of the data.
        num_recomputed: of the blocks, the first ones: for whose backward pass most memory is free again.
    """

    model: TransformerDecoder
    loss_fn: nn.Module
    precision: Precision
    _: KW_ONLY
    optimizer: Component
    batch_size: int
    shard_dim: int = 1
    accumulates: bool = False
    cpu_offload: bool = False
    activation_checkpointing: bool | Literal["auto"] = False
    activation_offloading: bool = False
    optimizer_in_backward: bool = False
    keeps_copy: bool = False
    num_written: int = 0
    frozen_model: TransformerDecoder | None = None
    frozen_shard_dim: int = 1
    seq_len: int = 0
    is_packed: bool = False
    num_recomputed: int = 0

    @property
    def is_cuda(self) -> bool:
        """Whether it takes place on a GPU."""
        return self.precision.device_type == "cuda"

    @property
    def share(self) -> float:
        """Which part of a weight's bytes is on the device."""
        return 0.0 if self.cpu_offload and self.shard_dim > 1 else 1.0 / self.shard_dim


@dataclass
class WeightSizes:
    """Bytes of a model's parts, and their numbers.

    Attributes:
        total, trained, quantized, adapters: bytes of all weights and buffers, and of those that get gradients, are in
            4 bits, or are adapters.
        num_parameters, num_trained: how many numbers.
        blocks, block_gradients: bytes of each block without its 4-bit weights, and of its gradients.
        largest_quantized: numbers of the largest 4-bit matrix.
        largest_trained: of the largest trained one in blocks, adapters aside.
    """

    total: float = 0.0
    trained: float = 0.0
    quantized: float = 0.0
    adapters: float = 0.0
    num_parameters: int = 0
    num_trained: int = 0
    blocks: list[float] = field(default_factory=list)
    block_gradients: list[float] = field(default_factory=list)
    largest_quantized: int = 0
    largest_trained: int = 0

    @property
    def plain(self) -> float:
        """Bytes that are not in 4 bits."""
        return self.total - self.quantized

    def gathered(self, shard_dim: int) -> float:
        """Return what FSDP makes whole: two blocks (one is computed, the next one fetched) and what is outside them."""
        return 2 * max(self.blocks) + self.plain - sum(self.blocks) if shard_dim > 1 else 0.0


@dataclass(frozen=True)
class Prediction:
    """Bytes of each part at each of the `MOMENTS`, in the order they are shown."""

    parts: dict[str, tuple[float, ...]]
    on_host: float
    unknown: str  # why nothing but weights and states is predicted

    @property
    def moments(self) -> tuple[float, float, float]:
        """Bytes of all parts together at each moment."""
        first, second, third = (sum(sizes[i] for sizes in self.parts.values()) for i in range(3))
        return first, second, third

    @property
    def peak(self) -> float:
        """Bytes at the fullest moment."""
        return max(self.moments)

    @property
    def fullest(self) -> str:
        """Which moment that is."""
        return MOMENTS[self.moments.index(self.peak)]


_Moment = dict[str, float]  # bytes that stand at once beside weights and what the optimizer keeps, by part
_PARTS = ("gradients", "activations", "weights cast by autocast", "loss", "work in progress")


def predict(run: PlannedRun) -> Prediction:
    """Return what a run needs on one rank, from its second optimizer step on: the first one's ends with the states."""
    precision = run.precision
    model = _without_memory(run.model, precision.param_dtype)
    weights = weigh(model)
    step = measure_step(
        model,
        run.loss_fn,
        (run.batch_size, run.seq_len),
        run.is_packed,
        None if precision.param_dtype == precision.compute_dtype else precision.compute_dtype,
        "go" if run.optimizer_in_backward else "stand" if run.accumulates else "grow",
        measured_device(precision.device_type),
    )
    optimizer = OptimizerSizes(run.optimizer, precision.device_type)
    kept, working = optimizer.step_of(weight for weight in model.parameters() if weight.requires_grad)
    in_forward = max(_forward(run, step, weights), key=lambda moment: sum(moment.values()))
    in_backward = max(_backward(run, step, weights), key=lambda moment: sum(moment.values()))
    at_step = {"gradients": weights.trained * run.share, "work in progress": working * run.share}
    moments = (in_forward, in_backward, {} if run.optimizer_in_backward else at_step)

    frozen = run.frozen_model
    beside = WeightSizes(blocks=[0.0]) if frozen is None else weigh(_without_memory(frozen, None))
    beside_share = replace(run, shard_dim=run.frozen_shard_dim).share
    beside_gathered = beside.gathered(run.frozen_shard_dim)  # its root stays, and is small beside two blocks
    gathered = weights.gathered(run.shard_dim) + beside_gathered
    parts: dict[str, tuple[float, ...]] = {
        f"weights, {_count(weights.num_parameters)}": ((weights.plain - weights.adapters) * run.share,) * 3,
        # FSDP leaves buffers alone: every rank has all of it.
        "4-bit base": (weights.quantized,) * 3,
        f"adapters, {_count(weights.num_trained)}": (weights.adapters * run.share,) * 3,
        f"optimizer ({optimizer})": (kept * run.share,) * 3,
        f"frozen model beside it, {_count(beside.num_parameters)}": (
            (beside.plain * beside_share + beside.quantized,) * 3
        ),
        **{part: tuple(moment.get(part, 0.0) for moment in moments) for part in _PARTS},
        "FSDP's gathered blocks": (
            gathered,
            gathered + _gathered_gradients(run, weights, step),
            beside_gathered,
        ),
        "torch's own code, loaded on first use": (_HOST_CODE * (precision.device_type == "cpu"),) * 3,
    }
    on_host = 0.0 if beside_share else beside.plain / run.frozen_shard_dim
    if run.activation_offloading:
        on_host += sum(_kept(run, step))
    if not run.share:
        on_host += (weights.plain + weights.trained + kept) / run.shard_dim
    return Prediction(
        {name: sizes for name, sizes in parts.items() if max(sizes) > 0.0}, on_host, step.unknown
    )


@lru_cache(maxsize=16)
def _without_memory(model: TransformerDecoder, dtype: torch.dtype | None) -> TransformerDecoder:
    return without_memory(model, dtype)


def weigh(model: TransformerDecoder) -> WeightSizes:
    """Return what a model's weights take, 4-bit ones filled or not."""
    sizes = WeightSizes(blocks=[0.0] * len(model.layers), block_gradients=[0.0] * len(model.layers))
    for name, weight in model.named_parameters():
        sizes.total += weight.nbytes
        sizes.num_parameters += weight.numel()
        sizes.trained += weight.nbytes * weight.requires_grad
        sizes.num_trained += weight.numel() * weight.requires_grad
        sizes.adapters += weight.nbytes * is_adapter(name)
        if name.startswith("layers."):
            block = int(name.split(".")[1])
            sizes.blocks[block] += weight.nbytes
            sizes.block_gradients[block] += weight.nbytes * weight.requires_grad
            if weight.requires_grad and not is_adapter(name):
                sizes.largest_trained = max(sizes.largest_trained, weight.numel())
    sizes.total += sum(buffer.nbytes for buffer in model.buffers())
    for module in model.modules():
        if isinstance(module, NF4Weight):
            size = module.shape.numel()
            sizes.quantized += module.nbytes
            sizes.num_parameters += size
            sizes.largest_quantized = max(sizes.largest_quantized, size)
    return sizes


def _count(number: int) -> str:
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:,.1f}M"


def _kept(run: PlannedRun, step: StepBytes) -> list[float]:
    """Return what each block keeps until its backward pass: all, or its input alone (arXiv:1604.06174)."""
    blocks = enumerate(step.blocks)
    return [float(block.input if i < run.num_recomputed else block.kept) for i, block in blocks]


def _forward(run: PlannedRun, step: StepBytes, weights: WeightSizes) -> Iterator[_Moment]:
    """Yield what stands before the first block, and when the forward pass ends."""
    kept = _kept(run, step)
    gradients = weights.trained * run.share * run.accumulates
    yield {"gradients": gradients, "work in progress": step.at_start}
    yield {
        "gradients": gradients,
        # Of what waits on the host, one block's is on its way there.
        "activations": step.trunk + (max(kept) if run.activation_offloading else sum(kept)),
        "weights cast by autocast": sum(block.casts for block in step.blocks),
        "loss": step.at_loss - step.trunk,
    }


def _backward(run: PlannedRun, step: StepBytes, weights: WeightSizes) -> Iterator[_Moment]:
    """Yield what stands before the last block's backward pass, and in each block's."""
    kept = _kept(run, step)
    held = [0.0] * len(kept) if run.activation_offloading else kept
    # Autocast drops them with the forward pass.
    casts = [0.0 if i < run.num_recomputed else float(block.casts) for i, block in enumerate(step.blocks)]
    grows = 0.0 if run.accumulates or run.optimizer_in_backward else run.share
    gradients = weights.trained * run.share * run.accumulates
    # A matrix in 4 bits, or in another type, stands in full while it is multiplied, inside an operator.
    compute_dtype = run.precision.compute_dtype
    is_cast = run.precision.param_dtype != compute_dtype
    largest = max(weights.largest_quantized, weights.largest_trained * is_cast)
    in_operator = max(largest * compute_dtype.itemsize, _in_delta_rule(run))

    def moment(activations: float, casts: float, loss: float, working: float) -> _Moment:
        return dict(zip(_PARTS, (gradients, activations, casts, loss, working)))

    yield moment(sum(held) + step.trunk, sum(casts), step.in_loss_backward - step.trunk, 0.0)
    gradients += step.head_gradients * grows
    for i, block in reversed(list(enumerate(step.blocks))):
        working = max(block.in_backward - block.kept - block.casts - step.trunk, 0) + in_operator
        activations = sum(held[:i]) + block.kept + step.trunk
        yield moment(activations, sum(casts[:i]) + block.casts, 0.0, working)
        gradients += weights.block_gradients[i] * grows


def _in_delta_rule(run: PlannedRun) -> int:
    """Return what the rule of a layer with a state takes while its backward pass works."""
    delta = run.model.config.delta
    if delta is None or (run.is_cuda and has_fla()):
        return 0
    sizes = (delta.num_value_heads, delta.key_head_dim, delta.value_head_dim)
    return working_bytes(run.batch_size, run.seq_len, *sizes)


def _gathered_gradients(run: PlannedRun, weights: WeightSizes, step: StepBytes) -> float:
    """Return gradients that stand before each rank keeps its part: the head's, and a block's in fp32 to be summed."""
    if run.shard_dim == 1:
        return 0.0
    itemsize = weights.trained / max(weights.num_trained, 1)
    return max(weights.block_gradients) * 4.0 / max(itemsize, 1.0) + step.head_gradients
