"""What a mistaken name probably meant: near spellings, other tools' names, the section where a key belongs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tune.config.other_names import NOT_HERE, OTHER_NAMES, VALUE_NAMES
from tune.config.params import ParamInfo


@dataclass(frozen=True)
class Guess:
    """What an unknown name probably meant.

    Args:
        name: what to write instead; dotted for an argument of a component; empty where there is nothing of the kind.
        reason: why, to go on after the fact: "did you mean lr?".
        value: what to set it to, where the mistaken name carried the value.
    """

    name: str
    reason: str
    value: str | None = None


def nearest(word: str, words: Iterable[str], cutoff: float = 0.72) -> str | None:
    """The name most like `word`, case and separators aside; None if nothing is near."""
    import difflib  # only on the way to an error

    if len(word) > 100:
        return None
    folded: dict[str, str] = {}
    for candidate in words:
        folded.setdefault(fold(candidate), candidate)
    if fold(word) in folded:
        return folded[fold(word)]
    close = difflib.get_close_matches(fold(word), folded, n=1, cutoff=cutoff)
    return folded[close[0]] if close else None


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
    exact = next((name for name in infos if fold(name) == fold(word)), None)
    if exact:
        return Guess(exact, f"did you mean {exact}?")
    plain = word.lower().replace("-", "_")
    for target in OTHER_NAMES.get(plain, ()):
        section, _, argument = target.partition(".")
        if section not in infos:
            continue
        if argument and argument not in arguments.get(section, {argument}):
            continue
        value = VALUE_NAMES.get((plain, target))
        if argument and plain == argument:
            return Guess(target, f"it is an argument of {section}: write it there, as {target}")
        return Guess(target, f"here that is called {target}", value)
    if plain in NOT_HERE:
        return Guess("", NOT_HERE[plain].format(plain))
    for section, names in arguments.items():
        if word in names and section in infos:
            target = f"{section}.{word}"
            return Guess(target, f"it is an argument of {section}: write it there, as {target}")
    section, dot, argument = word.partition(".")
    if dot and section in infos and argument:
        short = next((name for name, info in infos.items() if info.short_for == word), None)
        reason = f"in a file the parts of a path nest: {argument} stands below {section}"
        return Guess(short or word, reason + (f", or as {short} at the top" if short else ""))
    close = nearest(word, [name for name, info in infos.items() if not info.hidden])
    return Guess(close, f"did you mean {close}?") if close else None


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
    exact = next((name for name in known if fold(name) == fold(word)), None)
    if exact:
        return Guess(exact, f"did you mean {exact}?")
    top = section.split(".")[0]
    for target in OTHER_NAMES.get(word.lower(), ()):
        owner, _, argument = target.partition(".")
        argument = argument if owner == top else target  # a lora_ builder has them by the same names
        if argument in known:
            return Guess(argument, f"here that is called {argument}")
    if word in infos:
        return Guess(word, f"{word} belongs at the top level of the configuration, not in {section}")
    close = nearest(word, known)
    if close:
        return Guess(close, f"did you mean {close}?")
    for target in OTHER_NAMES.get(word.lower(), ()):
        if target in infos:
            return Guess(target, f"here that is called {target}, at the top level")
    return None
