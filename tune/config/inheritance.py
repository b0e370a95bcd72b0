"""Fields that hold a component like another field's: what a mapping leaves out there, the other one says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from tune.config.component import COMPONENT_KEY
from tune.config.diagnostics import Diagnostic
from tune.config.fields import ParamInfo
from tune.config.merging import name_component
from tune.config.nodes import ErrorNode, MappingNode, SequenceNode, default_node, with_entry

# Where rows are, as opposed to what they mean: another source has its own.
_SOURCE = "source"
_PLACES = (_SOURCE, "split", "data_files", "name", "revision", "limit")


def fill_inherited(
    root: MappingNode, infos: Mapping[str, ParamInfo], report: Callable[[Diagnostic], None]
) -> MappingNode:
    """Give the mappings without a `_component_` that of the field they inherit from, and its arguments.

    Where a mapping names a source of its own, nothing that says where the other one's rows are goes along.

    Args:
        root: the merged tree, short forms expanded.
        infos: the declared parameters.
        report: called with every mapping that cannot be filled.
    """
    for info in infos.values():
        own = root.entries.get(info.name)
        if info.inherits is None or not isinstance(own, MappingNode) or COMPONENT_KEY in own.entries:
            continue
        owner = root.entries.get(info.inherits) or default_node(infos[info.inherits].default)
        if isinstance(owner, SequenceNode):
            message = (
                f"{info.name} has no {COMPONENT_KEY}, and {info.inherits} is a list, of which none can stand for it: "
                f"add {info.name}.{COMPONENT_KEY}"
            )
            report(Diagnostic("missing-component-name", info.name, message, own.source))
            root = with_entry(root, info.name, ErrorNode(own.source), root.key_source(info.name))
            continue
        other = name_component(owner)
        if other is None or COMPONENT_KEY not in other.entries:
            continue  # which is said of the other one
        said_to_recipe = info.slot.of_recipe if info.slot is not None else ()  # about that one field
        left_out = (*said_to_recipe, *(_PLACES if _SOURCE in own.entries else ()))
        filled = own
        for key, node in other.entries.items():
            if key not in own.entries and key not in left_out:
                handed_on = replace(node, shadows=None, written=None)
                filled = with_entry(filled, key, handed_on, other.key_source(key))
        root = with_entry(root, info.name, filled, root.key_source(info.name))
    return root


def without_inherited(found: list[Diagnostic], infos: Mapping[str, ParamInfo]) -> list[Diagnostic]:
    """Return problems without those that are another field's, said again of what was inherited from it."""
    said = {(item.code, item.path, item.source) for item in found}
    heirs = {info.name: info.inherits for info in infos.values() if info.inherits}

    def is_repeated(item: Diagnostic) -> bool:
        head, dot, rest = item.path.partition(".")
        return head in heirs and (item.code, f"{heirs[head]}{dot}{rest}", item.source) in said

    return [item for item in found if not is_repeated(item)]
