"""The files of an evaluation: answers as they come, and the scores at the end; nothing of anybody else is touched."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from tune.checkpoints.writers import replacing
from tune.errors import DataError
from tune.evaluation.scores import Outcome
from tune.utils.paths import expand_path

__all__ = [
    "ANSWERS",
    "ANSWERS_BEFORE",
    "MARK",
    "SCORES",
    "choose_dir",
    "make_room",
    "name_tasks",
    "open_answers",
    "refuse_foreign",
    "short_hash",
    "write_answer",
    "write_scores",
]

ANSWERS, ANSWERS_BEFORE, SCORES = "answers.jsonl", "answers_before.jsonl", "scores.json"
EVALUATIONS = "evaluations"
# The key by which scores are told from other files, and how each line of answers begins.
MARK = "tune_evaluation"
_ROW_START = b'{"place": '


def choose_dir(run: Path | None, folder: str, name: str, data_id: str) -> Path:
    """Return the folder for the results: by what is scored, so that the same evaluation takes its own place again.

    Args:
        run: the folder of the run that trained the model, in which it then lies; None: it is one of the working
            directory's.
        folder: of the model or adapter; the saved step that it lies in is part of the name.
        name, data_id: of the data, or the tasks; see `HeldOut.id`, `name_tasks`.
    """
    name = re.sub(r"\W+", "_", name).strip("_")[:80] or "data"
    place = expand_path(folder)
    place = (place / "latest" if (place / "latest").exists() else place).resolve()
    home = None if run is None else run.resolve()
    if home is not None and place.is_relative_to(home):
        saved = place.relative_to(home).parts[:1]  # a step, or what lies beside the steps
        return home_of(run) / "_".join([*saved, name])
    return home_of(run) / "_".join([place.name, name, short_hash(str(place), data_id)])


def name_tasks(tasks: Sequence[str], include_path: str | None) -> tuple[str, str]:
    """Return what to call some tasks in a file's name, and what tells them from all others."""
    own = "" if include_path is None else str(expand_path(include_path).resolve())
    name, short = "_".join(tasks), short_hash(*tasks, own)
    return (name if len(name) <= 60 and not own else f"{name[:60]}_{short}"), short


def home_of(run: Path | None) -> Path:
    """Return the folder that holds the evaluations of a run, or of models that are of no run."""
    return (expand_path("out") if run is None else run) / EVALUATIONS


def short_hash(*texts: str) -> str:
    """Return a few letters that are others where the texts are."""
    return hashlib.blake2b("\0".join(texts).encode(errors="surrogateescape"), digest_size=4).hexdigest()


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


@contextmanager
def open_answers(file: Path | None) -> Iterator[BinaryIO | None]:
    """Yield the file for answers, new; to a process that writes none, None.

    Raises:
        DataError: it cannot be written, or holds something else.
    """
    if file is None:
        yield None
        return
    make_room(file)
    with ExitStack() as held:
        with _explained(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            # Nothing waits in a buffer, which would fail once more at its end where the disk is full.
            answers = held.enter_context(file.open("wb", buffering=0))
        yield cast(BinaryIO, answers)


def write_answer(file: BinaryIO | None, outcome: Outcome) -> None:
    """Write one example as a line, at once: an evaluation that ends early leaves what it has, in whole lines.

    Raises:
        DataError: it cannot be written.
    """
    if file is None:
        return
    row = json.dumps(outcome.to_json(), ensure_ascii=False, default=str) + "\n"
    line, start = row.encode("utf-8", errors="backslashreplace"), file.tell()
    with _explained(Path(file.name)):
        try:
            while line:
                line = line[file.write(line) :]
        except OSError:
            file.truncate(start)
            raise


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Within, what the system refuses is told of the file."""
    try:
        yield
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
    with _explained(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as staged:
            staged.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    return text
