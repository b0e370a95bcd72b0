"""Writing a resolved configuration as YAML that reads back to the same parameters."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tune.config.component import COMPONENT_KEY, Component
from tune.config.diagnostics import DEFAULT, Source, printable, shorten
from tune.config.nodes import core_value
from tune.config.params import fields_of
from tune.config.references import escape

if TYPE_CHECKING:
    from tune.config.resolve import Resolution, ResolvedValue

_COMMENT_COLUMN = 50
_PLAIN = re.compile(r"[A-Za-z0-9_./\\+=@~-][A-Za-z0-9_./\\+=@~,() <>|:;-]*\Z")


def dump_params(params: Any, recipe: str | None = None, drawn: Mapping[str, Any] | None = None) -> str:
    """A params object as YAML; where `resolve` made it, with the origin of every value.

    Args:
        params: a checked params object.
        recipe: name to put into the key `recipe`.
        drawn: values that the run itself chose where a field was null, such as its seed, by field: written in
            its place, so that the file repeats this very run.
    """
    from tune.config.resolve import resolution_of

    resolution = resolution_of(params)
    recipe = recipe or (resolution.recipe if resolution else None)
    return _dump(params, recipe, resolution, drawn or {})


def log_config(recipe_name: str, params: Any, logger: logging.Logger | None = None) -> None:
    """Log every parameter of a run with its value and, where it is known, its origin.

    Args:
        recipe_name: the recipe that runs.
        params: its params object.
        logger: where to; None means the logger "tune".
    """
    target = logger if logger is not None else logging.getLogger("tune")
    target.info("Running %s with the resolved configuration:\n\n%s", recipe_name, dump_params(params))


def dump_resolution(resolution: Resolution[Any]) -> str:
    """See `Resolution.dump`."""
    if resolution.params is None:
        raise ValueError("a configuration with errors has no resolved form")
    return _dump(resolution.params, resolution.recipe, resolution, {})


def flatten(resolution: Resolution[Any]) -> dict[str, ResolvedValue]:
    """See `Resolution.values`."""
    from tune.config.convert import REFUSED, shadowed
    from tune.config.resolve import ResolvedValue

    flat: dict[str, ResolvedValue] = {}
    shorts = {info.name: info.short_for or "" for info in fields_of(type(resolution.params)).values()}
    for name, value in resolution.checked.values.items():
        if value is REFUSED:
            continue
        for path, leaf in _leaves(name, value):
            node = resolution.places.get(path) or resolution.places.get(shorts.get(path, ""))
            if node is None and path != name and not path.endswith(COMPONENT_KEY):
                node = resolution.places.get(name)
            source = DEFAULT if node is None else node.source
            flat[path] = ResolvedValue(leaf, source, None if node is None else shadowed(node))
    return flat


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Component):
        if not value:
            return
        yield f"{path}.{COMPONENT_KEY}", value.path
        for key, item in value.kwargs.items():
            yield from _leaves(f"{path}.{key}", item)
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (Component, Mapping)) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(f"{path}.{index}", item)
    else:
        yield path, value


def _dump(
    params: Any, recipe: str | None, resolution: Resolution[Any] | None, drawn: Mapping[str, Any]
) -> str:
    lines: list[str] = []
    if recipe:
        lines.append(f"recipe: {scalar(recipe)}")
    group = None
    for info in fields_of(type(params)).values():
        value = getattr(params, info.name)
        if info.short_for:  # its component says it
            continue
        if isinstance(value, Component) and not value:
            continue
        if info.group != group:
            group = info.group
            lines += ["", f"# {group}"]
        if info.name in drawn and value is None:
            entry = f"{info.name}: {scalar(drawn[info.name])}"
            lines.append(f"{entry.ljust(_COMMENT_COLUMN)}  # drawn by this run")
            continue
        lines += _entry(info.name, value, 0, info.name, resolution)
    return "\n".join(lines).lstrip("\n") + "\n"


def _entry(key: str, value: Any, indent: int, path: str, resolution: Resolution[Any] | None) -> list[str]:
    """The lines of `key: value`, with the origin of what is a leaf."""
    pad = " " * indent
    name = _text(key)
    if isinstance(value, Component):
        value = {COMPONENT_KEY: value.path, **value.kwargs}
    if isinstance(value, Mapping) and value:
        lines = [f"{pad}{name}:"]
        for inner, item in value.items():
            lines += _entry(str(inner), item, indent + 2, f"{path}.{inner}", resolution)
        return lines
    if isinstance(value, (list, tuple)) and any(isinstance(item, (Component, Mapping)) for item in value):
        lines = [f"{pad}{name}:"]
        for index, item in enumerate(value):
            lines += _item(item, indent + 2, f"{path}.{index}", resolution)
        return lines
    return [_commented(f"{pad}{name}: {scalar(value)}", path, resolution)]


def _item(value: Any, indent: int, path: str, resolution: Resolution[Any] | None) -> list[str]:
    if isinstance(value, Component):
        value = {COMPONENT_KEY: value.path, **value.kwargs}
    pad = " " * indent
    if not isinstance(value, Mapping) or not value:
        return [_commented(f"{pad}- {scalar(value)}", path, resolution)]
    lines: list[str] = []
    for key, item in value.items():
        lines += _entry(str(key), item, indent + 2, f"{path}.{key}", resolution)
    lines[0] = pad + "- " + lines[0].lstrip(" ")
    return lines


def _commented(line: str, path: str, resolution: Resolution[Any] | None) -> str:
    if resolution is None:
        return line
    return f"{line.ljust(_COMMENT_COLUMN)}  # {_origin(path, resolution)}"


def _origin(path: str, resolution: Resolution[Any]) -> str:
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        node = resolution.places.get(".".join(parts[:length]))
        if node is not None:
            return _describe(node.source)
        if parts[length - 1] == COMPONENT_KEY:
            # the component itself is a default even where some of its arguments are set
            whole = resolution.places.get(".".join(parts[: length - 1]))
            return _describe(whole.source) if whole is not None else "default"
    return "default"


def _describe(source: Source) -> str:
    if source.kind == "file":
        return f"{printable(source.file)}:{source.line}"
    if source.kind == "cli":
        return "command line: " + shorten(printable(source.arg), 60)
    return source.kind


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
