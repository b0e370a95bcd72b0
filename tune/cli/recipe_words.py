"""Words and options behind a recipe's name that stand for its parameters; and those that nobody understands."""

from __future__ import annotations

import contextlib

from tune.cli.arguments import Command, Given, UsageError, unknown_option
from tune.cli.catalogue import find_config
from tune.cli.recipe_lookup import Target


def take_operand(target: Target, given: Given) -> None:
    """Take a bare word behind a recipe that has a parameter for it: `tune chat DIR` is model_checkpoint=DIR."""
    if target.recipe is None or not target.recipe.operand or len(given.operands) != 2:
        return
    word = given.operands.pop()
    setting = f"{target.recipe.operand}={word}"
    given.overrides.insert(0, setting)
    given.tokens[given.tokens.index((word, None))] = (setting, None)


def take_options(target: Target, given: Given) -> None:
    """Read the parameters that a recipe lets be given as options: `--against DIR` is against=DIR."""
    from tune.config.params import fields_of

    if target.recipe is None or target.params is None:
        return
    infos = fields_of(target.params)
    for token, value in list(given.unknown):
        flag, equals, attached = token.partition("=")
        name = flag.lstrip("-")
        if name not in dict(target.recipe.options) or name not in infos:
            continue
        is_switch = infos[name].default is False
        if not equals and not is_switch and value is None:
            raise UsageError(f"{flag} needs a value: {flag} {dict(target.recipe.options)[name]}")
        setting = f"{name}={attached if equals else 'true' if is_switch else value}"
        words: list[tuple[str, str | None]] = [(setting, None)]
        if is_switch and value is not None:  # the word behind it is no value
            given.operands.append(value)
            words.append((value, None))
        given.overrides.append(setting)
        given.unknown.remove((token, value))
        place = given.tokens.index((token, value))
        given.tokens[place : place + 1] = words


def refuse_other_words(target: Target, given: Given, command: Command) -> None:
    """Raise UsageError for a word or option that neither the command nor a recipe of ours understands."""
    if target.is_own:
        return  # what is left over belongs to the user's recipe
    if given.unknown:
        raise UsageError(unknown_option(command, *given.unknown[0]))
    words = given.operands[1:]
    if target.recipe is not None and target.recipe.operand and len(words) > 1:
        compared = (
            f"; --against {words[1]} compares the two" if "against" in dict(target.recipe.options) else ""
        )
        raise UsageError(
            f"{target.name} takes one folder, and there are {len(words)}: {', '.join(words)}{compared}"
        )
    for word in words:
        hint = " (quoted if it has spaces)"
        with contextlib.suppress(UsageError):
            find_config(word)
            hint = f"; a config is given with --config {word}"
        raise UsageError(f"{word!r} is not an override: write key=value{hint}")
