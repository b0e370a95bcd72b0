"""The files of an evaluation: answers as they come, and the scores at the end; nothing of anybody else is touched."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from tune.checkpoints.writers import replacing
from tune.errors import DataError
from tune.utils.paths import expand_path

__all__ = [
    "ANSWERS",
    "ANSWERS_BEFORE",
    "MARK",
    "SCORES",
    "choose_dir",
    "make_room",
    "open_answers",
    "refuse_foreign",
    "write_scores",
]

ANSWERS, ANSWERS_BEFORE, SCORES = "answers.jsonl", "answers_before.jsonl", "scores.json"
EVALUATIONS = "evaluations"
# The key by which scores are told from other files, and how each line of answers begins.
MARK = "tune_evaluation"
_ROW_START = b'{"place": '


def choose_dir(run: Path | None, folder: str, name: str) -> Path:
    """Return the folder for the results: by what is scored, so that the same evaluation takes its own place again.

    Args:
        run: the folder of the run that trained the model, in which it then lies; None: it is one of the working
            directory's.
        folder: of the model or adapter; the saved step that it lies in is part of the name.
        name: of the data, or the tasks.
    """
    name = re.sub(r"\W+", "_", name).strip("_")[:80] or "data"
    place = expand_path(folder)
    place = (place / "latest" if (place / "latest").exists() else place).resolve()
    if run is None:
        return expand_path("out") / EVALUATIONS / f"{place.name}_{name}"
    step = re.findall(r"step_\d+", str(place))
    return run / EVALUATIONS / (f"{step[-1]}_{name}" if step else name)


def make_room(file: Path) -> None:
    """Remove the answers of an earlier evaluation, and the scores beside them, which tell of these.

    Raises:
        DataError: it cannot be removed, or holds something else.
    """
    try:
        if file.is_file():
            with file.open("rb") as stream:
                if stream.read(len(_ROW_START)) not in (b"", _ROW_START):
                    raise DataError(
                        f"{file} holds no answers, so it is left as it is: choose another output_dir"
                    )
            file.unlink()
        file.with_name(SCORES).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{file} cannot be removed: {error.strerror}. Choose another output_dir") from error


def open_answers(file: Path) -> IO[str]:
    """Return the file for answers, new.

    Raises:
        DataError: it cannot be written, or holds something else.
    """
    make_room(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return file.open("w", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise DataError(f"{file} cannot be written: {error.strerror}. Choose another output_dir") from error


def refuse_foreign(file: Path) -> None:
    """Refuse to write over a file that holds no scores of ours.

    Raises:
        DataError: it holds something else, or cannot be read.
    """
    try:
        if not file.exists():
            return
        with file.open("rb") as stream:
            if MARK.encode() in stream.read(100):
                return
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. Choose another output_dir") from error
    raise DataError(f"{file} holds no scores of ours, so it is left as it is: choose another output_dir")


def write_scores(file: Path, result: Mapping[str, Any]) -> str:
    """Write what an evaluation has found, whole or not at all; return it as text.

    Raises:
        DataError: it cannot be written.
    """
    text = json.dumps({MARK: 1, **result}, ensure_ascii=False, indent=1, allow_nan=False, default=str)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as staged:
            staged.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise DataError(f"{file} cannot be written: {error.strerror}") from error
    return text
