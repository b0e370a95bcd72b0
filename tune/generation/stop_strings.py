"""Texts that end an answer."""

from __future__ import annotations

from collections.abc import Sequence

from tune.errors import GenerationError


class StopStrings:
    """Cuts a text that arrives in pieces at the first occurrence of any of ``stops``.

    What could still turn out to be the beginning of a stop string is held back, so nothing that `push` returned ever
    has to be taken back.

    Args:
        stops: The strings; none may be empty. Where two begin at the same place it does not matter which matched.

    Attributes:
        found: Whether a stop string has been met; from then on `push` returns nothing.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if any(not stop for stop in stops):
            raise GenerationError(
                "a stop string is empty: it would end every answer before its first character."
            )
        self.found = False
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> str:
        """Take the next piece and return what is certain to stand before any stop string."""
        if self.found:
            return ""
        self._held += text
        hits = [index for index in map(self._held.find, self._stops) if index >= 0]
        # An earlier start may still be undecided (stops "abcd" and "c", text "abc"): then wait for it.
        undecided = len(self._held) - self._longest_beginning()
        if hits and min(hits) <= undecided:
            self.found = True
            certain, self._held = self._held[: min(hits)], ""
            return certain
        certain, self._held = self._held[:undecided], self._held[undecided:]
        return certain

    def finish(self) -> str:
        """Return what was held back: no more text comes, so no stop string can complete."""
        hits = [index for index in map(self._held.find, self._stops) if index >= 0]
        self.found = self.found or bool(hits)
        certain, self._held = self._held[: min(hits, default=len(self._held))], ""
        return certain

    def _longest_beginning(self) -> int:
        """Return the length of the longest end of the held text that begins, but does not complete, a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(len(stop) > length and stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
