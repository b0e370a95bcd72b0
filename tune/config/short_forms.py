"""Short forms: flat names of everyday use (`lr`) that stand for an argument of a component (`optimizer.lr`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from tune.config.component import Component
from tune.config.diagnostics import Diagnostic, Source
from tune.config.fields import ParamInfo
from tune.config.merging import name_component
from tune.config.nodes import (
    ErrorNode,
    MappingNode,
    Node,
    PythonValue,
    SequenceNode,
    default_node,
    is_null,
    with_entry,
    without_entry,
)

Report = Callable[[Diagnostic], None]


def expand_short_forms(root: MappingNode, infos: Mapping[str, ParamInfo], report: Report) -> MappingNode:
    """Move the values of short forms into the components they speak of.

    Args:
        root: the merged tree, references resolved.
        infos: the declared parameters.
        report: called with every conflict.
    """
    for info in infos.values():
        if info.short_for is None or info.name not in root.entries:
            continue
        node = root.entries[info.name]
        key_source = root.key_source(info.name)
        rest = without_entry(root, info.name)
        if is_null(node):
            root = rest
            continue
        slot, _, argument = info.short_for.partition(".")
        owner = rest.entries.get(slot)
        if owner is None:
            owner = default_node(infos[slot].default) if slot in infos else None
        given = replace(node, written=info.name)
        expanded = None if owner is None else _give(owner, argument, given, key_source, info, report)
        if expanded is None:
            # of an owner that must not be empty something is said in any case
            may_be_empty = slot not in infos or infos[slot].spec.nullable
            if may_be_empty and not isinstance(owner, ErrorNode):
                message = f"{info.name} stands for {info.short_for}, but there is no {slot} to take it"
                report(Diagnostic("no-component", info.name, message, node.source))
            root = rest
            continue
        root = with_entry(rest, slot, expanded, rest.key_source(slot))
    return root


def _give(
    owner: Node, argument: str, given: Node, key_source: Source, info: ParamInfo, report: Report
) -> Node | None:
    """`owner` with `argument` set to `given`; in a list, every component that does not set it gets it."""
    if isinstance(owner, SequenceNode):
        items = [_give(item, argument, given, key_source, info, report) for item in owner.items]
        kept = (item or old for item, old in zip(items, owner.items, strict=True))
        return replace(owner, items=tuple(kept))
    component = name_component(owner)
    if component is None:
        return None
    present = component.entries.get(argument)
    if present is None or present.source.kind == "default":
        return with_entry(component, argument, given, key_source)
    if isinstance(given, ErrorNode) or isinstance(present, ErrorNode):
        return component
    if isinstance(given, PythonValue) and isinstance(present, PythonValue) and given.value == present.value:
        return component
    if _is_stronger(given, present):
        return with_entry(component, argument, replace(given, shadows=present), key_source)
    if _is_stronger(present, given):
        return with_entry(
            component, argument, replace(present, shadows=given), component.key_source(argument)
        )
    message = (
        f"{info.name} and {info.short_for} are two spellings of one value, and both are set: "
        f"{info.name} in {given.source.describe()}, {info.short_for} in {present.source.describe()}; keep one"
    )
    later = max(given, present, key=lambda node: node.source.sort_key())
    report(Diagnostic("conflict", info.name, message, later.source))
    return component


def _is_stronger(one: Node, other: Node) -> bool:
    ranks = {"default": 0, "cli": 2}
    return ranks.get(one.source.kind, 1) > ranks.get(other.source.kind, 1)


def forget_argument(owner: Node, argument: str, old: object) -> Node:
    """Return the component, or list of them, without an argument where that still has its old value."""
    if isinstance(owner, SequenceNode):
        return replace(owner, items=tuple(forget_argument(item, argument, old) for item in owner.items))
    present = owner.entries.get(argument) if isinstance(owner, MappingNode) else None
    if isinstance(owner, MappingNode) and isinstance(present, PythonValue) and present.value == old:
        return without_entry(owner, argument)
    return owner


def read_argument(value: object, argument: str) -> object:
    """Return what a component, or each of a list of them, sets an argument to; None where it does not."""
    components = value if isinstance(value, (list, tuple)) else (value,)
    found = [item.kwargs.get(argument) for item in components if isinstance(item, Component)]
    return found[0] if found and all(item == found[0] for item in found) else None
