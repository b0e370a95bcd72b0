"""Whether what a mistaken key probably meant can be written in its place, value and all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tune.config.component import COMPONENT_KEY
from tune.config.convert import REFUSED, Converter
from tune.config.diagnostics import Diagnostic, shorten
from tune.config.naming import Guess
from tune.config.nodes import Mapped, Node, Scalar, core_value
from tune.config.params import ParamInfo
from tune.config.typing import TypeSpec

__all__ = ["Judge", "add", "amend", "find_there", "judge_plain"]

# Tries a value for a path; returns it, or REFUSED after reporting why it is none.
Judge = Callable[[Node, Callable[[Diagnostic], None]], Any]


def amend(guess: Guess, node: Node, there: Node | None, judge: Judge) -> tuple[str | None, str]:
    """Return what may replace a mistaken key, or its whole entry, and what to add to the reason.

    Nothing may replace it where its value is not one for that name. An entry is written as the place has it, a file or
    a command line.

    Args:
        guess: what the key probably meant.
        node: its value.
        there: what stands under the guessed name already.
        judge: tries a value for that name.
    """
    suggestion, addition = _replace_with(guess, node, judge)
    if there is not None and there.source.kind == node.source.kind == "file":
        addition = f"it is set already, in line {there.source.line}: keep one of the two"
    return suggestion, addition


def _replace_with(guess: Guess, node: Node, judge: Judge) -> tuple[str | None, str]:
    def entry(value: str) -> tuple[str, str]:
        whole = f"{guess.name}={value}" if node.source.kind == "cli" else f"{guess.name}: {value}"
        return whole, f"write {shorten(whole)}"

    if guess.value is not None:
        means_it = isinstance(node, Scalar) and core_value(node.text) is True
        return entry(guess.value) if means_it else (None, "")
    value, found = _try(judge, node)
    if value is not REFUSED and not found:
        return guess.name, ""
    if not isinstance(node, Scalar):
        return None, ""
    better = next((item.suggestion for item in found if item.suggestion is not None), None)
    if better is not None and "\n" not in better and "." not in guess.name:
        value, again = _try(judge, replace(node, text=better, style="plain"))
        if value is not REFUSED and not again:
            return entry(better)
    if [item.path for item in found] == ["lr_scheduler.num_warmup_steps"] and node.text.isidentifier():
        # other tools warm up over no step unless told; here it is always said
        return entry(f"{{{COMPONENT_KEY}: {node.text}, num_warmup_steps: 0}}")
    return None, ""


def _try(judge: Judge, node: Node) -> tuple[Any, list[Diagnostic]]:
    found: list[Diagnostic] = []
    value = judge(node, found.append)
    return value, [item for item in found if item.severity == "error"]


def judge_plain(spec: TypeSpec, find_fault: Callable[[Any], Any], path: str) -> Judge:
    """Return a judge of values that are no components."""

    def judge(node: Node, report: Callable[[Diagnostic], None]) -> Any:
        value = Converter(report, lambda inner, where, slot: inner).convert(node, spec, path)
        return REFUSED if value is not REFUSED and find_fault(value) is not None else value

    return judge


def add(reason: str, addition: str) -> str:
    """Return the reason with what there is to add, as one text."""
    if not addition:
        return reason
    return (
        f"{reason} {addition[0].upper()}{addition[1:]}" if reason.endswith("?") else f"{reason}; {addition}"
    )


def find_there(root: Mapped, path: str, infos: Mapping[str, ParamInfo]) -> Node | None:
    """Return what stands at `path` (or at what it is short for) of a tree whose short forms are expanded."""
    info = infos.get(path)
    parts = (info.short_for if info is not None and info.short_for else path).split(".")
    node: Node | None = root
    for part in parts:
        node = node.entries.get(part) if isinstance(node, Mapped) else None
    return node
