"""A checkpoint and a model, compared name by name before a value is read: every misfit in one error."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from tune.checkpoints.mapping import Shapes, StoredWeights, stored_shape
from tune.checkpoints.weights import WeightSource
from tune.errors import CheckpointError
from tune.modules import DecoderConfig, Family, Layout, WeightRule

_MAX_LINES = 40  # of one kind of misfit; a folder of another kind may hold any number of tensors
_MAX_NAME = 300  # characters


def match_weights(
    source: WeightSource, family: Family, config: DecoderConfig, shapes: Shapes
) -> tuple[Layout, StoredWeights]:
    """Return a checkpoint's layout, and its weights as the model's.

    Args:
        source: from `open_weights`.
        family: the model's.
        config: its sizes.
        shapes: of its parameters.

    Raises:
        CheckpointError: tensors are missing, unknown, misshapen or of an unsupported type (all are listed), a tied
            matrix is stored twice with different values, or the checkpoint is of another family.
    """
    layout = find_layout(family, source)
    tensors = list(layout.expand(config, list(shapes)))
    _compare(shapes, tensors, source, layout, config)
    if config.tie_word_embeddings and layout.tied_output in source:
        _check_tied(tensors, source, layout)
    return layout, StoredWeights(source, layout, config, shapes)


def find_layout(family: Family, source: WeightSource) -> Layout:
    """Return the family's layout that a checkpoint is in, or raise CheckpointError."""
    # The embedding and the final norm stand in every checkpoint, and are named differently in every layout.
    for layout in family.layouts:
        if any("{}" not in rule.theirs and rule.theirs in source for rule in _telling(layout, family)):
            return layout
    # Layouts may differ in a block's names alone, and not every block has what differs.
    for rules_of in (_telling, lambda layout, family: layout.rules):
        for layout in family.layouts:
            if any(_is_held(rule.theirs, source) for rule in rules_of(layout, family)):
                return layout
    seen = ", ".join(name[:_MAX_NAME] for name in sorted(source)[:4])
    firsts = dict.fromkeys(f"{layout.rules[0].theirs} ({layout.name})" for layout in family.layouts)
    wanted = " or ".join(firsts)
    raise CheckpointError(
        f"{source.path} holds no weights of the {family.name} family: its tensors are named {seen or 'nothing'}, ..., "
        f"where {wanted} is expected"
    )


def _is_held(theirs: str, source: WeightSource) -> bool:
    pattern = re.compile(r"\d+".join(map(re.escape, theirs.split("{}"))))
    return any(pattern.fullmatch(name) for name in source)


def _telling(layout: Layout, family: Family) -> list[WeightRule]:
    others = {rule.theirs for other in family.layouts if other is not layout for rule in other.rules}
    return [rule for rule in layout.rules if rule.theirs not in others]


def _compare(
    shapes: Shapes,
    tensors: list[tuple[WeightRule, ...]],
    source: WeightSource,
    layout: Layout,
    config: DecoderConfig,
) -> None:
    missing, misshapen, untyped = [], [], []
    for rules in tensors:
        name = rules[0].theirs
        shape = list(stored_shape(rules, shapes))
        info = source.infos.get(name)
        if info is None:
            missing.append((name, f"the model needs {shape}"))
            continue
        if list(info.shape) != shape:
            misshapen.append((name, f"{list(info.shape)} in the file, {shape} in the model"))
        if isinstance(info.dtype, str):
            untyped.append((name, f"stored as {info.dtype}; only fp64, fp32, fp16 and bf16 are read"))
    expected = {rules[0].theirs for rules in tensors} | (
        {layout.tied_output} if config.tie_word_embeddings else set()
    )
    known = (*layout.ignored, *layout.all_carried(config))
    unknown = [
        (name, f"{list(source.infos[name].shape)} in the file")
        for name in source
        if name not in expected and not any(fnmatchcase(name, pattern) for pattern in known)
    ]
    unmapped = [(name, "a parameter that checkpoints of this family do not hold") for name in shapes]
    mapped = {rule.ours for rules in tensors for rule in rules}
    unmapped = [entry for entry in unmapped if entry[0] not in mapped]
    sections = [
        ("missing from the checkpoint", missing),
        ("of another shape", misshapen),
        ("unknown to the model", unknown),
        ("of an unsupported type", untyped),
        ("in the model alone", unmapped),
    ]
    if not any(entries for _, entries in sections):
        return
    lines = [f"the weights in {source.path} ({layout.name} layout) do not fit the model; nothing was loaded."]
    for title, entries in sections:
        if entries:
            lines.append(f"  {title} ({len(entries)}):")
            lines.extend(f"    {line}" for line in _fold_layers(entries))
    if [name for name, _ in missing] == [layout.tied_output]:
        lines.append("  The checkpoint may tie its output matrix to the embedding: set tie_word_embeddings.")
    raise CheckpointError("\n".join(lines))


def _fold_layers(entries: Iterable[tuple[str, str]]) -> list[str]:
    """Return one line per (name, fact), where names that differ in one layer number share a line."""
    groups: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for name, fact in entries:
        match = re.search(r"\.(\d+)\.", name)
        pattern = name if match is None else f"{name[: match.start()]}.{{}}.{name[match.end() :]}"
        groups[pattern, fact].append((-1 if match is None else int(match[1]), name))
    lines = []
    for (pattern, fact), members in list(groups.items())[:_MAX_LINES]:
        if len(members) == 1:
            lines.append(f"{members[0][1][:_MAX_NAME]}: {fact[:_MAX_NAME]}")
        else:
            numbers = _ranges([number for number, _ in members])
            lines.append(f"{pattern[:_MAX_NAME].replace('{}', numbers[:_MAX_NAME])}: {fact[:_MAX_NAME]}")
    if len(groups) > _MAX_LINES:
        lines.append(f"... and {len(groups) - _MAX_LINES} more")
    return lines


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) + "}"


def _check_tied(tensors: list[tuple[WeightRule, ...]], source: WeightSource, layout: Layout) -> None:
    embedding = next(rules[0].theirs for rules in tensors if rules[0].ours == "tok_embeddings.weight")
    if not same_bits(source.read(embedding), source.read(layout.tied_output)):
        raise CheckpointError(
            f"{source.path} holds {layout.tied_output} with other values than {embedding}, and the model ties the "
            "two: set tie_word_embeddings to false, in config.json or in the model"
        )


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same to the bit, where comparing numbers takes 0 for -0 and NaN for nothing."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[first.dtype.itemsize]
    return torch.equal(first.contiguous().view(whole), second.contiguous().view(whole))
