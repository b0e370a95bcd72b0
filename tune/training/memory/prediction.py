"""The peak memory of a training step on one rank: what one block of each kind was measured to take, put together.

A step has three moments of which one is the fullest. *At the loss* all activations stand, and the loss's own
buffers. *In the backward pass* activations go as gradients come. *At the optimizer's step* all gradients stand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

import torch
from torch import nn

from tune.modules import TransformerDecoder
from tune.modules.delta_rule import has_fla
from tune.modules.kernels.gated_delta_rule import working_bytes
from tune.modules.peft.apply import is_adapter
from tune.modules.peft.nf4 import NF4Weight
from tune.training.memory.measure import StepBytes, measure_step, without_memory
from tune.training.memory.optimizer_sizes import OptimizerSizes

__all__ = ["MOMENTS", "FrozenSizes", "PlannedRun", "Prediction", "WeightSizes", "predict"]

# What a step of the smallest model makes resident beside its tensors, as measured.
_HOST_CODE = 0.1 * 1024**3
MOMENTS = ("at the loss", "in the backward pass", "at the optimizer's step")


@dataclass(frozen=True)
class FrozenSizes:
    """What a model takes that runs beside the trained one and is not trained: a teacher.

    Args:
        num_parameters: how many numbers.
        on_device, on_host: bytes of its weights there, on one rank.
        gathered: bytes that stand unsharded while it runs.
    """

    num_parameters: int = 0
    on_device: float = 0.0
    on_host: float = 0.0
    gathered: float = 0.0

    @classmethod
    def of(cls, model: TransformerDecoder, shard_size: int, cpu_offload: bool) -> Self:
        """Return the sizes of a model without memory, in the dtypes that it will have."""
        weights = weigh(model)
        plain = (weights.total - weights.quantized) / shard_size
        if shard_size == 1:
            return cls(weights.num_parameters, plain + weights.quantized)
        root = weights.total - weights.quantized - sum(weights.blocks)
        shards = (0.0, plain) if cpu_offload else (plain, 0.0)
        return cls(weights.num_parameters, *shards, 2 * max(weights.blocks) + root)


@dataclass(frozen=True)
class PlannedRun:
    """What decides a run's memory on one rank; `plan_memory` says what each means."""

    model: TransformerDecoder  # without memory
    loss_fn: nn.Module
    optimizer: OptimizerSizes
    param_dtype: torch.dtype | None
    compute_dtype: torch.dtype
    batch_size: int
    seq_len: int
    packed: bool
    accumulates: bool
    shard_size: int
    cpu_offload: bool
    num_recomputed: int  # of the blocks, the first ones
    activation_offloading: bool
    optimizer_in_backward: bool
    device_type: str
    frozen: FrozenSizes = FrozenSizes()


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


@dataclass(frozen=True)
class Prediction:
    """Bytes of each part at each of the `MOMENTS`, in the order they are shown."""

    parts: dict[str, tuple[float, float, float]]
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


@dataclass
class _Moment:
    """Bytes that stand at once beside weights and what the optimizer keeps."""

    gradients: float = 0.0
    activations: float = 0.0
    casts: float = 0.0
    loss: float = 0.0
    working: float = 0.0

    @property
    def total(self) -> float:
        return self.gradients + self.activations + self.casts + self.loss + self.working


def predict(run: PlannedRun) -> Prediction:
    """Return what a run needs on one rank, from its second optimizer step on: the first one's ends with the states."""
    model = _in_dtype(run.model, run.param_dtype)
    weights = weigh(model)
    step = measure_step(
        model,
        run.loss_fn,
        (run.batch_size, run.seq_len),
        run.packed,
        None if run.param_dtype in (None, run.compute_dtype) else run.compute_dtype,
        "go" if run.optimizer_in_backward else "stand" if run.accumulates else "grow",
        run.device_type,
    )
    in_backward = max(_backward(run, step, weights), key=lambda moment: moment.total)
    kept, working = _optimizer(run, model)
    on_device = _share(run)
    at_step = _Moment(weights.trained * on_device, working=working * on_device)
    in_forward = max(_forward(run, step, weights), key=lambda moment: moment.total)
    moments = (in_forward, in_backward, _Moment() if run.optimizer_in_backward else at_step)

    def part(name: str) -> tuple[float, float, float]:
        first, second, third = (getattr(moment, name) for moment in moments)
        return first, second, third

    plain = (weights.total - weights.quantized - weights.adapters) * on_device
    parts = {
        f"weights, {_count(weights.num_parameters)}": (plain,) * 3,
        # FSDP leaves buffers alone: every rank has all of it.
        "4-bit base": (weights.quantized,) * 3,
        f"adapters, {_count(weights.num_trained)}": (weights.adapters * on_device,) * 3,
        f"optimizer ({run.optimizer})": (kept * on_device,) * 3,
        f"frozen model beside it, {_count(run.frozen.num_parameters)}": (run.frozen.on_device,) * 3,
        "gradients": part("gradients"),
        "activations": part("activations"),
        "weights cast by autocast": part("casts"),
        "loss": part("loss"),
        "work in progress": part("working"),
        "FSDP's gathered blocks": (*_gathered(run, weights, step), run.frozen.gathered),
        "torch's own code, loaded on first use": (_HOST_CODE * (run.device_type == "cpu"),) * 3,
    }
    on_host = run.frozen.on_host
    if run.activation_offloading:
        on_host += sum(_kept(run, step))
    if run.cpu_offload:
        on_host += (weights.total - weights.quantized + weights.trained + kept) / run.shard_size
    return Prediction(
        {name: sizes for name, sizes in parts.items() if max(sizes) > 0.0}, on_host, step.unknown
    )


@lru_cache(maxsize=16)
def _in_dtype(model: TransformerDecoder, dtype: torch.dtype | None) -> TransformerDecoder:
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
    # Of what waits on the host, one block's is on its way there.
    held = max(kept) if run.activation_offloading else sum(kept)
    casts = sum(block.casts for block in step.blocks)
    standing = weights.trained * _share(run) * run.accumulates
    yield _Moment(standing, working=step.at_start)
    yield _Moment(standing, held + step.trunk, casts, step.at_loss - step.trunk)


def _backward(run: PlannedRun, step: StepBytes, weights: WeightSizes) -> Iterator[_Moment]:
    """Yield what stands before the last block's backward pass, in each block's, and after that of the first."""
    kept = _kept(run, step)
    held = [0.0] * len(kept) if run.activation_offloading else kept
    # Autocast drops them with the forward pass.
    casts = [0.0 if i < run.num_recomputed else float(block.casts) for i, block in enumerate(step.blocks)]
    grows = 0.0 if run.accumulates or run.optimizer_in_backward else _share(run)
    gradients = weights.trained * _share(run) * run.accumulates
    # A matrix in 4 bits, or in another type, stands in full while it is multiplied, inside an operator.
    is_cast = run.param_dtype != run.compute_dtype
    largest = max(weights.largest_quantized, weights.largest_trained * is_cast)
    in_operator = max(largest * run.compute_dtype.itemsize, _in_delta_rule(run))
    yield _Moment(gradients, sum(held) + step.trunk, sum(casts), step.in_loss_backward - step.trunk)
    gradients += step.head_gradients * grows
    own_inputs = 0  # their gradients
    for i, block in reversed(list(enumerate(step.blocks))):
        working = max(block.in_backward - block.kept - block.casts - step.trunk, 0) + in_operator
        activations = sum(held[:i]) + block.kept + step.trunk + (own_inputs if i else 0)
        yield _Moment(gradients, activations, sum(casts[:i]) + block.casts, working=working)
        gradients += weights.block_gradients[i] * grows
        own_inputs += block.own_input
    yield _Moment(gradients, step.trunk, working=step.at_end - step.trunk)


def _in_delta_rule(run: PlannedRun) -> int:
    """Return what the rule of a layer with a state takes while its backward pass works."""
    delta = run.model.config.delta
    if delta is None or (run.device_type == "cuda" and has_fla()):
        return 0
    sizes = (delta.num_value_heads, delta.key_head_dim, delta.value_head_dim)
    return working_bytes(run.batch_size, run.seq_len, *sizes)


def _share(run: PlannedRun) -> float:
    """Return which part of a weight's bytes is on the device."""
    return 0.0 if run.cpu_offload else 1.0 / run.shard_size


def _optimizer(run: PlannedRun, model: TransformerDecoder) -> tuple[float, float]:
    """Return the bytes of the optimizer's states, and those that come and go in its step."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    states = [run.optimizer.state_of(tuple(weight.shape), weight.dtype) for weight in trained]
    at_once = sum(state.working for state in states if state.is_foreach)
    return sum(state.kept for state in states), max([at_once, *(state.working for state in states)])


def _gathered(run: PlannedRun, weights: WeightSizes, step: StepBytes) -> tuple[float, float]:
    """Return what stands unsharded, at the loss and in the backward pass.

    Two blocks (one is computed, the next one fetched) and what is outside them; in the backward pass also gradients
    before each rank keeps its part: the head's, and a block's in fp32 to be summed.
    """
    frozen = run.frozen.gathered  # its root stays, and is small beside two blocks
    if run.shard_size == 1:
        return frozen, frozen
    root = weights.total - weights.quantized - sum(weights.blocks)
    whole = 2 * max(weights.blocks) + root
    itemsize = weights.trained / max(weights.num_trained, 1)
    summed = max(weights.block_gradients) * 4.0 / max(itemsize, 1.0)
    return whole + frozen, whole + frozen + summed + step.head_gradients
