"""Writing a params object as YAML that reads back to the same parameters."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tune.config.component import COMPONENT_KEY, Component
from tune.config.fields import fields_of
from tune.config.nodes import Node, core_value
from tune.config.references import escape

Places = Mapping[str, Node]

_COMMENT_COLUMN = 50
_PLAIN = re.compile(r"[A-Za-z0-9_./\\+=@~-][A-Za-z0-9_./\\+=@~,() <>|:;-]*\Z")


def write_params(
    params: Any,
    recipe: str | None = None,
    places: Places | None = None,
    drawn: Mapping[str, Any] | None = None,
) -> str:
    """Return a params object as YAML.

    Args:
        params: a checked params object. What its `decided_elsewhere()` names, if it has that, must not be set: it
            becomes a comment.
        recipe: name to put into the key `recipe`.
        places: the node that each value came from, by dotted path, to be said behind it.
        drawn: values that the run itself chose where a field was null, by field.
    """
    lines: list[str] = []
    if recipe:
        lines.append(f"recipe: {scalar(recipe)}")
    group = None
    elsewhere = params.decided_elsewhere() if hasattr(params, "decided_elsewhere") else {}
    infos = list(fields_of(type(params)).values())
    groups = list(
        dict.fromkeys(info.group for info in infos)
    )  # a recipe's own fields stand behind those it shares
    for info in sorted(infos, key=lambda info: groups.index(info.group)):
        value = getattr(params, info.name)
        if info.short_for:  # its component says it
            continue
        if isinstance(value, Component) and not value:
            continue
        if info.group != group:
            group = info.group
            lines += ["", f"# {group}"]
        if info.name in elsewhere:
            lines.append(f"# {info.name}: {elsewhere[info.name]}")
            continue
        if drawn and info.name in drawn and value is None:
            entry = f"{info.name}: {scalar(drawn[info.name])}"
            lines.append(f"{entry.ljust(_COMMENT_COLUMN)}  # drawn by this run")
            continue
        lines += _lines(f"{info.name}:", value, 0, info.name, places)
    return "\n".join(lines).lstrip("\n") + "\n"


def _lines(head: str, value: Any, indent: int, path: str, places: Places | None) -> list[str]:
    """The lines of a value behind `head`, "name:" or "-", with the origin of what is a leaf."""
    pad = " " * indent
    if isinstance(value, Component):
        value = {COMPONENT_KEY: value.path, **value.kwargs}
    inner: list[tuple[str, Any, str]] = []
    if isinstance(value, Mapping):
        inner = [(f"{_text(str(key))}:", item, f"{path}.{key}") for key, item in value.items()]
    elif (
        head != "-"
        and isinstance(value, (list, tuple))
        and any(isinstance(item, (Component, Mapping)) for item in value)
    ):
        inner = [("-", item, f"{path}.{index}") for index, item in enumerate(value)]
    if not inner:
        return [_commented(f"{pad}{head} {scalar(value)}", path, places)]
    lines = [line for name, item, where in inner for line in _lines(name, item, indent + 2, where, places)]
    return [f"{pad}- {lines[0].lstrip(' ')}", *lines[1:]] if head == "-" else [pad + head, *lines]


def _commented(line: str, path: str, places: Places | None) -> str:
    if places is None:
        return line
    node = find_origin(path, places)
    origin = "default" if node is None else replace(node.source, col=None).describe()
    return f"{line.ljust(_COMMENT_COLUMN)}  # {origin}"


def find_origin(path: str, places: Places) -> Node | None:
    """Return the node that the value at `path` came from, or came with; None for a default."""
    while path and path not in places:
        path, _, last = path.rpartition(".")
        if last == COMPONENT_KEY:  # it is a default even where some arguments of the component are set
            break
    return places.get(path)


def scalar(value: Any) -> str:
    """A leaf as YAML that reads back as the same value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Component):
        value = value.to_mapping()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(scalar(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(str(key))}: {scalar(item)}" for key, item in value.items()) + "}"
    return _text(escape(str(value) if isinstance(value, (str, os.PathLike)) else repr(value)))


def _text(written: str) -> str:
    """A text that reads back as it stands; keys are never searched for references, so nothing is escaped here."""
    is_plain = (
        _PLAIN.match(written)
        and isinstance(core_value(written), str)
        and ": " not in written
        and not any(mark in written for mark in (", ", ",", " #", "${"))
        and not written.endswith((":", " "))
        and not written.startswith(("- ", "? ", "---", "=", "<<", "-", "@", "~"))
    )
    if is_plain:
        return written
    # JSON's escapes are YAML's; characters beyond ASCII stay readable unless a terminal or YAML minds them
    import json

    quoted = json.dumps(written, ensure_ascii=False)
    return re.sub(
        "[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]", lambda m: f"\\u{ord(m.group()):04x}", quoted
    )
