"""How much a model's weights take: trained, frozen, and in 4 bits; with or without memory yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from tune.modules import TransformerDecoder
from tune.modules.peft.apply import is_adapter
from tune.modules.peft.frozen import FrozenLinear
from tune.training.memory.activation_sizes import Adapters

__all__ = ["WeightSizes", "weigh"]

# NF4 as `NF4Weight` stores it: half a byte a number, a byte per 64, four per 256 of those.
_NF4_BLOCK, _NF4_GROUP = 64, 256


@dataclass(frozen=True)
class WeightSizes:
    """Bytes of a model's parts, and their numbers.

    Attributes:
        trained, frozen: bytes of weights that get gradients, and of those (with buffers) that do not.
        quantized: bytes of the 4-bit base.
        adapters: bytes of adapters, which `trained` contains.
        optimizer: bytes that the optimizer keeps.
        num_trained, num_parameters: how many numbers; a 4-bit one counts as one.
        head_gradient: bytes of the output matrix's gradient, 0 where it is frozen.
        largest_gradient: bytes of the largest gradient of one weight.
        block: bytes of the largest block, its 4-bit weights left out.
        block_trained: how many trained numbers it has.
        block_quantized: numbers of the largest 4-bit matrix.
        root: bytes outside the blocks.
        casts: numbers that autocast turns into its own dtype and keeps: the blocks' plain matrices.
    """

    trained: float = 0.0
    frozen: float = 0.0
    quantized: float = 0.0
    adapters: float = 0.0
    optimizer: float = 0.0
    num_trained: int = 0
    num_parameters: int = 0
    head_gradient: float = 0.0
    largest_gradient: float = 0.0
    block: float = 0.0
    block_trained: int = 0
    block_quantized: int = 0
    root: float = 0.0
    casts: int = 0

    @property
    def total(self) -> float:
        """Bytes of all weights."""
        return self.trained + self.frozen + self.quantized


@dataclass(frozen=True)
class _Weight:
    shape: tuple[int, ...]
    dtype: torch.dtype
    is_trained: bool
    block: str  # "layers.3", or "" outside
    is_head: bool = False
    is_adapter: bool = False
    is_quantized: bool = False
    is_cast: bool = False


def weigh(
    model: TransformerDecoder,
    *,
    param_dtype: torch.dtype | None,
    trained_dtype: torch.dtype | None,
    state_bytes: Callable[[tuple[int, ...], int], float],
    adapters: Adapters | None = None,
    quantize_base: bool = False,
) -> WeightSizes:
    """Return what a model's weights take.

    Args:
        model: with memory, or on the meta device.
        param_dtype: what its weights will be; None: what they are.
        trained_dtype: what the trained ones will be, where they differ; None: as the others.
        state_bytes: what the optimizer keeps for a trained weight of a shape and itemsize.
        adapters: weigh it as if these were there and all else frozen; None: as it is.
        quantize_base: weigh the blocks' frozen matrices as 4-bit ones.
    """
    sums: dict[str, float] = dict.fromkeys(
        (
            "trained",
            "frozen",
            "quantized",
            "adapters",
            "optimizer",
            "head_gradient",
            "largest_gradient",
            "root",
        ),
        0.0,
    )
    numbers = dict.fromkeys(("num_trained", "num_parameters", "block_quantized", "casts"), 0)
    blocks: dict[str, float] = {}
    trained_in: dict[str, int] = {}
    for weight in _weights(model, adapters, quantize_base):
        dtype = (weight.is_trained and trained_dtype) or param_dtype or weight.dtype
        size = prod(weight.shape)
        num_bytes = nf4_bytes(size) if weight.is_quantized else float(size * dtype.itemsize)
        numbers["num_parameters"] += size
        if weight.is_quantized:
            sums["quantized"] += num_bytes
            numbers["block_quantized"] = max(numbers["block_quantized"], size)
            continue
        numbers["casts"] += size * weight.is_cast
        if weight.block:
            blocks[weight.block] = blocks.get(weight.block, 0.0) + num_bytes
        else:
            sums["root"] += num_bytes
        if not weight.is_trained:
            sums["frozen"] += num_bytes
            continue
        sums["trained"] += num_bytes
        sums["adapters"] += num_bytes * weight.is_adapter
        sums["optimizer"] += state_bytes(weight.shape, dtype.itemsize)
        sums["head_gradient"] += num_bytes * weight.is_head
        sums["largest_gradient"] = max(sums["largest_gradient"], num_bytes)
        numbers["num_trained"] += size
        trained_in[weight.block] = trained_in.get(weight.block, 0) + size
    trained_in.pop("", None)
    largest = max(blocks.values(), default=0.0)
    most_trained = max(trained_in.values(), default=0)
    sums["frozen"] += sum(buffer.nbytes for name, buffer in model.named_buffers() if ".nf4." not in name)
    return WeightSizes(**sums, **numbers, block=largest, block_trained=most_trained)  # type: ignore[arg-type]


def nf4_bytes(size: int) -> float:
    """Return the bytes of a matrix of `size` numbers in NF4."""
    blocks = -(-size // _NF4_BLOCK)
    return blocks * (_NF4_BLOCK // 2 + 1) + 4.0 * -(-blocks // _NF4_GROUP) + 4


def _weights(model: TransformerDecoder, adapters: Adapters | None, quantize_base: bool) -> Iterator[_Weight]:
    """Yield every weight once, tied ones too; a 4-bit matrix whether it is filled or not."""
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if isinstance(module, FrozenLinear) and module.quantize_base:
            yield _Weight(
                (module.out_dim, module.in_dim), torch.uint8, False, _block_of(path), is_quantized=True
            )
    head = "tok_embeddings.weight" if model.output is None else "output.weight"
    for name, weight in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        module = modules[owner]
        if leaf == "weight" and isinstance(module, FrozenLinear) and module.quantize_base:
            continue  # the placeholder of one that is not filled yet
        shape, block = tuple(weight.shape), _block_of(name)
        is_matrix = leaf == "weight" and bool(block) and not is_adapter(name)
        kind = owner.rpartition(".")[2]
        is_adapted = adapters is not None and is_matrix and kind in adapters.modules
        is_trained = weight.requires_grad and adapters is None
        is_quantized = quantize_base and is_matrix and not is_trained and kind != "router"
        yield _Weight(
            shape,
            weight.dtype,
            is_trained,
            block,
            is_head=name == head,
            is_adapter=is_adapter(name),
            is_quantized=is_quantized,
            is_cast=is_matrix and isinstance(module, nn.Linear) and not is_adapted and not is_quantized,
        )
        if is_adapted and adapters is not None:
            for side in ((adapters.rank, shape[1]), (shape[0], adapters.rank)):
                yield _Weight(side, torch.float32, True, block, is_adapter=True)


def _block_of(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "layers" else ""
