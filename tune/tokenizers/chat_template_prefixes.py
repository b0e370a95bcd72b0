"""The text of every beginning of a conversation, in one run where the template writes message after message.

What a template has written before it first meets a message cannot depend on that message: with fewer messages the
run is the same up to there. So its loop over the messages is watched, and how much was written when each message was
met. What follows the loop is the same for every beginning if it reads nothing that the loop could have changed.
Where all of this holds, one run tells the text of every beginning; otherwise each is written by a run of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import Template, nodes

from tune.tokenizers.chat_template_sandbox import TemplateFailure, compile_tree, parse, render, render_pieces

# The number of messages, and whether the assistant's next answer is asked for.
Cut = tuple[int, bool]
# What a call writes at most before it answers with what there is: it must not run into the limits of its worker.
_MAX_CHARS = 4_000_000
_MAX_SECONDS = 2.0
# Names of the functions that a watched loop calls.
_NOTES = ("_tune_begins", "_tune_ends", "_tune_leaves")
# Functions that keep no state between two calls.
_STATELESS = frozenset({"raise_exception", "strftime_now", "range"})
# Filters whose result is used up as it is read.
_USED_UP = frozenset({"map", "select", "selectattr", "reject", "rejectattr", "unique", "batch", "slice"})


@dataclass(frozen=True)
class Beginnings:
    """The texts of all beginnings of a conversation from some number of messages on.

    Args:
        body: what is written of all messages.
        places: how much of it is written of the first 0, 1, 2, ... messages.
        least: for fewer messages nothing is known.
        asking: what follows where the assistant's next answer is asked for.
        closing: what follows otherwise.
    """

    body: str
    places: tuple[int, ...]
    least: int
    asking: str
    closing: str

    def text(self, cut: Cut) -> str | None:
        """Return the text of a beginning, None where it is not known."""
        num_messages, is_asked = cut
        if not self.least <= num_messages < len(self.places):
            return None
        return self.body[: self.places[num_messages]] + (self.asking if is_asked else self.closing)


# The text of each, or why there is none.
Texts = dict[Cut, "str | TemplateFailure"]


def render_beginnings(
    source: str, variables: Mapping[str, Any], cuts: Sequence[Cut]
) -> tuple[Beginnings | None, Texts]:
    """Return what one run told of all beginnings, and the texts of the first cuts that it did not tell.

    Not of all of those, where they are long or take long: whoever needs more asks again.

    Args:
        source: of the template.
        variables: with all of the messages.
        cuts: wanted.

    Raises:
        TemplateFailure: the source is no template, or does what none may do.
    """
    until = time.monotonic() + _MAX_SECONDS
    # Few and short ones are written faster than watched.
    is_worth_it = sum(num_messages for num_messages, _ in cuts) > 4 * len(variables["messages"])
    found = _beginnings(source, variables, cuts[0]) if is_worth_it else None
    rest = [cut for cut in cuts if found is None or found.text(cut) is None]
    return found, _render_each(source, variables, rest, until)


def _render_each(source: str, variables: Mapping[str, Any], cuts: Iterable[Cut], until: float) -> Texts:
    texts: Texts = {}
    size = 0
    for cut in cuts:
        try:
            text = _render(source, variables, cut)
            texts[cut] = text
            size += len(text)
        except TemplateFailure as failure:
            if failure.kind in ("syntax", "stopped"):
                raise
            texts[cut] = failure
        if size > _MAX_CHARS or time.monotonic() > until:
            break
    return texts


def _render(source: str, variables: Mapping[str, Any], cut: Cut) -> str:
    num_messages, is_asked = cut
    messages = variables["messages"][:num_messages]
    return render(source, {**variables, "messages": messages, "add_generation_prompt": is_asked})


def _beginnings(source: str, variables: Mapping[str, Any], cut: Cut) -> Beginnings | None:
    """Return what is known of all beginnings, None where nothing is; `cut` is one to compare with."""
    template = _watched_template(source)
    if template is None:
        return None
    try:
        closed, asked = (_observe(template, variables, is_asked) for is_asked in (False, True))
        if closed is None or asked is None:
            return None
        (text, places, least), (asked_text, asked_places, asked_least) = closed, asked
        body = text[: places[-1]]
        found = Beginnings(
            body, places, max(least, asked_least), asked_text[places[-1] :], text[places[-1] :]
        )
        # A template could notice that watched messages are no list.
        same = places == asked_places and asked_text.startswith(body)
        for known in (cut, (len(places) - 1, False)) if same else ():
            same = same and found.text(known) in (None, _render(source, variables, known))
    except TemplateFailure:
        return None
    return found if same else None


def _observe(
    template: Template, variables: Mapping[str, Any], is_asked: bool
) -> tuple[str, tuple[int, ...], int] | None:
    """Return what is written, how much of it when each message and the end were met, and the least of messages."""
    watch = _Watch(variables["messages"])
    given = {**variables, "messages": _Messages(watch, 0), "add_generation_prompt": is_asked}
    notes = dict(zip(_NOTES, (watch.begins, watch.ends, watch.leaves)))
    pieces = []
    for piece in render_pieces(template, {**given, **notes}):
        pieces.append(piece)
        watch.num_chars += len(piece)
    if not watch.is_in_order or not watch.has_left:
        return None
    return "".join(pieces), tuple(watch.places), watch.least


class _Watch:
    """Notes how much was written when each message was met, and whether each was met in the loop at its turn."""

    def __init__(self, messages: Sequence[Any]) -> None:
        self.messages = messages
        self.num_chars = 0
        self.places: list[int] = []
        self.is_in_order = True
        self.least = 1
        self.has_left = False
        self._between = True  # nothing of a turn is being written
        self._met = False  # a message was met, and its turn has not begun yet

    def meets(self, index: int) -> None:
        """Note that somebody who goes through the messages comes to one of them, or to their end."""
        if index < len(self.places):
            return
        if not self._between or self._met or self.has_left:
            self.is_in_order = False
        # Messages left out before the first one are in none of the turns.
        self.places += [self.num_chars] * (index + 1 - len(self.places))
        self._met = True

    def looks(self, index: int) -> None:
        """Note that a message is looked at by its number: with fewer messages there is none."""
        if index >= len(self.places) or self.has_left:
            self.least = max(self.least, index + 1)
        if index >= len(self.messages):
            self.is_in_order = False

    def counts(self) -> None:
        """Note that something was read which every further message changes."""
        self.is_in_order = False

    def begins(self) -> str:
        """Note that a turn of the loop begins."""
        if not self._met or not self._between:
            self.is_in_order = False
        self._met = self._between = False
        return ""

    def ends(self) -> str:
        """Note that a turn of the loop ends."""
        self._between = True
        return ""

    def leaves(self) -> str:
        """Note that the loop is over."""
        if not self._met or not self._between or len(self.places) != len(self.messages) + 1:
            self.is_in_order = False
        self.has_left = True
        return ""


class _Messages:
    """The messages from one on, as a template sees them that is watched."""

    def __init__(self, watch: _Watch, start: int) -> None:
        self._watch = watch
        self._start = start

    def __iter__(self) -> Iterator[Any]:
        for index in range(self._start, len(self._watch.messages)):
            self._watch.meets(index)
            yield self._watch.messages[index]
        self._watch.meets(max(self._start, len(self._watch.messages)))

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice) and key.stop is None and key.step is None and (key.start or 0) >= 0:
            return _Messages(self._watch, self._start + (key.start or 0))
        if isinstance(key, int) and key >= 0:
            self._watch.looks(self._start + key)
        else:
            self._watch.counts()
        return self._watch.messages[self._start :][key]

    def __len__(self) -> int:
        self._watch.counts()
        return len(self._watch.messages[self._start :])

    def __bool__(self) -> bool:
        self._watch.looks(self._start)
        return self._start < len(self._watch.messages)

    def __contains__(self, item: Any) -> bool:
        self._watch.counts()
        return item in self._watch.messages[self._start :]

    def __reversed__(self) -> Iterator[Any]:
        self._watch.counts()
        yield from reversed(self._watch.messages[self._start :])


@lru_cache(maxsize=16)
def _watched_template(source: str) -> Template | None:
    """Return a template whose last loop tells when each turn begins and ends; None where watching tells nothing."""
    tree = parse(source)
    loops = [node for node in tree.body if isinstance(node, nodes.For)]
    if not loops or any(name in source for name in _NOTES):
        return None
    loop = loops[-1]
    place = tree.body.index(loop)
    if loop.recursive or loop.else_ or not _is_stateless(tree, tree.body[place + 1 :]):
        return None
    begins, ends, leaves = (
        nodes.ExprStmt(nodes.Call(nodes.Name(name, "load"), [], [], None, None)).set_lineno(loop.lineno)
        for name in _NOTES
    )
    loop.body = [begins, *loop.body, ends]
    tree.body = [*tree.body[: place + 1], leaves, *tree.body[place + 1 :]]
    return compile_tree(tree)


def _is_stateless(tree: nodes.Template, part: Sequence[nodes.Node]) -> bool:
    """Return whether what a part of a template writes cannot depend on what other parts have changed.

    Plain values cannot be changed in a loop, only hidden for a turn. What functions return may: a namespace, a cycler.
    """
    if tree.find(nodes.With):
        return False
    changeable: set[str] = set()
    while more := _changeable_names(tree, changeable) - changeable:
        changeable |= more
    for node in (inner for outer in part for inner in _with_descendants(outer)):
        if isinstance(node, nodes.CallBlock | nodes.Macro | nodes.NSRef):
            return False
        if _is_changeable(node, changeable):
            return False
    return True


def _changeable_names(tree: nodes.Template, changeable: set[str]) -> set[str]:
    """Return the names that are given what a function returns, or something of one of those names."""
    return {
        target.name
        for assignment in tree.find_all(nodes.Assign)
        if any(_is_changeable(node, changeable) for node in _with_descendants(assignment.node))
        for target in _with_descendants(assignment.target)
        if isinstance(target, nodes.Name)
    }


def _is_changeable(node: nodes.Node, changeable: set[str]) -> bool:
    """Return whether a part of an expression is such a name, or a call of a function that may keep state."""
    if isinstance(node, nodes.Name):
        return node.name in changeable
    if isinstance(node, nodes.Filter):
        return node.name in _USED_UP
    # A method is one of a plain value, or of a name that is found by itself.
    if not isinstance(node, nodes.Call) or isinstance(node.node, nodes.Getattr):
        return False
    return not (isinstance(node.node, nodes.Name) and node.node.name in _STATELESS)


def _with_descendants(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    yield from node.find_all(nodes.Node)
