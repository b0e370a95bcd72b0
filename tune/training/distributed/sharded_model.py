"""A model cut over processes with FSDP2, and what every process needs of it whole."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tune.errors import ConfigError
from tune.modules import LayerScale
from tune.modules.experts import ExpertLinear
from tune.modules.linear import Linear
from tune.modules.peft import is_adapter
from tune.utils.host_memory import return_freed_memory
from tune.utils.mesh import Mesh
from tune.utils.sharding import full_tensor, is_sharded, local_part

__all__ = [
    "HostShards",
    "copy_to_host",
    "describe_processes",
    "is_sharded_model",
    "reshard",
    "shard_model",
    "write_full_model",
]

# What sharded models were before: without memory, and whole.
_skeletons: weakref.WeakKeyDictionary[nn.Module, nn.Module] = weakref.WeakKeyDictionary()


def shard_model(
    model: Any,
    mesh: Mesh,
    compute_dtype: torch.dtype | None = None,
    own_layers: Sequence[str] | None = None,
    cpu_offload: bool = False,
) -> None:
    """Cut every weight of a model over the processes of its copy, in place; each block is gathered when it runs.

    Call it while the model is on the meta device, after blocks were set up to be recomputed or compiled: each process
    then gets memory for its own part only, to be filled by `load_into`. Weights keep their names.

    Args:
        model: a decoder.
        mesh: one that shards.
        compute_dtype: that all passes of the model cast to, by autocast. The matrices of blocks are then gathered in
            it: the numbers are the same, and half the bytes are sent. None: all is gathered as it is kept.
        own_layers: further modules that are gathered on their own, such as tok_embeddings.
        cpu_offload: shards wait in host memory.

    Raises:
        ConfigError: a layer to be sharded on its own does not exist.
    """
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FSDPModule,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    if mesh.device.type == "cpu":
        return_freed_memory()
    skeleton = copy.deepcopy(model)
    offload = CPUOffloadPolicy(pin_memory=mesh.device.type == "cuda") if cpu_offload else OffloadPolicy()
    options: dict[str, Any] = {
        "mesh": mesh.device_mesh if mesh.replicate_dim > 1 else mesh.device_mesh["shard"],
        # Weights are gathered as they are kept: matrix products cast them themselves, as they do in one process.
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32),
        "offload_policy": offload,
    }
    for path in _own_layers(model, own_layers or ()):
        fully_shard(model.get_submodule(path), **options)
    cast = _cast_weights(model.layers, compute_dtype)
    if cast:
        # A block's other weights, a few vectors, are not rounded: they are gathered with what is left, below.
        fully_shard(model, ignored_params=cast, reshard_after_forward=False, **options)
        narrow = MixedPrecisionPolicy(
            param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for block in model.layers:
            others = {weight for weight in block.parameters() if weight not in cast}
            fully_shard(block, ignored_params=others, **options | {"mp_policy": narrow})
    else:
        for block in model.layers:
            fully_shard(block, **options)
        # What is left (norm, output, tied embeddings) stays gathered between forward and backward: the loss reads the
        # output matrix after the model has returned.
        fully_shard(model, reshard_after_forward=False, **options)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss was divided by the target tokens of all processes already: gradients are added, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.to_empty(device="cpu" if cpu_offload else mesh.device)
    _skeletons[model] = skeleton


def _cast_weights(blocks: nn.Module, compute_dtype: torch.dtype | None) -> set[nn.Parameter]:
    """Return the weights that are kept in another type, and read by nothing but products that cast them to this one."""
    matrices = (module for module in blocks.modules() if isinstance(module, Linear | ExpertLinear))
    weights = (weight for module in matrices for weight in module.parameters(recurse=False))
    return {weight for weight in weights if compute_dtype is not None and weight.dtype != compute_dtype}


def is_sharded_model(model: object) -> bool:
    """Tell whether this is a model that `shard_model` has cut."""
    return isinstance(model, nn.Module) and model in _skeletons


def describe_processes(model: nn.Module, mesh: Mesh) -> str:
    """Return in words how a model is spread over the processes of a run."""
    if mesh.world_size == 1:
        return "1 process"
    if not is_sharded_model(model):
        return f"{mesh.world_size} processes with a whole copy each"
    copies = f"{mesh.replicate_dim} copies, each " if mesh.replicate_dim > 1 else ""
    is_offloaded = next(model.parameters()).device.type != mesh.device.type
    where = ", waiting in host memory" if is_offloaded else ""
    return f"{mesh.world_size} processes: {copies}sharded over {mesh.shard_dim}{where}"


def reshard(model: nn.Module) -> None:
    """Free what was gathered of a sharded model, as a backward pass does: its parameters are the shards again.

    Also after a forward pass that was broken off.
    """
    if model in _skeletons:
        from torch.distributed.fsdp import FSDPModule

        root: Any = model
        # The root stays gathered between its passes, and takes a forward pass that was broken off for under way.
        root.set_reshard_after_forward(True, recurse=False)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        root.set_reshard_after_forward(False, recurse=False)


@torch.no_grad()
def copy_to_host(model: Any, mesh: Mesh) -> Any:
    """Return a copy of a model in host memory that training leaves alone; on all processes but the first, None.

    Of a sharded model each process copies what it holds, and nothing is sent; `write_full_model` takes that, too.
    """
    if not is_sharded_model(model):
        return _copy(model) if mesh.is_rank_zero else None
    reshard(model)
    parts = {name: _HostPart.of(weight, mesh) for name, weight in model.named_parameters()}
    return HostShards(_skeleton_of(model), parts)


@dataclass(frozen=True)
class HostShards:
    """What this process held of a sharded model at one moment, in host memory.

    Args:
        skeleton: the model without memory.
        parts: of its weights, by name.
    """

    skeleton: nn.Module
    parts: Mapping[str, _HostPart]


@dataclass(frozen=True)
class _HostPart:
    """One weight's part in host memory.

    Args:
        local: this process's; None where others hold the same.
        shape: of the whole weight.
        dtype: of it.
        ranks: the processes whose parts make it whole, the first process first.
    """

    local: Tensor | None
    shape: torch.Size
    dtype: torch.dtype
    ranks: tuple[int, ...]

    @classmethod
    def of(cls, weight: Any, mesh: Mesh) -> _HostPart:
        """Return the part of a weight, copied."""
        ranks = (0,)
        if is_sharded(weight):
            # One copy of the model is enough: the one that the first process has a part of.
            first_copy = tuple(slice(None) if placement.is_shard() else 0 for placement in weight.placements)
            ranks = tuple(weight.device_mesh.mesh[first_copy].flatten().tolist())
        is_needed = mesh.rank in ranks
        local = local_part(weight.detach()).to("cpu", copy=True).contiguous() if is_needed else None
        return cls(local, weight.shape, weight.dtype, ranks)

    def gather(self, mesh: Mesh) -> Tensor | None:
        """Return the whole weight on the first process, None on the others; all must call this."""
        import torch.distributed as dist

        if not mesh.is_rank_zero:
            if self.local is not None and self.local.numel():
                dist.send(_bytes_of(self.local), dst=0, group=mesh.host_group)
            return None
        assert self.local is not None
        if len(self.ranks) == 1:
            return self.local
        full = torch.empty(self.shape, dtype=self.dtype)
        # As torch.chunk: equal parts, rounded up; the last ones may be smaller or missing.
        pieces = torch.split(full, max(-(-self.shape[0] // len(self.ranks)), 1))
        pieces[0].copy_(self.local)
        for rank, piece in zip(self.ranks[1:], pieces[1:]):
            dist.recv(_bytes_of(piece), src=rank, group=mesh.host_group)
        return full


def _bytes_of(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor's memory: gloo does not send every type of number."""
    return tensor.view(-1).view(torch.uint8)


def write_full_model(
    model: Any,
    write: Callable[[Any], None],
    mesh: Mesh,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Call `write` on the first process with all of a model, sharded or not; every process must call this.

    Of a sharded model no more is there than is being written: while the first process writes, the others send what it
    asks for. The model that `write` is given is for `tune.checkpoints` to save; its weights are fetched module by
    module, as they are read. Adapters, which are small and are wanted several at a time, are there from the start.

    Args:
        model: any, or what `copy_to_host` made of one: then only hosts talk, and training may go on meanwhile.
        write: what it raises, all processes raise.
        mesh: the processes of the run; in a thread, from `Mesh.for_thread`.
        weights: written in place of the model's own, by name, and sharded as these are: averages of them, say.
    """
    if not isinstance(model, HostShards) and not is_sharded_model(model):
        mesh.from_rank_zero(lambda: write(_copy(model, weights) if weights else model))
        return
    gather: Callable[[Any], Any]
    parts: dict[str, Any]
    if isinstance(model, HostShards):
        skeleton, parts, gather = model.skeleton, dict(model.parts), lambda part: part.gather(mesh)
    else:
        reshard(model)
        skeleton, parts = _skeleton_of(model), dict(weights or model.named_parameters())
        gather = lambda weight: full_tensor(weight.detach()).cpu()  # noqa: E731

    def fetch(names: list[str]) -> list[Tensor]:
        mesh.broadcast(names)
        return [gather(parts[name]) for name in names]

    def write_fetched() -> None:
        lent: Any = copy.deepcopy(skeleton)
        try:
            adapters = [name for name in parts if is_adapter(name)]
            for name, values in zip(adapters, fetch(adapters), strict=True):
                owner, _, leaf = name.rpartition(".")
                setattr(lent.get_submodule(owner), leaf, nn.Parameter(values, requires_grad=False))
            lent.lending = partial(
                _lending, {id(module): path for path, module in lent.named_modules()}, fetch
            )
            write(lent)
        finally:
            mesh.broadcast(None)

    if not mesh.is_rank_zero:
        unknown: Any = None
        while (names := mesh.broadcast(unknown)) is not None:
            for name in names:
                gather(parts[name])
    mesh.from_rank_zero(write_fetched)


def _skeleton_of(model: Any) -> Any:
    """Return a sharded model without memory, as it was when it was cut, with what its checkpoint has brought since."""
    skeleton: Any = _skeletons[model]
    skeleton.carried = model.carried
    own = dict(model.named_modules())
    for path, module in skeleton.named_modules():
        if isinstance(module, LayerScale):  # a buffer, which is not sharded
            module.value = own[path].value.to("cpu", copy=True)
    return skeleton


@contextmanager
def _lending(
    paths: dict[int, str], fetch: Callable[[list[str]], list[Tensor]], module: nn.Module
) -> Iterator[None]:
    """Let a module have the weights that it lacks for as long as the body runs."""
    empty = {leaf: weight for leaf, weight in module.named_parameters(recurse=False) if weight.is_meta}
    prefix = f"{paths[id(module)]}." if paths[id(module)] else ""
    for leaf, values in zip(empty, fetch([prefix + leaf for leaf in empty]), strict=True):
        setattr(module, leaf, nn.Parameter(values, requires_grad=False))
    try:
        yield
    finally:
        for leaf, parameter in empty.items():
            setattr(module, leaf, parameter)


def _copy(model: nn.Module, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return a copy of a model in host memory, with other weights if they are given."""
    memo: dict[int, Any] = {}
    for name, weight in model.named_parameters():
        host = (weights or {}).get(name, weight).detach().to("cpu", copy=True)
        memo[id(weight)] = nn.Parameter(host, requires_grad=weight.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to("cpu", copy=True)
    return copy.deepcopy(model, memo)


def _own_layers(model: Any, names: Iterable[str]) -> list[str]:
    """Return the paths of modules, besides the blocks, that are gathered on their own."""
    # A tied embedding is the output matrix, too, which is wanted until the backward pass.
    paths = ["tok_embeddings"] if model.output is not None else []
    if model.per_layer_input is not None:
        paths.append("per_layer_input.table")
    for name in names:
        if name in ("tok_embeddings", "output"):
            continue  # the one as above, the other with what is left
        found = [path for path, _ in model.named_modules() if path == name or path.endswith(f".{name}")]
        if not found:
            raise ConfigError(
                f"custom_sharded_layers names {name}, but the model has no such layer; tok_embeddings and output are "
                "two of those it has."
            )
        paths += found
    return paths
