"""The settings of a run, read from the config.yaml that it wrote, each with what is said of its origin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import yaml

from tune.utils.secret_masking import MASK, is_secret_name, mask_text

__all__ = ["Setting", "changed_settings", "differing_settings", "read_settings"]

_MAX_TEXT = 500_000
_MAX_SETTINGS = 2000
_MAX_DEPTH = 20
_DEFAULT = "default"


@dataclass(frozen=True)
class Setting:
    """One value of a configuration; what is secret is masked.

    Args:
        name: dotted path.
        value: as it is written.
        origin: where it was set: a file and line, the command line, "default"; "" where that is not known.
    """

    name: str
    value: str
    origin: str


def read_settings(text: str) -> list[Setting]:
    """Return the values of a configuration that a run wrote, in their order; none where it cannot be read."""
    if len(text) > _MAX_TEXT:
        return []
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return []
    found: list[Setting] = []
    for name, node in _leaves(root, (), 0):
        if len(found) == _MAX_SETTINGS:
            break
        value = text[node.start_mark.index : node.end_mark.index].strip()
        comment = text[node.end_mark.index :].partition("\n")[0].partition("#")[2].strip()
        hidden = any(is_secret_name(part) for part in name) and value not in ("null", "")
        found.append(
            Setting(
                ".".join(name), MASK if hidden else mask_text(value), MASK if hidden else mask_text(comment)
            )
        )
    return found


def changed_settings(settings: Sequence[Setting]) -> list[Setting]:
    """Return those that were set by somebody; all that say something where it is not known who set what."""
    if any(setting.origin for setting in settings):
        return [setting for setting in settings if setting.origin not in ("", _DEFAULT)]
    return [setting for setting in settings if setting.value not in ("null", "[]", "{}")]


def differing_settings(runs: Sequence[Sequence[Setting]]) -> list[tuple[str, list[str]]]:
    """Return the names of settings that are not the same in all runs, each with its value in each; "" for none."""
    tables = [{setting.name: setting.value for setting in settings} for settings in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = [(name, [table.get(name, "") for table in tables]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _leaves(
    node: yaml.Node | None, name: tuple[str, ...], depth: int
) -> Iterator[tuple[tuple[str, ...], yaml.Node]]:
    if depth > _MAX_DEPTH or node is None:
        return
    if isinstance(node, yaml.MappingNode) and node.value and not node.flow_style:
        for key, item in node.value:
            yield from _leaves(item, (*name, str(key.value)[:200]), depth + 1)
    elif isinstance(node, yaml.SequenceNode) and node.value and not node.flow_style:
        for index, item in enumerate(node.value):
            yield from _leaves(item, (*name, str(index)), depth + 1)
    elif name:
        yield name, node
