"""What each parameter of a resolved configuration is, and where that came from, in words."""

from __future__ import annotations

from typing import Any

from tune.cli.show import format_value
from tune.config.component import COMPONENT_KEY


def describe_values(resolution: Any) -> dict[str, str]:
    """Return for each parameter its value and origin: "2e-05 (my.yaml:7:5)"; components with their arguments."""
    described: dict[str, list[str]] = {}
    for path, resolved in resolution.values.items():
        name, _, rest = path.partition(".")
        argument = rest.removesuffix(COMPONENT_KEY).rstrip(".")
        label = f"{argument}: " if argument else ""
        text = f"{label}{format_value(resolved.value)} ({resolved.source.describe()})"
        described.setdefault(name, []).append(text)
    return {name: ", ".join(texts) for name, texts in described.items()}
