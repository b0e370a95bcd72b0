"""The peak memory of a training step on one rank, predicted part by part from a run's sizes.

A step has three moments of which one is the fullest. *At the loss* all activations stand, and the loss's own
buffers. *In the backward pass* activations go as gradients come. *At the optimizer's step* all gradients stand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tune.modules import TransformerDecoder
from tune.modules.peft.lora import LoRALinear
from tune.modules.peft.token_rows import TokenRowsEmbedding, TokenRowsLinear
from tune.training.memory.activation_sizes import Adapters, MicroBatch, block_bytes, trunk_bytes
from tune.training.memory.optimizer_sizes import OptimizerSizes
from tune.training.memory.weight_sizes import WeightSizes, weigh

__all__ = ["MOMENTS", "PlannedRun", "Prediction", "predict"]

# What a step of the smallest model makes resident beside its tensors, as measured.
_HOST_CODE = 0.1 * 1024**3
MOMENTS = ("at the loss", "in the backward pass", "at the optimizer's step")


@dataclass(frozen=True)
class PlannedRun:
    """What decides a run's memory on one rank; `plan_memory` says what each means."""

    model: TransformerDecoder
    optimizer: OptimizerSizes
    param_dtype: torch.dtype | None
    trained_dtype: torch.dtype | None
    compute_dtype: torch.dtype
    is_autocast: bool
    batch_size: int
    seq_len: int
    packed: bool
    accumulates: bool
    shard_size: int
    uses_fsdp: bool
    cpu_offload: bool
    activation_checkpointing: bool
    activation_offloading: bool
    optimizer_in_backward: bool
    rows_of_logits: Callable[[int], int] | None  # of the tokens: those whose logits stand at once; None: all
    device_type: str
    adapters: Adapters | None = None
    quantize_base: bool = False


@dataclass(frozen=True)
class Prediction:
    """Bytes of each part at each of the `MOMENTS`, in the order they are shown."""

    parts: dict[str, tuple[float, float, float]]
    on_host: float
    weights: WeightSizes

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


def predict(run: PlannedRun) -> Prediction:
    """Return what a run needs on one rank, from its second optimizer step on: the first one's ends with the states."""
    weights = weigh(
        run.model,
        param_dtype=run.param_dtype,
        trained_dtype=torch.float32 if run.adapters else run.trained_dtype,
        state_bytes=run.optimizer.bytes_for,
        adapters=run.adapters,
        quantize_base=run.quantize_base,
    )
    shards = run.shard_size
    on_device = 0.0 if run.cpu_offload else 1.0 / shards
    kept, full_block, on_host = _activations(run)
    casts = weights.casts * run.compute_dtype.itemsize * run.is_autocast
    at_loss, after_loss = _loss(run, weights)

    gradients = weights.trained / shards
    if run.optimizer_in_backward:
        gradients = weights.largest_gradient / shards
    elif run.cpu_offload:
        gradients = 0.0
    standing = gradients if run.accumulates else 0.0
    head = 0.0 if run.accumulates else min(weights.head_gradient / shards, gradients)

    working = _working(run, weights) + full_block
    if run.accumulates:
        working += weights.largest_gradient  # a gradient, before it is added to the one that stands
    step_working = 0.0
    if run.optimizer.is_foreach and run.device_type == "cuda" and not run.optimizer_in_backward:
        step_working = weights.trained * on_device

    # Activations go as gradients come: one end of the backward pass or the other is the fuller.
    begins_fuller = kept + casts + after_loss + head + standing >= gradients
    in_backward = (kept, casts, after_loss, head + standing) if begins_fuller else (0.0, 0.0, 0.0, gradients)
    adapters = weights.adapters
    plain = (weights.total - weights.quantized - adapters) * on_device
    parts = {
        f"weights, {_count(weights.num_parameters)}": (plain,) * 3,
        "4-bit base": (weights.quantized * on_device,) * 3,
        f"adapters, {_count(weights.num_trained)}": (adapters * on_device,) * 3,
        f"optimizer ({run.optimizer})": (weights.optimizer * on_device,) * 3,
        "gradients": (standing, in_backward[3], gradients),
        "activations": (kept, in_backward[0], 0.0),
        "weights cast by autocast": (casts, in_backward[1], 0.0),
        "loss": (at_loss, in_backward[2], 0.0),
        "work in progress": (0.0, working, step_working),
        "FSDP's gathered blocks": (*_gathered(run, weights), 0.0),
        "torch's own code, loaded on first use": (_HOST_CODE * (run.device_type == "cpu"),) * 3,
    }
    if run.cpu_offload:
        on_host += (weights.total + weights.trained + weights.optimizer) / shards
    return Prediction({name: sizes for name, sizes in parts.items() if max(sizes) > 0.0}, on_host, weights)


def _count(number: int) -> str:
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:,.1f}M"


def _micro_batch(run: PlannedRun) -> MicroBatch:
    stream = run.param_dtype or next(run.model.parameters()).dtype
    return MicroBatch(
        run.batch_size,
        run.seq_len,
        run.compute_dtype.itemsize,
        stream.itemsize if run.is_autocast else run.compute_dtype.itemsize,
        run.device_type == "cuda",
        run.packed,
        run.model.config.sliding_window if run.model.config.sliding_layers else None,
        run.adapters,
    )


def _activations(run: PlannedRun) -> tuple[float, float, float]:
    """Return the bytes kept on the device, those of the block that is recomputed, and those sent to the host."""
    batch = _micro_batch(run)
    blocks = [block_bytes(block, batch) for block in run.model.layers]  # type: ignore[arg-type]
    trunk = trunk_bytes(run.model, batch)
    largest = max(blocks)
    kept, full_block = sum(blocks), 0.0
    if run.activation_checkpointing:
        # Of each block its input alone (arXiv:1604.06174); one at a time is run again.
        kept = len(blocks) * batch.num_tokens * run.model.config.embed_dim * float(batch.stream_bytes)
        full_block = largest
    if run.activation_offloading:
        # On their way out or back in is what one block keeps.
        return trunk + min(kept, largest), full_block, kept
    return trunk + kept, full_block, 0.0


def _working(run: PlannedRun, weights: WeightSizes) -> float:
    """Return the bytes that come and go while the backward pass is in one block."""
    config, tokens = run.model.config, run.batch_size * run.seq_len
    e = run.compute_dtype.itemsize
    per_token = config.moe.experts_per_token if config.moe else 1
    width = config.moe.intermediate_dim if config.moe else config.intermediate_dim
    # Gradients of the gate, of its function and of what it multiplies; or, where queries turn, in fp32 four times.
    work = max(3 * e * width * per_token, 16 * config.num_heads * config.head_dim)
    # A 4-bit matrix stands in full while it is multiplied.
    return float(tokens) * (work + 2 * e * config.embed_dim) + float(weights.block_quantized * e)


def _loss(run: PlannedRun, weights: WeightSizes) -> tuple[float, float]:
    """Return the bytes of the loss while it is formed, and those it keeps for the backward pass.

    What counts are tokens with a target; how many that are is not known before, so all are taken.
    """
    config, tokens, e = run.model.config, float(run.batch_size * run.seq_len), run.compute_dtype.itemsize
    stream = _micro_batch(run).stream_bytes
    vocab, hidden = config.vocab_size, tokens * config.embed_dim * stream
    output = run.model.tok_embeddings if run.model.output is None else run.model.output
    has_token_rows = isinstance(output, TokenRowsEmbedding | TokenRowsLinear)  # put into a copy of the matrix
    head_is_trained = weights.head_gradient > 0.0 or has_token_rows
    matrix = vocab * config.embed_dim
    if run.rows_of_logits is None:
        # Logits in their own dtype and in fp32, and the logarithms of their shares; those are kept, and in the
        # backward pass there are two gradients of their size beside them.
        logits = tokens * vocab
        return hidden + logits * (8 if e == 4 else 8 + e), hidden + logits * 12
    rows = min(run.rows_of_logits(int(tokens)), int(tokens))
    logits = rows * vocab * (4.0 if e == 4 else 4.0 + e)
    if config.final_softcap is not None:
        logits += 4.0 * rows * vocab
    at_loss = 2 * hidden + logits  # the hidden states and their gradient
    if head_is_trained:
        # The matrix's gradient in fp32, and a piece's, which is the weight's dtype before it is added.
        at_loss += matrix * (4.0 if e == 4 else 4.0 + e)
    if run.is_autocast or has_token_rows or isinstance(run.model.output, LoRALinear):
        at_loss += matrix * e
    return at_loss, hidden


def _gathered(run: PlannedRun, weights: WeightSizes) -> tuple[float, float]:
    """Return what stands unsharded, at the loss and in the backward pass.

    Two blocks (one is computed, the next one fetched) and what is outside them; in the backward pass also their
    gradients before each rank keeps its part: as they come, and in fp32 to be summed.
    """
    if not run.uses_fsdp:
        return 0.0, 0.0
    whole = 2 * weights.block + weights.root
    itemsize = weights.trained / weights.num_trained if weights.num_trained else 0.0
    return whole, whole + weights.block_trained * (itemsize + 4.0) + weights.head_gradient
