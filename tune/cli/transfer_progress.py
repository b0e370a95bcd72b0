"""How far a transfer is: one bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import threading
import time

from tune.config.diagnostics import printable
from tune.hub.listing import RemoteFile

# Without a terminal, a line at least so often: a log shows that it still moves.
SECONDS_PER_LINE = 30.0


def format_size(num_bytes: int) -> str:
    """Return a size as people read it: "12.6 GB", "609 B"."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


class TransferProgress:
    """Writes to standard error how far a transfer of `num_bytes` is; safe to call from several threads."""

    def __init__(self, num_bytes: int, num_files: int = 1) -> None:
        from tqdm import tqdm

        self._lock = threading.Lock()
        self._on_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=num_bytes,
            unit="B",
            unit_scale=True,
            leave=False,
            dynamic_ncols=True,
            disable=not self._on_terminal,
        )
        self._total, self._num_files = num_bytes, num_files
        self._done = self._num_finished = 0
        self._last_line = time.monotonic()
        self.close = self._bar.close

    def advance(self, num_bytes: int) -> None:
        """So many bytes more are there (fewer, if negative)."""
        with self._lock:
            self._done += num_bytes
            self._bar.update(num_bytes)
            if not self._on_terminal and time.monotonic() - self._last_line > SECONDS_PER_LINE:
                self._write(f"  {format_size(self._done)} of {format_size(self._total)}")

    def finish_file(self, file: RemoteFile, fetched: bool) -> None:
        """A file is complete."""
        with self._lock:
            self._num_finished += 1
            self._bar.set_description(f"{self._num_finished} of {self._num_files} files", refresh=False)
            if not self._on_terminal:
                how = "" if fetched else ", was there"
                count = f"[{self._num_finished}/{self._num_files}]"
                self._write(f"  {count} {printable(file.name)} ({format_size(file.size)}{how})")

    def _write(self, line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
        self._last_line = time.monotonic()
