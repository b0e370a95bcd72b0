"""Where messages of a chat come from and answers go to: a terminal, or pipes."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from tune.errors import GenerationError
from tune.utils.escape import escape_lines

__all__ = ["Terminal"]

_BLOCK = '"""'  # between two lines of it there may be several


class Terminal:
    """Where messages come from and answers go to: a terminal, or pipes."""

    def __init__(self) -> None:
        self.is_shown = sys.stdin.isatty() and sys.stdout.isatty()
        self._heeds_interrupt = False
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        if self.is_shown:
            self._open_history()

    def _open_history(self) -> None:
        try:
            import readline
        except ImportError:  # Windows has none: lines are edited as the terminal does it
            return
        state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        self._history = Path(os.path.expanduser(state)) / "tune" / "chat_history"
        with suppress(OSError):
            readline.read_history_file(self._history)
        readline.set_history_length(1000)

    def keep_history(self) -> None:
        """Let the next chat know what was typed in this one, and nobody else."""
        if not hasattr(self, "_history"):
            return
        import readline

        with suppress(OSError):
            self._history.parent.mkdir(parents=True, exist_ok=True)
            self._history.touch(mode=0o600)
            readline.write_history_file(self._history)

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self._heeds_interrupt:
            self._heeds_interrupt = False  # what handles the first is not disturbed by a second
            raise KeyboardInterrupt

    @contextmanager
    def outliving_interrupts(self) -> Iterator[None]:
        """On a terminal, let a Ctrl-C outside of :meth:`interruptible` change nothing; from a pipe it ends all."""
        before = signal.signal(signal.SIGINT, self._on_interrupt) if self.is_shown else None
        try:
            yield
        finally:
            if self.is_shown:
                signal.signal(signal.SIGINT, before)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a Ctrl-C raise ``KeyboardInterrupt`` here, once."""
        self._heeds_interrupt = True
        try:
            yield
        finally:
            self._heeds_interrupt = False

    def messages(self) -> Iterator[str]:
        """Yield what is said, a line or several at a time, until the end of the input."""
        while True:
            try:
                with self.interruptible():
                    message = self._read_message()
            except KeyboardInterrupt:
                if not self.is_shown:
                    raise
                self.note("\n(/quit or Ctrl-D ends the chat)")
                continue
            except EOFError:
                return
            yield message

    def _read_message(self) -> str:
        line = self._read_line("> ")
        is_block = line.strip() == _BLOCK
        lines: list[str] = []
        try:
            if is_block:
                while (line := self._read_line(". ")).strip() != _BLOCK:
                    lines.append(line)
                return "\n".join(lines)
            while line.endswith("\\"):
                lines.append(line[:-1])
                line = self._read_line(". ")
        except EOFError:  # whoever piped it in, or typed Ctrl-D, wants what was said answered
            self.note(f"(the message ends with the input, not with {_BLOCK if is_block else 'a whole line'})")
            return "\n".join(lines)
        return "\n".join([*lines, line])

    def _read_line(self, prompt: str) -> str:
        if self.is_shown:
            return input(prompt)
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        try:
            return line.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise GenerationError(
                f"standard input is not UTF-8: {error.reason}, in {line[:40]!r}."
            ) from error

    def write(self, piece: str) -> None:
        """Show a piece of an answer now; a terminal is spared what a model may say to it, a file is not."""
        sys.stdout.write(escape_lines(piece) if sys.stdout.isatty() else piece)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Say something that is no answer."""
        sys.stderr.write(escape_lines(text) + "\n")
        sys.stderr.flush()
