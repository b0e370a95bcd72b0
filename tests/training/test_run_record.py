"""What a run leaves of itself beside its numbers: run.json, console.log, and no secret in them."""

from __future__ import annotations

import json
import logging
import subprocess
import warnings
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tune.checkpoints.run_folder import read_run_record
from tune.errors import TrainingError
from tune.training.saving.console_log import ConsoleLog
from tune.training.saving.run_lock import RunLock
from tune.training.saving.run_record import RunRecord
from tune.training.saving.run_surroundings import describe_command, describe_recipe
from tune.utils import get_logger
from tune.utils.secret_masking import is_secret_name, mask_arguments, mask_text


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def started(folder: Path, goes_on: bool = False, step: int = 0) -> RunRecord:
    record = RunRecord(folder)
    record.begin(goes_on)
    record.start(step)
    return record


def test_a_record_from_begin_to_end(tmp_path: Path) -> None:
    record = started(tmp_path)
    assert read(tmp_path)["status"] == "running"
    record.note(data={"num_rows": 3}, memory={"predicted_gib": 1.5})
    record.note(memory={"measured_gib": float("nan")})
    record.note_saved(5)
    assert read(tmp_path)["sessions"][-1]["step"] == 5
    assert read(tmp_path)["memory"] == {"predicted_gib": 1.5, "measured_gib": "nan"}
    record.finish("finished", {"step": 7, "loss": 0.5})
    record.close()
    assert read(tmp_path)["status"] == "finished"
    assert read(tmp_path)["result"] == {"step": 7, "loss": 0.5}
    assert {"tune", "torch", "cuda", "python"} == read(tmp_path)["versions"].keys()


def test_a_killed_session_and_the_one_after_it(tmp_path: Path) -> None:
    started(tmp_path)  # and no more is heard of it
    record = started(tmp_path, goes_on=True, step=4)
    record.finish("finished", {"step": 9})
    record.close()
    assert [each["status"] for each in read(tmp_path)["sessions"]] == ["killed", "finished"]
    assert read(tmp_path)["sessions"][1]["from_step"] == 4


def test_a_killed_run_is_told_by_its_lock(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    started(tmp_path)
    assert (read_run_record(tmp_path) or {})["status"] == "running"
    lock.release()
    assert (read_run_record(tmp_path) or {})["status"] == "killed"


def test_a_start_that_is_refused_changes_no_result(tmp_path: Path) -> None:
    record = started(tmp_path)
    record.finish("finished", {"step": 9})
    record.close()
    refused = RunRecord(tmp_path)
    refused.begin(goes_on=True)
    with suppress(TrainingError), closing(refused):
        raise TrainingError("other settings, and hf_abcdefghijklmnopqrstuvwxyz")
    found = read(tmp_path)
    assert found["status"] == "finished"
    assert found["result"] == {"step": 9}
    assert found["sessions"][1]["status"] == "failed"
    assert found["sessions"][1]["error"] == "error: other settings, and ***"
    assert "error: other settings" in (tmp_path / "console.log").read_text()


def test_a_run_anew_forgets_the_one_before(tmp_path: Path) -> None:
    started(tmp_path).close()
    started(tmp_path).close()
    assert len(read(tmp_path)["sessions"]) == 1
    assert (tmp_path / "console.log").read_text().count("=== tune") == 1


@pytest.mark.parametrize("name", ["run.json", "console.log"])
def test_somebody_elses_file_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    record = started(tmp_path)
    record.finish("finished", {"step": 1})
    record.close()
    assert (tmp_path / name).read_text() == '{"mine": 1}'


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_text("")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "console.log").symlink_to(target)
    started(folder).close()
    assert target.read_text() == ""


def test_what_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    record = started(tmp_path)
    (tmp_path / "run.json").unlink()
    (tmp_path / "run.json").mkdir()
    record.note_saved(3)
    record.close()


def test_a_report_that_fails_ends_no_run(tmp_path: Path) -> None:
    def fail(folder: Path, picture: bool) -> None:
        raise ZeroDivisionError(folder, picture)

    get_logger("INFO")
    record = started(tmp_path)
    record.report = fail
    record.note_saved(1)
    record.finish("finished", {"step": 1})
    record.close()
    assert "ZeroDivisionError" in (tmp_path / "console.log").read_text()


def test_the_console_line_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    get_logger("INFO").info("before the folder is known")
    with closing(ConsoleLog(tmp_path)) as console:
        get_logger().info("two\nlines")
        get_logger().debug("more than was asked for")
        get_logger().warning("a \x1b[31mred\x1b[0m one")
        with warnings.catch_warnings(record=False):
            warnings.simplefilter("always")
            warnings.warn("of a library", stacklevel=1)
        assert len(console.warnings) == 2
        lines = (tmp_path / "console.log").read_text().split("\n")
    assert lines[0].startswith("=== tune, ")
    assert lines[1:5] == ["before the folder is known", "two", "lines", r"a \x1b[31mred\x1b[0m one"]
    assert lines[5] == "UserWarning: of a library"
    assert "before the folder is known" in capsys.readouterr().err
    get_logger().info("after the end")
    assert "after the end" not in (tmp_path / "console.log").read_text()


def test_another_rank_adds_its_errors(tmp_path: Path) -> None:
    with closing(ConsoleLog(tmp_path)):
        pass
    with closing(ConsoleLog(tmp_path, rank=3)) as console:
        console.write("as all of them say", logging.INFO)
        console.write("broken\nhere", logging.ERROR)
    text = (tmp_path / "console.log").read_text()
    assert text.endswith("rank 3: broken\nrank 3: here\n")
    assert "as all of them say" not in text


def test_the_git_state_of_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text("print(1)\n")
    assert describe_recipe(recipe)["git"] is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (["init", "-q"], ["add", "mine.py"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    first = describe_recipe(recipe)
    assert first["git"]["recipe_changed"] is False
    assert len(first["git"]["commit"]) == 40
    recipe.write_text("print(2)\n")
    second = describe_recipe(recipe)
    assert second["git"]["recipe_changed"] is True
    assert second["sha256"] != first["sha256"]
    assert describe_recipe(tmp_path / "gone.py")["sha256"] is None


HF_TOKEN = "hf_" + "a1B2" * 8


def test_the_command_line_without_its_secrets() -> None:
    arguments = [
        "mine.py",
        "lr=1",
        f"x={HF_TOKEN}",
        "metric_logger.api_key=s3cret",
        "--hf-token",
        "s3cret",
        "seed=1",
    ]
    shown = describe_command(arguments)
    assert "s3cret" not in shown
    assert HF_TOKEN not in shown
    assert shown == "tune run mine.py lr=1 'x=***' 'metric_logger.api_key=***' --hf-token '***' seed=1"


@pytest.mark.parametrize(
    "name", ["hf_token", "api_key", "apiKey", "wandb.api-key", "PASSWORD", "client_secret"]
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)
    assert mask_arguments([f"{name}=abc"]) == [f"{name}=***"]


@pytest.mark.parametrize(
    "name", ["max_new_tokens", "tokenizer.path", "eos_token", "lr", "key_mapping", "author"]
)
def test_names_that_hold_none(name: str) -> None:
    assert not is_secret_name(name)
    assert mask_arguments([f"{name}=abc"]) == [f"{name}=abc"]


def test_secrets_within_a_text() -> None:
    text = 'source: {token: abc, path: x} at https://me:pw@host/x "api_key": "d e f" seed=3'
    assert mask_text(text) == 'source: {token: ***, path: x} at https://***@host/x "api_key": *** seed=3'


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer SECRET0123456789ab",
        '\\"Authorization\\": \\"Bearer SECRET0123456789ab\\"',
        "-----BEGIN RSA PRIVATE KEY-----\nSECRET\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_secrets_of_several_words_are_masked(text: str) -> None:
    assert "SECRET" not in mask_text(text)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"sessions": 3}', "9" * 5000, '{"tune_run": 1, "sessions": [3]}']
)
def test_damaged_records(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    record = read_run_record(tmp_path)
    assert record is None or record["sessions"] == []
