"""What there is to know of a run beside its numbers: how it was started, where, on what data, and how it ended."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tune.checkpoints.run_folder import RUN_RECORD, read_run_record
from tune.checkpoints.writers import replacing
from tune.training.saving.console_log import ConsoleLog, describe_error
from tune.training.saving.run_surroundings import describe_command, describe_versions
from tune.utils import get_logger
from tune.utils.secret_masking import mask_text

__all__ = ["Report", "RunRecord"]

VERSION = 1
# Writes the page about a run from the files in its folder; `picture` says whether to draw its curve anew, too.
Report = Callable[..., object]
# A picture takes part of a second: a run that saves often is not to be slower for it.
_PICTURE_EVERY_S = 10.0
_MAX_ERROR = 20_000


class RunRecord:
    """`run.json` and `console.log` of a run; of several processes the first one writes the record.

    The record is written when the run begins to train, at each saved step and at the end, whole each time. Each time
    that the run is started is a session in it; one that was killed is seen by that it never ended.

    What cannot be written costs the record, not the run. A file of its name which is none of ours is left as it is.

    Args:
        output_dir: of the run.
        rank: of this process.

    Attributes:
        report: called with the folder after each writing, once it is set.
    """

    def __init__(self, output_dir: Path, rank: int = 0) -> None:
        self.report: Report | None = None
        self._folder, self._rank = output_dir, rank
        self._path = output_dir / RUN_RECORD
        self._console: ConsoleLog | None = None
        self._facts: dict[str, Any] = {}
        self._session: dict[str, Any] = {}
        self._earlier: dict[str, Any] = {}
        self._is_open = self._has_started = False
        self._pictured = time.monotonic()
        self._lock = threading.RLock()

    def begin(self, goes_on: bool) -> None:
        """Take down when and how the run was started; call it once the folder is held."""
        self._console = ConsoleLog(self._folder, self._rank, goes_on)
        if self._rank:
            return
        self._is_open, self._earlier = self._read_earlier()
        if not goes_on:
            self._earlier = {}
        self._session = {
            "started": _now(),
            "command": describe_command(),
            "versions": describe_versions(),
            "status": "running",
        }

    def note(self, **facts: Any) -> None:
        """Take down facts about the run, written with the next writing; a mapping adds to an earlier one."""
        with self._lock:
            for name, fact in facts.items():
                before = self._facts.get(name)
                both = isinstance(before, Mapping) and isinstance(fact, Mapping)
                self._facts[name] = {**before, **fact} if both else fact  # type: ignore[dict-item]

    def start(self, step: int) -> None:
        """Write the record of a run that stands before its first step, or goes on after `step`."""
        self._has_started = True
        self._session |= {"from_step": step, "step": step}
        self._write()

    def note_saved(self, step: int) -> None:
        """Take down that a step was saved; the report is written anew."""
        self._session |= {"step": step, "saved": _now()}
        self._write()
        self._report(time.monotonic() - self._pictured >= _PICTURE_EVERY_S)

    def finish(self, status: str, result: Mapping[str, Any]) -> None:
        """Take down how the run ended; the report is written for the last time."""
        self._session |= {"status": status, "step": result.get("step"), "ended": _now()}
        self.note(result=dict(result))
        self._write()
        self._report(True)

    def close(self) -> None:
        """Take down what has ended the run, where that was an error, and let go of the console."""
        error = describe_error()
        if self._session.get("status") == "running":
            self._session |= {"status": "failed" if error else "stopped", "ended": _now()}
            if error:
                self._session["error"] = mask_text(error[-_MAX_ERROR:])
            self._write()
            # Whoever asks a second time does not want to wait.
            if self._has_started and sys.exc_info()[0] is not KeyboardInterrupt:
                self._report(False)
        self._session = {}
        if self._console is not None:
            self._console.close()

    def _write(self) -> None:
        if not self._is_open or not self._session:
            return
        with self._lock:
            earlier = [_ended(each) for each in self._earlier.get("sessions", ())]
            record = {"tune_run": VERSION, "status": self._session["status"]}
            if self._earlier and not self._has_started:
                # A start that was refused is a session, and changes nothing else.
                record = dict(self._earlier)
            else:
                names = ("command", "versions")
                record |= {name: self._session[name] for name in names} | self._facts
                record["warnings"] = self._console.warnings if self._console else []
            record["sessions"] = [*earlier, self._session]
            text = json.dumps(_plain(record), indent=1, ensure_ascii=False, allow_nan=False)
        try:
            with replacing(self._path) as staged:
                staged.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            self._is_open = False
            get_logger().warning(
                f"{self._path} cannot be written: {error.strerror}. The run goes on without."
            )

    def _report(self, picture: bool) -> None:
        if self.report is None or not self._is_open:
            return
        try:
            self.report(self._folder, picture=picture)
        except Exception as error:  # noqa: BLE001 - a page about the run must not end the run
            get_logger().warning(
                f"the report in {self._folder} cannot be written: {type(error).__name__}: {error}"
            )
        if picture:
            self._pictured = time.monotonic()

    def _read_earlier(self) -> tuple[bool, dict[str, Any]]:
        """Return whether the file is ours to write, and what earlier sessions of the run left in it."""
        with suppress(OSError):
            if not self._path.exists() and not self._path.is_symlink():
                return True, {}
        if (record := read_run_record(self._folder)) is not None:
            return True, record
        get_logger().warning(f"{self._path} is no record of tune's, so it is left as it is")
        return False, {}


def _ended(session: Mapping[str, Any]) -> dict[str, Any]:
    """Return an earlier session; one that never ended was killed."""
    return {**session, "status": "killed"} if session.get("status") == "running" else dict(session)


def _plain(value: Any) -> Any:
    """Return a value as strict JSON has it: no NaN, no objects."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
