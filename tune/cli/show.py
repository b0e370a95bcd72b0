"""Parameters as a person reads them: grouped, with type, default and help, and where a value came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tune.cli.terminal import columns, paint
from tune.config.component import Component
from tune.config.params import ParamInfo


def format_parameters(infos: Iterable[ParamInfo], values: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return all parameters by group.

    Args:
        infos: what is declared about them.
        values: for each name that is set, its value and where that came from, in words; a component has several.
    """
    groups: dict[str, list[ParamInfo]] = {}
    for info in infos:
        groups.setdefault(info.group, []).append(info)
    parts = []
    for group, members in groups.items():
        rows = [(info.name, type_label(info), f"{info.help} {_note(info)}".strip()) for info in members]
        if values is not None:
            rows = [
                row for info, row in zip(members, rows) for row in _with_value(row, values.get(info.name, []))
            ]
        parts.append(f"{paint(group + ':', 'bold')}\n{columns(rows)}")
    return "\n\n".join(parts) + "\n"


def _with_value(row: tuple[str, str, str], values: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return the row of a parameter with its value (or a component's values) on lines of their own before the help."""
    name, label, text = row
    lines = [("", "", paint(f"= {value}", "blue")) for value in values]
    return [(name, label, lines[0][2]), *lines[1:], ("", "", text)] if lines else [row]


def type_label(info: ParamInfo) -> str:
    """Return the type in a few characters: "int", "bf16|fp32", "optimizer"."""
    if info.slot is not None:
        return info.slot.kind
    label = info.spec.required().short()
    return label if len(label) <= 16 else "choice"


def _note(info: ParamInfo) -> str:
    notes = []
    if info.required:
        notes.append("required")
    elif info.short_for is None:
        notes.append(f"default: {format_value(info.default)}")
    if type_label(info) == "choice":
        notes.append(info.spec.required().describe())
    if info.range_text():
        notes.append(info.range_text())
    if info.short_for is not None:
        notes.append(f"short for {info.short_for}")
    return f"[{'; '.join(notes)}]"


def format_value(value: Any) -> str:
    """Return a value as a config would write it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Component):
        arguments = ", ".join(f"{name}: {format_value(item)}" for name, item in value.kwargs.items())
        return f"{value.path} {{{arguments}}}" if arguments else value.path or "null"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {format_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    if isinstance(value, str):
        return value if value and value.isprintable() else repr(value)
    return str(value)
