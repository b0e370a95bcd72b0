"""Parameters as a person reads them: grouped, with type, default and help, and where a value came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tune.cli.terminal import columns, paint
from tune.config.component import Component
from tune.config.params import ParamInfo


def format_parameters(infos: Iterable[ParamInfo], values: Mapping[str, str] | None = None) -> str:
    """Return all parameters by group.

    Args:
        infos: what is declared about them.
        values: for each name, its value and where that came from, in words; None to leave those out.
    """
    groups: dict[str, list[ParamInfo]] = {}
    for info in infos:
        if not info.hidden:
            groups.setdefault(info.group, []).append(info)
    parts = []
    for group, members in groups.items():
        rows = []
        for info in members:
            text = f"{info.help} {_note(info)}".strip()
            if values is not None and info.name in values:
                text = f"= {values[info.name]}. {text}"
            rows.append((info.name, type_label(info), text))
        parts.append(f"{paint(group + ':', 'bold')}\n{columns(rows)}")
    return "\n\n".join(parts) + "\n"


def type_label(info: ParamInfo) -> str:
    """Return the type in a few characters: "int", "bf16|fp32", "optimizer"."""
    if info.slot is not None:
        return info.slot.kind
    label = info.spec.required().short()
    return label.replace("literal", "")


def _note(info: ParamInfo) -> str:
    notes = []
    if info.required:
        notes.append("required")
    elif info.short_for is None:
        notes.append(f"default: {format_value(info.default)}")
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
