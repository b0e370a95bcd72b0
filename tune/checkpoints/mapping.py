"""The one way between names: a model's weights, in memory or in files, as the tensors that a layout holds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor, nn

from tune.checkpoints.expert_turns import from_turns, take_turn, turns_shape
from tune.checkpoints.weights import WeightSource
from tune.errors import CheckpointError
from tune.modules import DecoderConfig, ExpertLinear, LayerScale, Layout, WeightRule
from tune.modules.peft import FrozenExperts, FrozenLinear, TokenRowsEmbedding, TokenRowsLinear, is_adapter

_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")
Shapes = Mapping[str, tuple[int, ...]]
Lending = Callable[[nn.Module], AbstractContextManager[object]]


class NamedWeights(Protocol):
    """A model's weights under our names, one at a time."""

    shapes: Shapes

    def dtype(self, name: str) -> torch.dtype: ...

    def read(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Place:
    """Where a model keeps one of the weights that checkpoints hold.

    Args:
        owner, leaf: the module, and the attribute it keeps the weight in.
        shape: of the weight.
        dtype: of the weight; of a quantised one, what it stands for.
        device: where it is; meta until it is filled.
        expert: whose it is, where the owner keeps a stack of them; None: it is the owner's own.
    """

    owner: nn.Module
    leaf: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    expert: int | None = None

    @property
    def frozen(self) -> FrozenLinear | None:
        """The owner, where it keeps its matrix in a form of its own: quantised, or with an adapter beside it."""
        return self.owner if isinstance(self.owner, FrozenLinear) and self.leaf == "weight" else None


def plain_path(path: str) -> str:
    """Return a module's path without the marks of wrappers around it or its owners."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def places_by_name(model: nn.Module) -> dict[str, Place]:
    """Return where each weight of a model is, by its name without the marks of wrappers; adapters have none."""
    places: dict[str, Place] = {}
    for path, module in model.named_modules():
        prefix = f"{plain_path(path)}." if plain_path(path) else ""
        if isinstance(module, ExpertLinear | FrozenExperts):
            places.update(_places_of_experts(plain_path(path), module))
            continue
        if isinstance(module, FrozenLinear):
            shape = (module.out_dim, module.in_dim)
            places[f"{prefix}weight"] = Place(module, "weight", shape, module.base_dtype, module.base_device)
        # Codes of quantised matrices are buffers, too: not all of them are what checkpoints hold.
        held = module.named_buffers if isinstance(module, LayerScale) else module.named_parameters
        for leaf, parameter in held(recurse=False):
            name = f"{prefix}{leaf}"
            if not is_adapter(name) and name not in places:
                places[name] = Place(module, leaf, tuple(parameter.shape), parameter.dtype, parameter.device)
    return places


def _places_of_experts(path: str, module: ExpertLinear | FrozenExperts) -> Iterator[tuple[str, Place]]:
    if is_adapter(f"{path}.weight"):
        return
    shape: tuple[int, ...]
    if isinstance(module, FrozenExperts):
        num_experts, shape = module.num_experts, (module.out_dim, module.in_dim)
        dtype, device = module.base_dtype, module.base_device
    else:
        num_experts, *rest = module.weight.shape
        shape, dtype, device = (rest[0], rest[1]), module.weight.dtype, module.weight.device
    owner, _, leaf = path.rpartition(".")
    bias = module.bias
    for expert in range(num_experts):
        place = Place(module, "weight", shape, dtype, device, expert)
        yield f"{owner}.{expert}.{leaf}.weight", place
        if bias is not None:
            place = Place(module, "bias", shape[:1], bias.dtype, bias.device, expert)
            yield f"{owner}.{expert}.{leaf}.bias", place


def weight_shapes(model: nn.Module) -> Shapes:
    """Return the shapes of a model's weights by name; of experts, of each alone."""
    return {name: place.shape for name, place in places_by_name(model).items()}


def lending_of(model: nn.Module) -> Lending:
    """Return what gives a module of this model its weights for a while, see `ModelWeights`."""
    lending: Lending = getattr(model, "lending", nullcontext)
    return lending


class ModelWeights:
    """The weights of a model in memory, adapters merged into their matrices one at a time.

    Args:
        model: where it has a method `lending(module)`, its modules have their weights only within the context that this
            returns: weights that are fetched one module at a time need never be there all at once.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = places_by_name(model)
        self._lending: Lending = lending_of(model)
        self.shapes: Shapes = {name: place.shape for name, place in self._places.items()}
        # Experts are asked for one after the other: what is lent for one holds the others as well.
        self._stacks: dict[tuple[int, str], Tensor] = {}

    def dtype(self, name: str) -> torch.dtype:
        return self._places[name].dtype

    @torch.no_grad()
    def read(self, name: str) -> Tensor:
        """Return a weight; a merged or a quantised one at least in fp32, whatever its dtype, to be rounded once."""
        place = self._places[name]
        if place.expert is not None:
            return self._read_expert(place, place.expert)
        with self._lending(place.owner):
            if place.frozen is not None:
                return place.frozen.merged_weight(torch.promote_types(place.dtype, torch.float32))
            if isinstance(place.owner, TokenRowsEmbedding | TokenRowsLinear):
                return place.owner.merged_weight().detach()
            tensor: Tensor = getattr(place.owner, place.leaf)
            return tensor.detach()

    def _read_expert(self, place: Place, expert: int) -> Tensor:
        owner, key = place.owner, (id(place.owner), place.leaf)
        if (stack := self._stacks.get(key)) is None and getattr(owner, place.leaf) is not None:
            while len(self._stacks) > 1:  # two kinds are read in turns, where a tensor holds both
                self._stacks.pop(next(iter(self._stacks)))
            with self._lending(owner):
                stack = self._stacks[key] = getattr(owner, place.leaf).detach()
        if isinstance(owner, FrozenExperts) and place.leaf == "weight":
            return owner.merged_expert(expert, torch.promote_types(place.dtype, torch.float32), stack)
        assert stack is not None
        return stack[expert]


class StoredWeights:
    """The weights of a model in files, of any layout; what is read may be a view of the file.

    Args:
        source: compared with the model already (`tune.checkpoints.compare`).
        layout: of the source.
        config: sizes of the model.
        shapes: of its parameters.
    """

    def __init__(self, source: WeightSource, layout: Layout, config: DecoderConfig, shapes: Shapes) -> None:
        self._source = source
        self._config = config
        self.shapes = shapes
        self._rules: dict[str, tuple[WeightRule, ...]] = {}
        self._places: dict[str, int] = {}  # of tensors that hold several, and the rows there
        self._rows: dict[str, slice | Tensor] = {}
        for rules in layout.expand(config, list(shapes)):
            rows = rows_of(rules, config, [shapes[rule.ours][0] for rule in rules])
            for place, rule in enumerate(rules):
                self._rules[rule.ours] = rules
                self._places[rule.ours] = place
                self._rows[rule.ours] = rows[place]
        # Parameters that share a tensor are asked for one after the other: it is not read again for each.
        self._shared: tuple[str, Tensor] | None = None

    def dtype(self, name: str) -> torch.dtype:
        dtype = self._source.infos[self._rules[name][0].theirs].dtype
        if isinstance(dtype, str):
            raise CheckpointError(f"{name} is stored as {dtype}; only fp64, fp32, fp16 and bf16 are read")
        return dtype

    def read(self, name: str) -> Tensor:
        rules = self._rules[name]
        tensor = self._read_stored(rules)
        if rules[0].in_turns:
            tensor = take_turn(tensor, rules, self._places[name])
        else:
            if rules[0].num_experts:
                tensor = tensor.flatten(0, 1)
            if len(rules) > 1:
                tensor = tensor[self._rows[name]]
        to_ours = next(rule.to_ours for rule in rules if rule.ours == name)
        return tensor if to_ours is None else to_ours(tensor, self._config)

    def _read_stored(self, rules: tuple[WeightRule, ...]) -> Tensor:
        theirs = rules[0].theirs
        if self._shared is not None and self._shared[0] == theirs:
            return self._shared[1]
        self._shared = None
        tensor = self._source.read(theirs)
        if len(rules) > 1:
            self._shared = (theirs, tensor)
        return tensor


@dataclass(frozen=True)
class LayoutTensor:
    """A tensor that a file of some layout holds; its values are made when they are asked for.

    Args:
        name: in the layout.
        shape, dtype: of the tensor in the file.
        rules: of the parameters it is made of.
        weights: where those come from.
        config: sizes of the model.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rules: tuple[WeightRule, ...]
    weights: NamedWeights
    config: DecoderConfig

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """Return the tensor, contiguous and on the CPU; where nothing changes it is no copy.

        Raises:
            CheckpointError: a value has no place in `dtype`, or a file cannot be read.
        """
        parts = []
        for rule in self.rules:
            part = self.weights.read(rule.ours)
            if rule.to_theirs is not None:
                part = rule.to_theirs(part, self.config)
            parts.append(self._cast(part.to("cpu")))
        if self.rules[0].in_turns:
            return from_turns(parts, self.rules)
        if self.rules[0].rows is not None:
            whole = torch.empty(self.shape, dtype=self.dtype)
            for part, rows in zip(parts, rows_of(self.rules, self.config, ()), strict=True):
                whole[rows] = part
            return whole
        return (
            parts[0].contiguous().view(self.shape) if len(parts) == 1 else torch.cat(parts).view(self.shape)
        )

    def _cast(self, tensor: Tensor) -> Tensor:
        cast = tensor.to(self.dtype)
        narrower = torch.finfo(self.dtype).max < torch.finfo(tensor.dtype).max
        if narrower and not torch.equal(torch.isfinite(cast), torch.isfinite(tensor)):
            kept = tensor[torch.isfinite(tensor)]
            raise CheckpointError(
                f"{self.name} holds values up to {kept.abs().max().item():.3g}, and "
                f"{str(self.dtype).removeprefix('torch.')} ends at {torch.finfo(self.dtype).max:.3g}: choose bf16 or "
                "fp32"
            )
        return cast


def tensors_in_layout(
    weights: NamedWeights,
    layout: Layout,
    config: DecoderConfig,
    *,
    dtype: torch.dtype | None = None,
    repeat_tied: bool = False,
) -> list[LayoutTensor]:
    """Return the tensors of a checkpoint in a layout, in the order of the model; nothing is read.

    Args:
        weights: the model's.
        layout: to bring them into.
        config: sizes of the model.
        dtype: what the tensors become; None: what they are.
        repeat_tied: a tied output matrix gets its own name, too.

    Raises:
        CheckpointError: the layout has no place for some parameter.
    """
    tensors = []
    for rules in layout.expand(config, list(weights.shapes)):
        shape = stored_shape(rules, weights.shapes)
        own = reduce(torch.promote_types, [weights.dtype(rule.ours) for rule in rules])
        tensors.append(LayoutTensor(rules[0].theirs, shape, dtype or own, rules, weights, config))
    held = {rule.ours for tensor in tensors for rule in tensor.rules}
    if homeless := [name for name in weights.shapes if name not in held]:
        kinds = list(dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in homeless))
        raise CheckpointError(f"{layout.name} layout has no place for {', '.join(kinds)} of this model")
    if repeat_tied and config.tie_word_embeddings:
        first = next(tensor for tensor in tensors if tensor.rules[0].ours == "tok_embeddings.weight")
        tensors.append(
            LayoutTensor(layout.tied_output, first.shape, first.dtype, first.rules, weights, config)
        )
    return tensors


def rows_of(
    rules: tuple[WeightRule, ...], config: DecoderConfig, heights: Sequence[int]
) -> list[slice | Tensor]:
    """Return which rows of the tensor that these rules share are each one's.

    Args:
        rules: of one tensor.
        config: the model's sizes.
        heights: rows of each parameter, which counts where they stand one under the other.
    """
    if rules[0].rows is not None:
        return [rule.rows(config) for rule in rules if rule.rows is not None]
    ends = list(accumulate(heights))
    return [slice(end - height, end) for end, height in zip(ends, heights, strict=True)]


def stored_shape(rules: tuple[WeightRule, ...], shapes: Shapes) -> tuple[int, ...]:
    """Return the shape of the tensor that these rules share: their parameters one under the other."""
    own = [shapes[rule.ours] for rule in rules]
    if num_experts := rules[0].num_experts:
        if rules[0].in_turns:
            return turns_shape(own, num_experts)
        return (num_experts, sum(shape[0] for shape in own) // num_experts, *own[0][1:])
    return own[0] if len(own) == 1 else (sum(shape[0] for shape in own), *own[0][1:])
