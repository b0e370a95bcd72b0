"""Putting the command line on top of the file: replacing, adding to and removing parts of the tree."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from tune.config.component import COMPONENT_KEY
from tune.config.diagnostics import Diagnostic, quote
from tune.config.fields import ParamInfo, other_spelling
from tune.config.nodes import (
    ErrorNode,
    MappingNode,
    Node,
    PythonValue,
    Scalar,
    SequenceNode,
    child,
    default_node,
    is_null,
    with_entry,
    without_entry,
)
from tune.config.overrides import Edit
from tune.config.suggestions import nearest


class _Refusal(Exception):
    """An edit that cannot be made."""

    def __init__(
        self, code: str, message: str, suggestion: str | None = None, severity: str = "error"
    ) -> None:
        super().__init__(message)
        self.code = code
        self.suggestion = suggestion
        self.severity = severity

    def about(self, edit: Edit) -> Diagnostic:
        place = edit.key_source()
        return Diagnostic(self.code, edit.dotted, str(self), place, self.suggestion, severity=self.severity)


def name_component(node: Node) -> MappingNode | None:
    """The mapping form of a component; None for what is not one (null, a list)."""
    if isinstance(node, MappingNode):
        return node
    if isinstance(node, ErrorNode) or is_null(node):
        return None
    if isinstance(node, Scalar) and node.text:
        return MappingNode(node.source, {COMPONENT_KEY: node}, shadows=node.shadows, written=node.written)
    if isinstance(node, PythonValue) and node.value:
        return MappingNode(node.source, {COMPONENT_KEY: node})
    return None


def apply_edits(
    root: MappingNode,
    edits: Sequence[Edit],
    infos: Mapping[str, ParamInfo],
    report: Callable[[Diagnostic], None],
) -> MappingNode:
    """Return a tree with edits made; the tree itself is left as it is.

    Removals come first, as they speak of what the file says; then values, whole components before their
    arguments, so that the order on the command line matters only between two values for the same place.

    Args:
        root: the file's tree.
        edits: from the command line.
        infos: the declared parameters; empty where none are known.
        report: called with every edit that cannot be made, and with what is lost by one.
    """
    removals = [edit for edit in edits if edit.node is None]
    values = sorted((edit for edit in edits if edit.node is not None), key=lambda edit: len(edit.path))
    replaced = {edit.path for edit in values if _slot_of(edit.path, infos)}
    seen: dict[tuple[str, ...], Edit] = {}

    def repeated(edit: Edit, fact: str) -> Diagnostic:
        message = f"{edit.dotted} {fact}"
        return Diagnostic("repeated-override", edit.dotted, message, edit.source, severity="warning")

    def depth_and_place(edit: Edit) -> tuple[int, list[tuple[int, str]]]:
        return len(edit.path), [(int(part) if part.isdecimal() else -1, part) for part in edit.path]

    # deepest and last first, so that removing list items does not move those still to be removed
    for edit in sorted(removals, key=depth_and_place, reverse=True):
        if edit.path in seen:
            report(repeated(edit, "is removed twice on the command line; once is enough"))
            continue
        seen[edit.path] = edit
        try:
            root = _remove(root, edit, infos, replaced)
        except _Refusal as refusal:
            report(refusal.about(edit))
    seen.clear()
    for edit in values:
        if edit.path in seen:
            report(repeated(seen[edit.path], "is set twice on the command line; the last value counts"))
        elif (dropped := _dropped(root, edit, infos)) is not None:
            report(dropped)
        seen[edit.path] = edit
        try:
            root = _set(root, edit, infos)
        except _Refusal as refusal:
            if refusal.code:
                report(refusal.about(edit))
    return root


def _slot_of(path: Sequence[str], infos: Mapping[str, ParamInfo]) -> bool:
    """Whether `path` is a component: a slot, or an item of a slot that holds a list."""
    info = infos.get(path[0])
    if info is None or info.slot is None:
        return False
    return len(path) == 1 or (len(path) == 2 and path[1].isdecimal())


def _at(root: MappingNode, path: Sequence[str]) -> Node | None:
    node: Node | None = root
    for part in path:
        node = child(node, part)
    return node


def _dropped(root: MappingNode, edit: Edit, infos: Mapping[str, ParamInfo]) -> Diagnostic | None:
    """Which arguments go when a whole component is replaced, if any do."""
    if not _slot_of(edit.path, infos) or isinstance(edit.node, ErrorNode):
        return None
    old = _at(root, edit.path)
    kept = set(edit.node.entries) if isinstance(edit.node, MappingNode) else set()
    dropped: list[str] = []
    if isinstance(old, SequenceNode) and not isinstance(edit.node, SequenceNode):
        dropped = [f"a list of {len(old.items)}"]
    elif isinstance(old, MappingNode):
        dropped = [key for key in old.entries if key not in kept and key != COMPONENT_KEY]
    if not dropped:
        return None
    name = edit.dotted
    message = f"{name} is replaced as a whole, which drops {', '.join(dropped)}"
    suggestion = None
    if isinstance(edit.node, Scalar) and isinstance(old, MappingNode) and not is_null(edit.node):
        message += f"; {name}.{COMPONENT_KEY}=... would keep what the file sets"
        suggestion = f"{name}.{COMPONENT_KEY}={edit.node.text}"
    return Diagnostic("dropped-arguments", name, message, edit.key_source(), suggestion, severity="warning")


def _set(root: MappingNode, edit: Edit, infos: Mapping[str, ParamInfo]) -> MappingNode:
    name = edit.path[0]
    if len(edit.path) > 1 and name not in root.entries and name in infos:
        default = default_node(infos[name].default)
        root = with_entry(root, name, default, default.source)
    made = _put(root, edit, 0, infos)
    if not isinstance(made, MappingNode):
        raise AssertionError("the root of a configuration stays a mapping")
    return made


def _put(node: Node, edit: Edit, depth: int, infos: Mapping[str, ParamInfo]) -> Node:
    """`node`, which stands at the first `depth` parts of the edit's path, with the edit made."""
    if edit.node is None or depth == len(edit.path):
        value = edit.node
        if value is None:
            raise AssertionError("removals do not come here")
        return value if isinstance(node, ErrorNode) else replace(value, shadows=node)
    here, part = edit.path[:depth], edit.path[depth]
    if depth and _slot_of(here, infos) and not isinstance(node, (MappingNode, SequenceNode)):
        component = name_component(node)
        if component is None and isinstance(node, ErrorNode):
            return node
        if component is None and part != COMPONENT_KEY and not (depth == 1 and infos[here[0]].inherits):
            if infos[here[0]].required and isinstance(node, PythonValue):
                raise _Refusal("", "")  # that the component is missing is said anyway
            message = (
                f"{'.'.join(here)} holds no component that could take {part}; "
                f"set {'.'.join(here)}.{COMPONENT_KEY} as well"
            )
            raise _Refusal("no-component", message)
        node = component or MappingNode(edit.source)
    if isinstance(node, MappingNode):
        old = node.entries.get(part)
        last = depth + 1 == len(edit.path)
        if old is None:
            if last and edit.node is not None:
                return with_entry(node, part, edit.node, edit.key_source(depth))
            old = MappingNode(edit.source)
        return with_entry(node, part, _put(old, edit, depth + 1, infos), edit.key_source(depth))
    if isinstance(node, SequenceNode):
        if child(node, part) is None:
            raise _no_item(node, part, ".".join(here))
        items = list(node.items)
        items[int(part)] = _put(items[int(part)], edit, depth + 1, infos)
        return replace(node, items=tuple(items))
    if isinstance(node, ErrorNode):
        return node
    raise _Refusal("no-such-place", f"{'.'.join(here)} is a single value and has no part {quote(part)}")


def _no_item(node: SequenceNode, part: str, path: str) -> _Refusal:
    count = f"it has {len(node.items)} item{'s' if len(node.items) != 1 else ''}"
    if part.isdecimal() and len(part) <= 9:
        return _Refusal("no-such-place", f"{path} has no item {part}: {count}, counted from 0")
    message = f"{path} is a list, so a number has to follow, not {quote(part)}; {count}"
    return _Refusal("no-such-place", message)


def _remove(
    root: MappingNode, edit: Edit, infos: Mapping[str, ParamInfo], replaced: Collection[tuple[str, ...]]
) -> MappingNode:
    path = edit.path
    if _at(root, path) is None:
        # the same value may stand in its other spelling
        path = tuple((other_spelling(edit.dotted, infos) or edit.dotted).split("."))
    if _at(root, path) is None:
        _refuse_removal(root, edit, infos, replaced)
    made = _cut(root, path)
    return made if isinstance(made, MappingNode) else root


def _cut(node: Node, path: Sequence[str]) -> Node:
    part = path[0]
    if isinstance(node, MappingNode):
        if len(path) == 1:
            return without_entry(node, part)
        return with_entry(node, part, _cut(node.entries[part], path[1:]), node.key_source(part))
    if isinstance(node, SequenceNode):
        items = list(node.items)
        if len(path) == 1:
            del items[int(part)]
        else:
            items[int(part)] = _cut(items[int(part)], path[1:])
        return replace(node, items=tuple(items))
    return node


def _refuse_removal(
    root: MappingNode, edit: Edit, infos: Mapping[str, ParamInfo], replaced: Collection[tuple[str, ...]]
) -> None:
    slot = edit.path[:-1]
    if slot in replaced and _takes(root, slot, edit.path[-1], infos):
        # `optimizer=X ~optimizer.foreach` beside an AdamW whose foreach was never written down: it goes with AdamW
        message = f"{edit.dotted} is not set in the file, and {'.'.join(slot)} is replaced as a whole"
        raise _Refusal("nothing-to-remove", message, severity="warning")
    parent = _at(root, edit.path[:-1])
    present = list(parent.entries) if isinstance(parent, MappingNode) else []
    close = nearest(edit.path[-1], present)
    message = f"{edit.dotted} cannot be removed: it is not set in the file"
    if len(edit.path) == 1 and edit.dotted in infos and not infos[edit.dotted].required:
        message += ", it has its default already"
    suggestion = "~" + ".".join([*edit.path[:-1], close]) if close else None
    raise _Refusal("nothing-to-remove", message, suggestion)


def _takes(root: MappingNode, slot: tuple[str, ...], argument: str, infos: Mapping[str, ParamInfo]) -> bool:
    """Whether the component at `slot`, before the command line, has this argument, at its default."""
    info = infos[slot[0]]
    component = name_component(_at(root, slot) or default_node(info.default))
    name = component.entries.get(COMPONENT_KEY) if component else None
    text = name.text if isinstance(name, Scalar) else name.value if isinstance(name, PythonValue) else None
    from tune.config.component_check import resolve_component  # only on the way to a warning or an error

    signature = resolve_component(text, info.slot).signature if isinstance(text, str) else None
    return signature is not None and argument in signature.parameters
