"""What a mistaken key probably meant, and whether that can be written in its place, value and all."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tune.config.diagnostics import Diagnostic, shorten
from tune.config.fields import ParamInfo, other_spelling
from tune.config.foreign_names import foreign_names
from tune.config.nodes import MappingNode, Node, Scalar, SequenceNode, child, core_value
from tune.config.scalars import REFUSED

# Tries a value for a path; returns it, or REFUSED after reporting why it is none.
Judge = Callable[[Node, Callable[[Diagnostic], None]], Any]


@dataclass(frozen=True)
class Guess:
    """What an unknown name probably meant.

    Args:
        name: what to write instead; dotted for an argument of a component; empty where there is nothing of the kind.
        reason: why, to go on after the fact: "did you mean lr?".
        values: what to set it to by what the mistaken name was set to, where that carried the value.
    """

    name: str
    reason: str
    values: Mapping[str, str] | None = None


def nearest(word: str, words: Iterable[str], cutoff: float = 0.72) -> str | None:
    """The name most like `word`, case and separators aside; None if nothing is near."""
    if len(word) > 100:
        return None
    folded: dict[str, str] = {}
    for candidate in words:
        folded.setdefault(fold(candidate), candidate)
    if fold(word) in folded:
        return folded[fold(word)]
    close = difflib.get_close_matches(fold(word), folded, n=1, cutoff=cutoff)
    return folded[close[0]] if close else None


def _similar(word: str, words: Iterable[str], cutoff: float = 0.72) -> Guess | None:
    name = nearest(word, words, cutoff)
    return Guess(name, f"did you mean {name}?") if name else None


def fold(name: str) -> str:
    """A name without case and separators: what people mistype most."""
    return name.lower().replace("_", "").replace("-", "")


def guess_parameter(
    word: str, infos: Mapping[str, ParamInfo], arguments: Mapping[str, set[str]]
) -> Guess | None:
    """What an unknown top-level key probably meant.

    Args:
        word: the key.
        infos: the declared parameters.
        arguments: for each component the arguments it takes (of those whose signature is known).
    """
    if exact := _similar(word, infos, cutoff=1.0):
        return exact
    plain = word.lower().replace("-", "_")
    for target in foreign_names().renamed.get(plain, ()):
        section, _, argument = target.partition(".")
        if section not in infos:
            continue
        if argument and argument not in arguments.get(section, {argument}):
            continue
        values = foreign_names().values.get(target, {}).get(plain)
        if argument and plain == argument:
            return Guess(target, f"it is an argument of {section}: write it there, as {target}")
        return Guess(target, f"here that is called {target}", values)
    if plain in foreign_names().absent:
        return Guess("", foreign_names().absent[plain])
    for section, names in arguments.items():
        if word in names and section in infos:
            target = f"{section}.{word}"
            return Guess(target, f"it is an argument of {section}: write it there, as {target}")
    section, dot, argument = word.partition(".")
    if dot and section in infos and argument:
        short = other_spelling(word, infos)
        reason = f"in a file the parts of a path nest: {argument} stands below {section}"
        return Guess(short or word, reason + (f", or as {short} at the top" if short else ""))
    return _similar(word, infos)


def guess_argument(
    word: str, section: str, names: Iterable[str], infos: Mapping[str, ParamInfo]
) -> Guess | None:
    """What an unknown argument of a component probably meant.

    Args:
        word: the argument.
        section: the component's place.
        names: the arguments the component takes.
        infos: the declared parameters.
    """
    known = list(names)
    if exact := _similar(word, known, cutoff=1.0):
        return exact
    top = section.split(".")[0]
    for target in foreign_names().renamed.get(word.lower(), ()):
        owner, _, argument = target.partition(".")
        argument = argument if owner == top else target  # a lora_ builder has them by the same names
        if argument in known:
            values = foreign_names().values
            theirs = {**values.get(argument, {}), **values.get(target, {})}
            return Guess(argument, f"here that is called {argument}", theirs.get(word.lower()))
    if word in infos:
        return Guess(word, f"{word} belongs at the top level of the configuration, not in {section}")
    if top in ("dataset", "dataset_val") and word.lower() in foreign_names().absent:
        return Guess("", foreign_names().absent[word.lower()])
    if close := _similar(word, known):
        return close
    for target in foreign_names().renamed.get(word.lower(), ()):
        if target in infos:
            return Guess(target, f"here that is called {target}, at the top level")
    return None


def amend(
    guess: Guess, node: Node, there: Node | None, judge: Judge, *, is_second: bool
) -> tuple[str | None, str]:
    """Return what may replace a mistaken key, or its whole entry, and the reason with what there is to add.

    Nothing may replace it where its value is not one for that name, or where that is set already in the file. An entry
    is written as the place has it, a file or a command line.

    Args:
        guess: what the key probably meant.
        node: its value.
        there: what stands under the guessed name already.
        judge: tries a value for that name.
        is_second: whether another mistaken key means the same.
    """
    suggestion, addition = _replace_with(guess, node, judge)
    if there is not None and there.source.kind == node.source.kind == "file":
        suggestion, addition = None, f"it is set already, in line {there.source.line}: keep one of the two"
    if is_second and suggestion is not None:
        suggestion, addition = None, "another key here means the same: keep one of the two"
    return suggestion, add(guess.reason, addition)


def _replace_with(guess: Guess, node: Node, judge: Judge) -> tuple[str | None, str]:
    def entry(value: str) -> tuple[str, str]:
        whole = f"{guess.name}={value}" if node.source.kind == "cli" else f"{guess.name}: {value}"
        return whole, f"write {shorten(whole)}"

    if guess.values is not None:
        meant = guess.values.get(_spell(node))
        return (None, "") if meant is None else entry(meant)
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
    return None, ""


def _spell(node: Node) -> str:
    """Return a value as the table of foreign names has it: a list in alphabetical order."""
    if isinstance(node, SequenceNode):
        return ", ".join(sorted(map(_spell, node.items)))
    if not isinstance(node, Scalar):
        return ""
    value = core_value(node.text)
    return str(value).lower() if isinstance(value, bool) else node.text


def _try(judge: Judge, node: Node) -> tuple[Any, list[Diagnostic]]:
    found: list[Diagnostic] = []
    value = judge(node, found.append)
    return value, [item for item in found if item.severity == "error"]


def add(reason: str, addition: str) -> str:
    """Return the reason with what there is to add, as one text."""
    if not addition:
        return reason
    return (
        f"{reason} {addition[0].upper()}{addition[1:]}" if reason.endswith("?") else f"{reason}; {addition}"
    )


def find_there(root: MappingNode, path: str, infos: Mapping[str, ParamInfo]) -> Node | None:
    """Return what stands at `path` (or at what it is short for) of a tree whose short forms are expanded."""
    owner = infos.get(path)
    node: Node | None = root
    for part in ((owner.short_for if owner is not None else None) or path).split("."):
        node = child(node, part)
    return node
