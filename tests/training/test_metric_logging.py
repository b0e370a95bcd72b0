"""Loggers: strict JSON, no line twice after a resume, and a clear word where a package is missing."""

from __future__ import annotations

import builtins
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from tune.errors import CheckpointError, ConfigError
from tune.training.metric_logging import (
    DiskLogger,
    JSONLLogger,
    StdoutLogger,
    TensorBoardLogger,
    WandBLogger,
)


def read_steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_jsonl_is_strict_json_even_for_nan(tmp_path: Path) -> None:
    logger = JSONLLogger(str(tmp_path))
    logger.log_dict({"loss": math.nan, "grad_norm": math.inf, "lr": 1e-5, "text": "ä\n"}, 7)
    logger.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line.count("\n") == 1

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    row = json.loads(line, parse_constant=refuse)
    assert row == {"step": 7, "loss": "nan", "grad_norm": "inf", "lr": 1e-5, "text": "ä\n"}


@pytest.mark.parametrize("logger_cls", [JSONLLogger, DiskLogger])
def test_rewind_cuts_later_and_half_written_lines(tmp_path: Path, logger_cls: type[Any]) -> None:
    logger = logger_cls(str(tmp_path))
    logger.rewind(3)  # nothing there yet
    for step in range(1, 7):
        logger.log_dict({"loss": 1.0 / step, "lr": 0.1}, step)
    whole = logger.path.read_text().splitlines(keepends=True)
    with open(logger.path, "a") as file:
        file.write(whole[3].rstrip("\n")[:-3])  # the process died in the middle of a line
    logger.rewind(4)
    assert logger.path.read_text() == "".join(whole[:4])
    logger.log("loss", 0.2, 5)
    logger.close()
    assert len(logger.path.read_text().splitlines()) == 5
    logger.rewind(-1)
    assert logger.path.read_text() == ""


def test_rewind_leaves_an_earlier_run_in_a_shared_file(tmp_path: Path) -> None:
    logger = DiskLogger(str(tmp_path))
    for step in (1, 2, 90, 1, 2, 3):
        logger.log("loss", 0.5, step)
    logger.rewind(2)
    assert [line.split()[1] for line in logger.path.read_text().splitlines()] == ["1", "2", "90", "1", "2"]


def test_each_line_is_in_the_file_at_once(tmp_path: Path) -> None:
    logger = JSONLLogger(str(tmp_path / "deep" / "er"))
    logger.log("loss", 1.0, 1)
    assert read_steps(tmp_path / "deep" / "er" / "metrics.jsonl") == [1]


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write metrics"):
        JSONLLogger(str(tmp_path / "file")).log("loss", 1.0, 1)


def test_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    logger = StdoutLogger()
    logger.log_dict({"loss": 2.125, "epoch": 0}, 3)
    logger.rewind(0)
    logger.close()
    assert capsys.readouterr().out == "Step 3 | loss:2.125 epoch:0\n"


def test_tensorboard_voids_what_the_resumed_run_writes_again(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = TensorBoardLogger(str(tmp_path))
    for step in (1, 2, 3):
        first.log_dict({"loss": float(step), "note": "text"}, step)
    first.close()
    second = TensorBoardLogger(str(tmp_path))
    second.rewind(1)
    second.log("loss", 20.0, 2)
    second.close()
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 20.0)]


@pytest.mark.parametrize(
    ("logger_cls", "package"), [(TensorBoardLogger, "tensorboard"), (WandBLogger, "wandb")]
)
def test_a_missing_package_is_named_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, logger_cls: type[Any], package: str
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if package in name:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    arguments = {"log_dir": "nowhere"} if package == "tensorboard" else {}
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        logger_cls(**arguments)


@pytest.mark.parametrize("filename", ["../x", "a/b", "/etc/x", "", ".", "..", "a\\b", "a\0b"])
def test_a_filename_is_a_bare_one(tmp_path, filename):
    with pytest.raises(ConfigError, match="expected a bare name"):
        DiskLogger(str(tmp_path), filename)


@pytest.mark.parametrize("kind", [DiskLogger, JSONLLogger])
@pytest.mark.parametrize("text", ["notes\n", "notes", '{"loss": 1}\n', "Stephen\n", "\n", "\0\0"])
def test_what_tune_did_not_write_is_left_as_it_is(tmp_path, kind, text):
    victim = tmp_path / "victim"
    victim.write_text(text)
    for arguments in ({}, {"overwrite": True}) if kind is JSONLLogger else ({},):
        with pytest.raises(CheckpointError, match="left as it is"):
            kind(str(tmp_path), "victim", **arguments)
    # Nor where it came there while the run went on.
    logger = kind(str(tmp_path), "mine")
    (tmp_path / "mine").write_text(text)
    with pytest.raises(CheckpointError, match="left as it is"):
        logger.rewind(0)
    assert victim.read_text() == (tmp_path / "mine").read_text() == text


@pytest.mark.parametrize("kind", [DiskLogger, JSONLLogger])
def test_a_line_cut_short_does_not_stop_the_next_run(tmp_path, kind):
    logger = kind(str(tmp_path))
    logger.log("loss", 1.0, 1)
    logger.close()
    whole = logger.path.read_text()
    for length in range(len(whole)):
        logger.path.write_text(whole[:length])
        again = kind(str(tmp_path))
        again.rewind(0)
        again.log("loss", 0.5, 1)
        again.close()
        assert again.path.read_text().count("\n") == 1
        # One that begins anew without a look back leaves whole lines, too.
        logger.path.write_text(whole + whole[:length])
        again = kind(str(tmp_path))
        again.log("loss", 1.0, 1)
        again.close()
        assert again.path.read_text() == whole * 2


STAND_IN = """
import json, sys
class Run:
    def log(self, payload, step): pass
    def finish(self): pass
def init(**arguments):
    with open({file!r}, "a") as stream:
        stream.write(json.dumps(arguments) + "\\n")
    return Run()
"""


def test_a_resumed_run_goes_on_in_the_service(tmp_path, monkeypatch):
    """wandb is not installed where this is tested: a module that records what `init` is given stands in for it."""
    calls = tmp_path / "calls"
    (tmp_path / "path").mkdir()
    (tmp_path / "path/wandb.py").write_text(STAND_IN.format(file=str(calls)))
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    folder = str(tmp_path / "out")
    for resume in (False, True, True, False):
        WandBLogger(log_dir=folder, resume=resume).close()
    WandBLogger().close()
    given = [json.loads(line) for line in calls.read_text().splitlines()]
    first, second, third, anew, nowhere = [(row["id"], row["resume"]) for row in given]
    assert first == second == third
    assert first[1] == anew[1] == "allow"
    assert anew[0] != first[0]
    assert nowhere == (None, None)
    assert (tmp_path / "out/wandb_run_id").read_text() == f"{anew[0]}\n"
    (tmp_path / "out/wandb_run_id").write_text("my notes")
    with pytest.raises(CheckpointError, match="left as it is"):
        WandBLogger(log_dir=folder)
    monkeypatch.delitem(sys.modules, "wandb")


@pytest.mark.parametrize("kind", [DiskLogger, JSONLLogger])
def test_a_folder_that_is_renamed_keeps_its_metrics(tmp_path, kind):
    logger = kind(str(tmp_path / "out"))
    logger.log("loss", 1.0, 1)
    (tmp_path / "out").rename(tmp_path / "moved")
    logger.log("loss", 0.5, 2)
    logger.close()
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "moved" / logger.path.name).read_text().count("\n") == 2


@pytest.mark.parametrize("kind", [DiskLogger, JSONLLogger])
def test_what_a_power_cut_left_at_the_end_is_taken_back(tmp_path, kind):
    logger = kind(str(tmp_path))
    logger.log("loss", 1.0, 1)
    logger.close()
    whole = logger.path.read_text()
    for tail in ("\0" * 40, "\0" * 40 + "\n", "\n", "garbage\n"):
        logger.path.write_text(whole + tail)
        kind(str(tmp_path)).rewind(1)
        assert logger.path.read_text() == whole
