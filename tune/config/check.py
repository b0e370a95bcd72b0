"""Checking a whole configuration tree against the declared parameters: every problem, each at its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tune.config.component import Component
from tune.config.component_values import ComponentChecker
from tune.config.diagnostics import Diagnostic, Source, quote
from tune.config.fields import ParamInfo, note_given, other_spelling
from tune.config.inheritance import fill_inherited
from tune.config.nodes import (
    MAX_GUESSES,
    MappingNode,
    Node,
    PythonValue,
    Scalar,
    SequenceNode,
    default_node,
)
from tune.config.scalars import REFUSED
from tune.config.short_forms import expand_short_forms, read_argument
from tune.config.suggestions import add, amend, find_there, guess_parameter
from tune.config.torchtune_compat import expand_torchtune_forms

RECIPE_KEY = "recipe"


@dataclass
class Checked:
    """A configuration, checked.

    Args:
        values: the typed value of every field; `REFUSED` where it is not usable.
        places: the node each value came from, by dotted path; what has its declared default is not in it.
        bad: dotted names about which something has been said already.
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Node] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)


def check_tree(
    root: MappingNode,
    infos: Mapping[str, ParamInfo],
    report: Callable[[Diagnostic], None],
    *,
    whole: Source,
    complete: bool = True,
) -> Checked:
    """Type and check every value of a tree.

    Args:
        root: merged, references resolved.
        infos: the declared parameters.
        report: called with every problem and warning.
        whole: the place of the configuration as such, for what is missing from it.
        complete: whether all of the file could be read; if not, nothing is called missing.
    """
    root = expand_short_forms(expand_torchtune_forms(root, infos, report), infos, report)
    root = fill_inherited(root, infos, report)
    checked = Checked()
    components = ComponentChecker(infos, report)
    unknown = [key for key in root.entries if key not in infos and key != RECIPE_KEY]
    late_required: list[ParamInfo] = []
    untouched: list[tuple[ParamInfo, Node]] = []
    for info in infos.values():
        node = root.entries.get(info.name)
        if node is None:
            if info.required:
                late_required.append(info)
                checked.values[info.name] = REFUSED
                checked.bad.add(info.name)
                continue
            node = default_node(info.default)
            if info.slot is None:
                checked.values[info.name] = info.default
                continue
            if isinstance(info.default, str) and "." in info.default:
                # our own full path: nothing to look up, which is most of the time a check takes
                checked.values[info.name] = Component(info.default)
                untouched.append((info, node))
                continue
        else:
            checked.places[info.name] = node
        checked.values[info.name] = _field(node, info, components, report, checked)
    checked.places.update(components.places)
    for info in infos.values():
        slot, _, argument = (info.short_for or "").partition(".")
        if info.short_for and checked.values.get(info.name) is not REFUSED:
            checked.values[info.name] = read_argument(checked.values.get(slot), argument)
    if unknown:
        # a stray key may belong to one of them
        for info, node in untouched:
            components(node, info.name, info.slot)
    for count, key in enumerate(unknown):
        _report_unknown(key, root, infos, components, report, guessing=count < MAX_GUESSES)
    checked.bad |= components.guessed
    components.report_renamed()
    if complete:
        components.report_missing()
    for info in late_required:
        if complete and info.name not in components.guessed:
            message = f"{info.name} is required: {info.help}" if info.help else f"{info.name} is required"
            report(Diagnostic("missing-required", info.name, message, whole))
    return checked


def _field(
    node: Node,
    info: ParamInfo,
    components: ComponentChecker,
    report: Callable[[Diagnostic], None],
    checked: Checked,
) -> Any:
    """The value of one field, or `REFUSED`."""
    if info.slot is not None and not info.required and isinstance(node, PythonValue) and node.value == "":
        return Component()
    if info.required and _is_empty(node):
        message = f"{node.written or info.name} is required and cannot be empty"
        value: Any = components.converter.refuse("missing-required", info.name, message, node)
    else:
        components.converter.find_fault = info.find_fault
        value = components.converter.convert(node, info.spec, info.name, info.slot)
        components.converter.find_fault = None
    if value is not REFUSED:
        fault = info.find_fault(value)
        if fault is not None:
            value = components.converter.refuse(fault.code, info.name, fault.message, node, fault.suggestion)
    if value is REFUSED:
        checked.bad.add(info.name)
    return value


def _is_empty(node: Node) -> bool:
    if isinstance(node, Scalar):
        return node.style != "plain" and not node.text.strip()
    if isinstance(node, SequenceNode):
        return not node.items
    return isinstance(node, PythonValue) and node.value == ""


def _report_unknown(
    key: str,
    root: MappingNode,
    infos: Mapping[str, ParamInfo],
    components: ComponentChecker,
    report: Callable[[Diagnostic], None],
    guessing: bool,
) -> None:
    guess = guess_parameter(key, infos, components.arguments) if guessing else None
    message = f"there is no parameter {quote(key)}"
    suggestion = None
    if guess is not None:
        reason = guess.reason
        names = {guess.name, other_spelling(guess.name, infos) or guess.name}
        if guess.name and guess.name != key:
            section = guess.name.partition(".")[0]
            if section != guess.name and infos[section].spec.nullable and section not in components.arguments:
                reason = add(reason, f"there is no {section} yet, set that as well")
            else:
                there = find_there(root, guess.name, infos)
                is_second = not names.isdisjoint(components.guessed)
                judge = components.judge_of(guess.name)
                suggestion, reason = amend(guess, root.entries[key], there, judge, is_second=is_second)
        message += f"; {reason}"
        components.guessed |= names
    report(Diagnostic("unknown-key", key, message, root.key_source(key), suggestion))


def set_fields(checked: Checked) -> list[str]:
    """Return what a file or a command line sets, by dotted path."""
    return [name for name, node in checked.places.items() if node.source.kind in ("file", "cli")]


def cross_check(params_cls: type, checked: Checked, infos: Mapping[str, ParamInfo]) -> list[Diagnostic]:
    """Run the params class's own checks between fields, on what is right so far.

    Problems that speak of a field about which something has been said already are left out.
    """
    cross_checks = getattr(params_cls, "cross_checks", None)
    if cross_checks is None:
        return []
    candidate: Any = object.__new__(params_cls)
    for info in infos.values():
        value = checked.values.get(info.name, REFUSED)
        if value is REFUSED:
            value = Component() if info.slot is not None and not info.spec.nullable else info.default
        object.__setattr__(candidate, info.name, value)
    if given := set_fields(checked):
        note_given(candidate, given)
    try:
        problems = list(cross_checks(candidate))
    except (TypeError, ValueError, AttributeError, LookupError):
        if checked.bad:
            return []  # stumbled over a stand-in for a value that has been reported
        raise
    bad = checked.bad | {
        info.short_for for info in infos.values() if info.short_for and info.name in checked.bad
    }
    return [
        problem
        for problem in problems
        if not any(name in bad or not bad.isdisjoint(name.split(".")) for name in problem.fields)
    ]


def find_place(name: str, checked: Checked, infos: Mapping[str, ParamInfo]) -> Node | None:
    """The node of the field or argument `name`, also in its other spelling; None if nothing was set."""
    return checked.places.get(name) or checked.places.get(other_spelling(name, infos) or "")
