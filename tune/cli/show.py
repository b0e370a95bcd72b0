"""Parameters as a person reads them: grouped, with type, default and help, and where a value came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tune.cli.terminal import paint, section
from tune.config.component import COMPONENT_KEY, Component
from tune.config.describe import type_text
from tune.config.dump import scalar

if TYPE_CHECKING:
    from tune.config.fields import ParamInfo
    from tune.config.resolution import Resolution


def format_parameters(infos: Iterable[ParamInfo], values: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return all parameters by group.

    Args:
        infos: what is declared about them.
        values: for each name that is set, its value and where that came from, in words; a component has several.
    """
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for info in infos:
        lines = [paint(f"= {value}", "blue") for value in (values or {}).get(info.name, ())]
        first, *others = [*lines, describe_parameter(info)]
        rows = groups.setdefault(info.group, [])
        rows += [(info.name, _type_label(info), first), *(("", "", line) for line in others)]
    return "\n\n".join(section(f"{group}:", rows) for group, rows in groups.items()) + "\n"


def describe_values(resolution: Resolution[Any]) -> dict[str, list[str]]:
    """Return for each parameter that is set its value and origin: "2e-05 (config, line 7)"; components with arguments.

    What is left at its default is not listed: the default stands in the help anyway.
    """
    described: dict[str, list[str]] = {}
    for path, resolved in resolution.values.items():
        source = resolved.source
        if source.kind == "default":
            continue
        name, _, rest = path.partition(".")
        argument = rest.removesuffix(COMPONENT_KEY).rstrip(".")
        label = f"{argument}: " if argument else ""
        place = f"config, line {source.line}" if source.kind == "file" else "command line"
        shadowed = f", over {resolved.shadows}" if resolved.shadows else ""
        described.setdefault(name, []).append(f"{label}{_format_value(resolved.value)} ({place}{shadowed})")
    return described


def _type_label(info: ParamInfo) -> str:
    label = type_text(info)
    return label if len(label) <= 16 else "choice"


def describe_parameter(info: ParamInfo) -> str:
    """Return the help of a parameter, and in brackets its default, its choices and range, and what it is short for."""
    notes = []
    if info.required:
        notes.append("required")
    elif info.short_for is None:
        notes.append(f"default: {_format_value(info.default)}")
    if _type_label(info) == "choice":
        notes.append(info.spec.required().describe())
    if info.range_text():
        notes.append(info.range_text())
    if info.short_for is not None:
        notes.append(f"short for {info.short_for}")
    return f"{info.help} [{'; '.join(notes)}]"


def _format_value(value: Any) -> str:
    if not isinstance(value, Component):
        return scalar(value)
    return f"{value.path} {scalar(value.kwargs)}" if value.kwargs else value.path or "null"
