"""Reading a command's arguments: options and bare overrides in any order, nothing abbreviated or guessed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tune.cli.terminal import example, paint, section, width, wrap, wrap_usage
from tune.config.overrides import is_override
from tune.errors import TuneError


class UsageError(TuneError):
    """The command line cannot be understood."""

    exit_code = 2


@dataclass(frozen=True)
class Option:
    """One option of a command.

    Args:
        flags: its spellings, the long one first.
        help: one sentence.
        metavar: name of its value; None for a switch.
        many: whether it may be given more than once.
        choices: the values there are; empty for any.
        greedy: whether all words up to the next option are values of it, once there is an operand.
        may_be_empty: whether an empty value means something.
    """

    flags: tuple[str, ...]
    help: str
    metavar: str | None = None
    many: bool = False
    choices: tuple[str, ...] = ()
    greedy: bool = False
    may_be_empty: bool = False

    @property
    def name(self) -> str:
        return self.flags[0].lstrip("-").replace("-", "_")


@dataclass(frozen=True)
class Command:
    """One command: its help, what it takes, and the function that does it.

    Args:
        name: as it is typed.
        summary: one line for the list of commands.
        description: a few sentences for the command's own help.
        examples: command lines that work, each with what it does.
        run: gets the arguments, returns the exit code.
        operands: names and help of the words that are neither options nor overrides; in brackets, if not needed; the
            last one with "..." where there may be more of it.
        options: what it understands.
        takes_overrides: whether ``key=value`` and ``~key`` words are overrides.
        passes_on: whether options it does not know belong to the recipe, once the recipe has been named.
        lists: what else its help lists, each a heading and rows.
    """

    name: str
    summary: str
    description: str
    examples: tuple[tuple[str, str], ...]
    run: Callable[[Given], int]
    operands: tuple[tuple[str, str], ...] = ()
    options: tuple[Option, ...] = ()
    takes_overrides: bool = False
    passes_on: bool = False
    lists: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()

    @property
    def usage(self) -> str:
        """The command line, as far as it has to be known."""
        return " ".join(["tune", self.name, *(name for name, _ in self.operands), "[OPTIONS]"])


@dataclass
class Given:
    """The arguments a command was given.

    Args:
        operands: the words, in order.
        overrides: ``key=value`` and ``~key`` words, bare or after ``--override``, in order.
        values: values of the options that take one, by option name, in order.
        switches: names of the switches that were given.
        tokens: every argument but the first operand, as typed; option values are pairs of option and value.
        unknown: options nobody here knows, for the recipe, each with what seems to be its value.
    """

    operands: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    values: dict[str, list[str]] = field(default_factory=dict)
    switches: set[str] = field(default_factory=set)
    tokens: list[tuple[str, str | None]] = field(default_factory=list)
    unknown: list[tuple[str, str | None]] = field(default_factory=list)

    def one(self, name: str) -> str | None:
        """Return the value of an option that is given at most once, or None."""
        return next(iter(self.all(name)), None)

    def all(self, name: str) -> list[str]:
        """Return the values of an option that may be repeated."""
        return self.values.get(name, [])


HELP = Option(("--help", "-h"), "Show this help and exit.")
CONFIG = Option(("--config", "-c"), "Config: a name from `tune ls` or a path.", "CONFIG")
OVERRIDE = Option(
    ("--override", "-o"), "Set parameters; key=value also works without --override.", "KEY=VALUE", many=True
)
REMOVE = Option(("--remove",), "Remove a key of the config; also written ~KEY.", "KEY", many=True)
TRUST = Option(("--trust",), "Let the config name things in this package (repeatable).", "PACKAGE", many=True)


def read_arguments(command: Command, argv: Sequence[str]) -> Given:
    """Sort the arguments of `command`.

    Raises:
        UsageError: an option is unknown, lacks its value, or has one too many or one that there is not.
    """
    options = _flags_of(command)
    given = Given()
    waiting = list(argv)
    while waiting:
        token = waiting.pop(0)
        if token == "--":
            for word in waiting:
                _read_word(command, given, word)
            break
        if token == "-" or not token.startswith("-"):
            _read_word(command, given, token)
            continue
        flag, equals, value = token.partition("=")
        option = options.get(flag)
        if option is None:
            _read_unknown(command, given, token, waiting)
        elif option.metavar is None:
            if equals:
                raise UsageError(f"{flag} takes no value, but got {value!r}")
            given.switches.add(option.name)
            given.tokens.append((flag, None))
        else:
            values = [value] if equals else _take_values(option, flag, waiting, bool(given.operands))
            if not (option.may_be_empty or values[0].strip()):
                raise UsageError(f"{flag} is empty: it takes {option.metavar}")
            if option.choices and values[0] not in option.choices:
                raise UsageError(f"{flag} {values[0]}: there is only {', '.join(option.choices)}")
            if option.name in given.values and not option.many:
                raise UsageError(f"{flag} is given 2 times; give it once")
            given.values.setdefault(option.name, []).extend(values)
            given.tokens.extend((option.flags[0], item) for item in values)
            if option is OVERRIDE:
                given.overrides.extend(values)
    return given


def _take_values(option: Option, flag: str, waiting: list[str], has_operand: bool) -> list[str]:
    if not waiting or waiting[0] == "-h" or waiting[0].startswith("--"):
        raise UsageError(f"{flag} needs a value: {flag} {option.metavar}")
    values = [waiting.pop(0)]
    while option.greedy and has_operand and waiting and not waiting[0].startswith("-"):
        values.append(waiting.pop(0))
    return values


def _read_word(command: Command, given: Given, token: str) -> None:
    # ~/x and ./a=b are paths, not overrides
    key = token.partition("=")[0]
    if command.takes_overrides and is_override(token) and "/" not in key:
        given.overrides.append(token)
        given.tokens.append((token, None))
    else:
        if given.operands:
            given.tokens.append((token, None))
        given.operands.append(token)


def _read_unknown(command: Command, given: Given, token: str, waiting: list[str]) -> None:
    if not (command.passes_on and given.operands):
        raise UsageError(unknown_option(command, token, None))
    value = None
    # A word after it that is no override is its value, as far as anyone here can tell.
    if waiting and "=" not in token and not waiting[0].startswith("-") and not is_override(waiting[0]):
        value = waiting.pop(0)
    given.unknown.append((token, value))
    given.tokens.append((token, value))


def _flags_of(command: Command) -> dict[str, Option]:
    return {flag: option for option in (*command.options, HELP) for flag in option.flags}


def unknown_option(command: Command, token: str, value: str | None) -> str:
    """Return the message about an option that `command` does not have, with the nearest it has."""
    flag, _, attached = token.partition("=")
    hint = f"; `tune {command.name} --help` lists the options"
    bare = flag.lstrip("-").replace("-", "_")
    if command.takes_overrides and bare:
        hint = f"; parameters are set without dashes: {bare}={attached or value or 'VALUE'}"
    known = [name for name in _flags_of(command) if name.startswith("--")]
    return f"tune {command.name} has no option {flag}{did_you_mean(flag, known, hint)}"


def check_operands(command: Command, given: Given) -> None:
    """Raise UsageError unless as many words were given as `command` takes.

    None of them may be empty, as one is that stands for a variable of the shell that is not set.
    """
    names, number = [name for name, _ in command.operands], len(given.operands)
    more = number - len(names) if names and names[-1].endswith(("...", "...]")) else 0
    names += names[-1:] * more
    if not sum(not name.startswith("[") for name in names) <= number <= len(names):
        raise UsageError(f"{number} argument{'s' * (number != 1)} given; usage: {command.usage}")
    for name, word in zip(names, given.operands):
        if not word.strip() or "\0" in word:
            raise UsageError(f"{name.strip('[]')} is empty; usage: {command.usage}")


def nearest(word: str, known: Sequence[str]) -> str | None:
    """Return the one of `known` that `word` is most likely a misspelling or the beginning of, or None."""
    from tune.config.suggestions import fold, nearest  # only on the way to an error

    starts = [name for name in known if len(word) > 1 and fold(name).startswith(fold(word))]
    return nearest(word, known, cutoff=0.6) or (starts[0] if len(starts) == 1 else None)


def did_you_mean(word: str, known: Sequence[str], otherwise: str = "") -> str:
    """Return the end of a message about an unknown `word`: the nearest one known, or else what helps otherwise."""
    close = nearest(word, known)
    return f"; did you mean {close}?" if close else otherwise


def format_help(command: Command) -> str:
    """Return the help text of `command`."""
    examples = [example(line, meaning) for line, meaning in command.examples]
    options = [
        (f"{', '.join(_spellings(option))} {option.metavar or ''}".rstrip(), option.help)
        for option in (*command.options, HELP)
    ]
    listed = [("arguments:", command.operands)] if command.operands else []
    parts = [
        wrap_usage(command.usage),
        *("\n".join(wrap(paragraph, min(width(), 96))) for paragraph in command.description.split("\n\n")),
        "\n".join([paint("examples:", "bold"), *examples]),
        *(section(heading, rows) for heading, rows in (*listed, ("options:", options), *command.lists)),
    ]
    return "\n\n".join(parts) + "\n"


def _spellings(option: Option) -> list[str]:
    """Return the flags of an option but those with - where another has _."""
    twins = {flag: f"--{flag[2:].replace('-', '_')}" for flag in option.flags}
    return [flag for flag, twin in twins.items() if flag == twin or twin not in twins]
