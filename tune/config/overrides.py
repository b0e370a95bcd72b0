"""Overrides from the command line: `a.b=value`, `~a.b`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tune.config.diagnostics import Diagnostic, Source, quote, shorten
from tune.config.nodes import MAX_DEPTH, ErrorNode, Node, Scalar
from tune.config.yaml_tree import read_flow

_KEY = re.compile(r"[^\s=.,:;\[\]{}\"'~#&*!|<>]+(?:\.[^\s=.,:;\[\]{}\"'~#&*!|<>]+)*\Z")
_FLOW_STARTS = ("[", "{", '"', "'")
_MAX_OVERRIDES = 1000  # each copies the part of the tree that it changes
_MAX_GUESSED = 500  # characters of an argument up to which its meaning is guessed at
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Edit:
    """One change to the tree.

    Args:
        path: where.
        node: the new value; None removes what is there.
        source: the argument.
        problem: why the value cannot be read; its place counts as set, so that nothing follows from that.
    """

    path: tuple[str, ...]
    node: Node | None
    source: Source
    problem: Diagnostic | None = None

    @property
    def dotted(self) -> str:
        return ".".join(self.path)

    def key_source(self, depth: int | None = None) -> Source:
        """The place of the key in the argument; of its part at `depth` where that is given."""
        start = 1 if self.node is not None else 2  # behind the ~ of a removal
        if depth is None:
            return replace(self.source, col=start, length=len(self.dotted))
        before = sum(len(part) + 1 for part in self.path[:depth])
        return replace(self.source, col=start + before, length=len(self.path[depth]))


def is_override(argument: str) -> bool:
    """Whether a bare command-line argument is meant as an override: `a.b=value` or `~a.b`."""
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))


def parse_overrides(
    overrides: Sequence[str], removals: Sequence[str] = ()
) -> tuple[list[Edit], list[Diagnostic]]:
    """Read override arguments.

    Args:
        overrides: `a.b=value` and `~a.b` arguments, in order.
        removals: arguments of ``--remove``.

    Returns:
        the edits, and a diagnostic for every argument that is none.
    """
    edits: list[Edit] = []
    problems: list[Diagnostic] = []
    arguments = [*overrides, *("~" + path for path in removals)]
    if len(arguments) > _MAX_OVERRIDES:
        message = f"more than {_MAX_OVERRIDES} overrides; put them into a config"
        return [], [Diagnostic("config-too-large", "", message, Source("cli", arg=arguments[_MAX_OVERRIDES]))]
    for index, argument in enumerate(arguments):
        result = _parse(argument, index)
        if isinstance(result, Diagnostic):
            problems.append(result)
            continue
        edits.append(result)
        if result.problem is not None:
            problems.append(result.problem)
    return edits, problems


def _parse(argument: str, index: int) -> Edit | Diagnostic:
    whole = Source("cli", arg=argument, col=1, index=index, length=len(argument))
    if _SURROGATE.search(argument) or "\0" in argument:
        return Diagnostic("bad-encoding", "", "this argument is not UTF-8", whole)
    if argument.startswith("~"):
        path = argument[1:].strip()
        if "=" in path:
            message = "a removal takes no value: write ~key to remove, key=value to set"
            return Diagnostic("bad-override", "", message, whole, "~" + path.split("=", 1)[0])
        return _keyed(path, whole) or Edit(tuple(path.split(".")), None, whole)
    key, sign, value = argument.partition("=")
    if not sign:
        return _without_sign(argument, whole)
    bare = key.strip().lstrip("-+").replace("-", "_") if key.strip().startswith(("-", "+")) else key.strip()
    if bare != key and _KEY.match(bare):
        message = (
            f"an override is key=value, without dashes, signs or spaces around the key: {quote(argument)}"
        )
        return Diagnostic("bad-override", bare, message, whole, f"{bare}={value.strip()}")
    problem = _keyed(key, whole)
    if problem:
        return problem
    source = Source("cli", arg=argument, col=len(key) + 2, index=index, length=max(1, len(value)))
    node: Node | None = Scalar(source, value, "verbatim")
    fault = None
    if value.startswith(_FLOW_STARTS):
        node, fault = read_flow(value, source)
        if fault is not None or node is None:
            node, fault = ErrorNode(source), _explain_flow(key, value, fault, source)
    return Edit(tuple(key.split(".")), node, source, fault)


def _explain_flow(key: str, value: str, fault: Diagnostic | None, source: Source) -> Diagnostic:
    escaped = value.replace("'", "''")
    quoted = f"{key}='{escaped}'"
    as_typed = '"' + re.sub(r'(["$`\\])', r"\\\1", quoted) + '"'  # the shell takes one pair away
    message = (
        f"a value that starts with {value[0]} is read as YAML, and {fault.message if fault else 'there is none'}; "
        f"for plain text give it quotes of its own: {shorten(as_typed, 200)}"
    )
    return Diagnostic("bad-override", key, message, fault.source if fault else source, quoted)


def _keyed(path: str, whole: Source) -> Diagnostic | None:
    """What is wrong with the key of an override, if anything."""
    if len(path.split(".")) > MAX_DEPTH:
        return Diagnostic("bad-override", "", f"the key has more than {MAX_DEPTH} parts", whole)
    if _KEY.match(path):
        return None
    if len(path) > _MAX_GUESSED:
        return Diagnostic("bad-override", "", f"{quote(path)} is no key", whole)
    dotted = re.sub(r"\[\s*[\"']?([\w-]+)[\"']?\s*\]", r".\1", path)
    value = whole.arg.partition("=")[2] if whole.arg else ""
    suggestion = f"{dotted}={value}" if dotted != path and _KEY.match(dotted) else None
    message = f"{quote(path)} is no key; keys are names joined by dots, such as optimizer.lr"
    return Diagnostic("bad-override", "", message, whole, suggestion)


def _without_sign(argument: str, whole: Source) -> Diagnostic:
    guessable = argument if len(argument) <= _MAX_GUESSED else ""
    found = re.match(r"-*([A-Za-z_][\w.-]*)\s*(?::\s*|\s+)(\S.*)\Z", guessable)
    suggestion = f"{found.group(1)}={found.group(2)}" if found else None
    message = f"an override needs an equals sign: key=value, not {quote(argument)}"
    if not found and _KEY.match(argument.lstrip("-")):
        message += f"; to remove a value, write ~{argument.lstrip('-')}"
    return Diagnostic("override-without-value", "", message, whole, suggestion)
