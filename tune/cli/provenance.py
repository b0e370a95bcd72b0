"""What each parameter of a resolved configuration is, and where that came from, in words."""

from __future__ import annotations

from typing import Any

from tune.cli.show import format_value
from tune.config.component import COMPONENT_KEY
from tune.config.diagnostics import Source


def describe_values(resolution: Any) -> dict[str, list[str]]:
    """Return for each parameter that is set its value and origin: "2e-05 (config, line 7)"; components with arguments.

    What is left at its default is not listed: the default stands in the help anyway.
    """
    described: dict[str, list[str]] = {}
    for path, resolved in resolution.values.items():
        if resolved.source.kind == "default":
            continue
        name, _, rest = path.partition(".")
        argument = rest.removesuffix(COMPONENT_KEY).rstrip(".")
        label = f"{argument}: " if argument else ""
        shadowed = f", over {resolved.shadows}" if resolved.shadows else ""
        text = f"{label}{format_value(resolved.value)} ({_place(resolved.source)}{shadowed})"
        described.setdefault(name, []).append(text)
    return described


def _place(source: Source) -> str:
    return f"config, line {source.line}" if source.kind == "file" else "command line"
