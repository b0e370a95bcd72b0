"""Adapters of experts in files: beside each expert where checkpoints name them, or beside the tensor that holds all.

The first is what peft wrote while experts were modules, and it still reads it. The other is its `target_parameters`:
with E experts, A [E r, i] has the experts one under the other, B [o, r E] has them side by side, fastest. Of two such
tensors in one module, the first one's adapter is called `base_layer`'s.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from tune.checkpoints.adapter_config import AdapterSettings
from tune.checkpoints.adapter_fusion import fused_size
from tune.checkpoints.adapter_layout import PREFIX, alpha_for, scaling_of
from tune.checkpoints.mapping import Shapes
from tune.checkpoints.weights import WeightSource
from tune.modules import DecoderConfig, Layout
from tune.modules.peft import LoRAExperts

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(w[123])\.weight")
Adapted = Mapping[str, LoRAExperts]


@dataclass(frozen=True)
class TheirExperts:
    """Matrices of a layer's experts, as the other tools' model has them.

    Args:
        name: of the parameter that holds them; "" where there is a module for each expert.
        members: these modules, in order; empty where one parameter holds all.
        paths: of our modules that hold them, from top to bottom.
        rows: of each.
        width: of all.
        num_experts: E.
        in_turns: rows of ours stand there in turns.
    """

    name: str
    members: tuple[str, ...]
    paths: tuple[str, ...]
    rows: tuple[int, ...]
    width: int
    num_experts: int
    in_turns: bool = False

    def row_slice(self, path: str) -> slice:
        """Return the rows of one of ours."""
        place = self.paths.index(path)
        if self.in_turns:
            return slice(place, None, len(self.paths))
        return slice(sum(self.rows[:place]), sum(self.rows[: place + 1]))


@dataclass(frozen=True)
class ExpertPiece:
    """The adapters of one of our stacks of experts, as a part of what a file holds.

    Args:
        path: of our module.
        rank, alpha: of our adapters.
        names: of the file's tensors of A and of B, one after the other: of each expert, or of all.
        num_experts: E.
        rows: of B, and `ranks`: of A and columns of B, where the tensors hold all.
    """

    path: str
    rank: int
    alpha: float
    names: tuple[str, ...]
    num_experts: int
    rows: slice
    ranks: slice

    def read(self, source: WeightSource) -> tuple[Tensor, Tensor]:
        """Return A [E, r, i] and B [E, o, r]."""
        half = len(self.names) // 2
        a, b = ([source.read(name) for name in names] for names in (self.names[:half], self.names[half:]))
        if half == self.num_experts and half > 1:
            return torch.stack(a), torch.stack(b)
        stacked_a, stacked_b = unfold(a[0], b[0], self.num_experts)
        return stacked_a[:, self.ranks], stacked_b[:, self.rows, self.ranks]


def unfold(a: Tensor, b: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Return A [E, r, i] and B [E, o, r] of peft's tensors for all experts."""
    return a.view(num_experts, -1, a.shape[1]), b.view(b.shape[0], -1, num_experts).permute(2, 0, 1)


def their_experts(layout: Layout, config: DecoderConfig, shapes: Shapes) -> list[TheirExperts]:
    """Return the stacks of experts that may have adapters, in the order of the layout."""
    found: list[TheirExperts] = []
    single: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for rules in layout.expand(config, list(shapes)):
        match = _EXPERT.fullmatch(rules[0].ours)
        if match is None:
            continue
        if num_experts := rules[0].num_experts:
            kinds = rules[: len(rules) // num_experts]
            paths = tuple(_EXPERT.sub(r"\1.\3", rule.ours) for rule in kinds)
            rows = tuple(shapes[rule.ours][0] for rule in kinds)
            width, in_turns = shapes[rules[0].ours][1], rules[0].in_turns
            found.append(TheirExperts(rules[0].theirs, (), paths, rows, width, num_experts, in_turns))
        else:
            member = rules[0].theirs.removesuffix(".weight")
            single.setdefault(f"{match[1]}.{match[3]}", []).append((member, shapes[rules[0].ours]))
    for path, members in single.items():
        height, width = members[0][1]
        names = tuple(name for name, _ in members)
        found.append(TheirExperts("", names, (path,), (height,), width, len(names)))
    return found


def plan_expert_pieces(
    source: WeightSource,
    settings: AdapterSettings,
    parts: Mapping[str, Mapping[str, int]],
    stacks: Sequence[TheirExperts],
    modules: Collection[str],
) -> tuple[list[ExpertPiece], set[str], list[str]]:
    """Return the adapters of experts in a file, the names of its tensors that they are, and what is wrong.

    Args:
        source: the file's tensors.
        settings: what adapter_config.json says of them.
        parts: ranks of ours inside an adapter for several of ours, where the file says them.
        stacks: of the model, under any names they may have.
        modules: names of the others, whose weights may be said to be parameters.
    """
    pieces: list[ExpertPiece] = []
    used: set[str] = set()
    problems: list[str] = []
    for stack in stacks:
        if stack.members and any(_names(member)[0] in source for member in stack.members):
            used.update(name for member in stack.members for name in _names(member) if name in source)
            pieces += _single(source, settings, stack, problems)
    known = _under_names_of(source, [stack for stack in stacks if stack.name])
    for stack, (a, b) in _wrapped([stack for stack in known if settings.is_parameter(stack.name)]):
        used.update((a, b))
        rank = settings.rank_of(stack.name)
        num_experts, height = stack.num_experts, sum(stack.rows)
        wanted = {a: (num_experts * rank, stack.width), b: (height, rank * num_experts)}
        if misfits := _misfits(source, wanted):
            problems += misfits
            continue
        alpha = settings.alpha_of(stack.name)
        own = parts.get(stack.name)
        if own and not _is_in_blocks(unfold(source.read(a), source.read(b), num_experts)[1], stack, own):
            own = None  # another tool has trained it since
        scaling, start = scaling_of(alpha, rank, settings.use_rslora), 0
        for path, part in (own or dict.fromkeys(stack.paths, rank)).items():
            ranks = slice(start, start + part) if own else slice(0, rank)
            part_alpha = alpha_for(scaling, part, settings.use_rslora) if own else alpha
            pieces.append(
                ExpertPiece(path, part, part_alpha, (a, b), num_experts, stack.row_slice(path), ranks)
            )
            start += part
    parameters = [*(stack.name for stack in known), *(f"{module}.weight" for module in modules)]
    unknown = [
        name
        for name in settings.parameters
        if not any(parameter == name or parameter.endswith(f".{name}") for parameter in parameters)
    ]
    problems += [f"`target_parameters` names {name}, which gets no adapter here" for name in unknown]
    if pieces and settings.use_dora:
        problems.append("`use_dora` is true, and experts have no magnitudes")
    return pieces, used, problems


def _under_names_of(source: WeightSource, stacks: list[TheirExperts]) -> list[TheirExperts]:
    """Return the stacks under the names that a file has some of them by: alone, or as a part of a larger model."""
    held = [stack for stack in stacks if _names(stack.name.rpartition(".")[0])[0] in source]
    begins = {stack.name.partition(".layers.")[0] for stack in held}
    return [stack for stack in stacks if stack.name.partition(".layers.")[0] in begins] or stacks


def _names(module: str) -> tuple[str, str]:
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _wrapped(stacks: Sequence[TheirExperts]) -> Iterator[tuple[TheirExperts, tuple[str, str]]]:
    """Yield stacks that have adapters with the names of their A and B: of one module, the last is the outermost."""
    for module, group in groupby(stacks, key=lambda stack: stack.name.rpartition(".")[0]):
        inside = list(group)
        for place, stack in enumerate(inside):
            yield stack, _names(module + ".base_layer" * (len(inside) - 1 - place))


def _single(
    source: WeightSource, settings: AdapterSettings, stack: TheirExperts, problems: list[str]
) -> list[ExpertPiece]:
    sizes = {(settings.rank_of(member), settings.alpha_of(member)) for member in stack.members}
    if len(sizes) > 1:
        problems.append(f"{stack.members[0]} and the experts beside it have adapters of different sizes")
        return []
    ((rank, alpha),) = sizes
    if untargeted := [
        name for name in stack.members if settings.targets is not None and not settings.is_target(name)
    ]:
        problems.append(f"{_names(untargeted[0])[0]}: `target_modules` does not name it")
        return []
    names = [_names(member) for member in stack.members]
    wanted = {a: (rank, stack.width) for a, _ in names} | {b: (stack.rows[0], rank) for _, b in names}
    if misfits := _misfits(source, wanted):
        problems += misfits
        return []
    whole = slice(0, rank)
    rows = slice(0, stack.rows[0])
    return [ExpertPiece(stack.paths[0], rank, alpha, tuple(wanted), stack.num_experts, rows, whole)]


def _misfits(source: WeightSource, wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    problems = []
    for name, shape in wanted.items():
        info = source.infos.get(name)
        if info is None:
            problems.append(f"{name} is missing")
        elif isinstance(info.dtype, str):
            problems.append(f"{name}: stored as {info.dtype}; only fp64, fp32, fp16 and bf16 are read")
        elif info.shape != shape:
            problems.append(
                f"{name}: {list(info.shape)} in the file, where the model and adapter_config.json need {list(shape)}"
            )
    return problems


def _is_in_blocks(b: Tensor, stack: TheirExperts, ranks: Mapping[str, int]) -> bool:
    """Whether B [E, o, r] is zero outside a block for each of our matrices, of the ranks that are said."""
    if not set(ranks) <= set(stack.paths) or sum(ranks.values()) != b.shape[2]:
        return False
    outside, start = b.clone(), 0
    for path, rank in ranks.items():
        outside[:, stack.row_slice(path), start : start + rank] = 0.0
        start += rank
    return not outside.any()


@dataclass(frozen=True)
class WrittenExperts:
    """The adapters of experts as a file holds them.

    Args:
        tensors: by name.
        sizes: rank and alpha of each adapter, by the name of the module or parameter that it is beside.
        parameters: those of the names that are parameters'.
        others: further names that could have adapters.
        parts: ranks of ours inside an adapter for several of ours.
    """

    tensors: dict[str, Tensor]
    sizes: dict[str, tuple[int, float]]
    parameters: set[str]
    others: set[str]
    parts: dict[str, dict[str, int]]


def write_experts(
    adapted: Adapted, layouts: Sequence[Layout], config: DecoderConfig, shapes: Shapes
) -> WrittenExperts:
    """Return what a file holds of a model's adapters of experts.

    Args:
        adapted: our modules that have them, by path.
        layouts: of the family's checkpoints, the usual one first.
        config, shapes: the model's sizes, and those of its weights.

    Raises:
        CheckpointError: one adapter would have to stand for two that are scaled differently.
    """
    written = WrittenExperts({}, {}, set(), set(), {})
    if not adapted:
        return written
    for layout in layouts:
        stacks = their_experts(layout, config, shapes)
        if stacks[0].name:
            _write_stacked(adapted, stacks, written)
            break
        if layout is layouts[-1] or _is_uniform(adapted, stacks):
            _write_single(adapted, stacks, written)
            break
    return written


def _is_uniform(adapted: Adapted, stacks: Sequence[TheirExperts]) -> bool:
    """Whether peft can bring adapters of single experts to its own parameters: all of one size, or all of w2 alone.

    Gates and what they open become one adapter of twice the rank and alpha, which by the root of the rank is another.
    """
    sizes = {(module.rank, module.alpha) for module in adapted.values()}
    kinds = {path[-2:] for path in adapted}
    is_everywhere = all(stack.paths[0] in adapted for stack in stacks if stack.paths[0][-2:] in kinds)
    if kinds == {"w1", "w2", "w3"}:
        is_everywhere &= not any(module.use_rslora for module in adapted.values())
    return len(sizes) == 1 and kinds in ({"w1", "w2", "w3"}, {"w2"}) and is_everywhere


def _write_single(adapted: Adapted, stacks: Sequence[TheirExperts], written: WrittenExperts) -> None:
    for stack in stacks:
        written.others.update(stack.members)
        if (module := adapted.get(stack.paths[0])) is None:
            continue
        a, b = (layer.weight.detach().cpu() for layer in (module.lora_a, module.lora_b))
        for place, member in enumerate(stack.members):
            written.tensors.update(zip(_names(member), (a[place], b[place]), strict=True))
            written.sizes[member] = (module.rank, module.alpha)


def _write_stacked(adapted: Adapted, stacks: Sequence[TheirExperts], written: WrittenExperts) -> None:
    present = [stack for stack in stacks if any(path in adapted for path in stack.paths)]
    written.others.update(stack.name for stack in stacks)
    for stack, names in _wrapped(present):
        own = {path: adapted[path] for path in stack.paths if path in adapted}
        a = torch.cat([module.lora_a.weight.detach().cpu() for module in own.values()], 1)  # [E, sum of r, i]
        b = torch.zeros(len(a), sum(stack.rows), a.shape[1], dtype=a.dtype)
        start = 0
        for path, module in own.items():
            b[:, stack.row_slice(path), start : start + module.rank] = module.lora_b.weight.detach().cpu()
            start += module.rank
        written.tensors[names[0]] = a.flatten(0, 1)
        written.tensors[names[1]] = b.permute(1, 2, 0).flatten(1)
        written.sizes[stack.name] = fused_size(stack.name, own)
        written.parameters.add(stack.name)
        if len(stack.paths) > 1:
            written.parts[stack.name] = {path: module.rank for path, module in own.items()}
