"""Saved steps: whole or not there, verified, never lost to a failure of a later one."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests import warm_python
from tune.errors import CheckpointError, TrainingError
from tune.training import SavedStep, find_newest_complete_step, list_saved_steps, verify_step
from tune.training.saving.resume_point import choose_step_to_resume
from tune.training.saving.run_lock import RunLock
from tune.training.saving.saved_steps import (
    link_steps,
    prune_saved_steps,
    remove_unfinished_steps,
    write_step,
)


def save(output_dir: Path, step: int, content: str = "weights") -> SavedStep:
    with write_step(output_dir, step) as staged:
        (staged / "model").mkdir()
        (staged / "model" / "model.safetensors").write_text(content)
        (staged / "state").mkdir()
        (staged / "state" / ".metadata").write_text("hidden files count too")
    return SavedStep(output_dir / f"step_{step:06d}", step)


def test_a_saved_step_has_a_manifest_of_every_file(tmp_path: Path) -> None:
    saved = save(tmp_path, 12)
    manifest = json.loads((saved.path / "manifest.json").read_text())
    assert manifest["step"] == 12
    assert set(manifest["files"]) == {"model/model.safetensors", "state/.metadata"}
    assert manifest["files"]["model/model.safetensors"]["bytes"] == len("weights")
    verify_step(saved)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_000012"]


def test_nothing_has_the_final_name_before_it_is_whole(tmp_path: Path) -> None:
    with write_step(tmp_path, 3) as staged:
        (staged / "weights").write_text("w")
        assert list_saved_steps(tmp_path) == []
    assert [saved.step for saved in list_saved_steps(tmp_path)] == [3]


def test_a_failing_body_leaves_earlier_steps_and_nothing_else(tmp_path: Path) -> None:
    earlier = save(tmp_path, 1)

    def run_out_of_space() -> None:
        with write_step(tmp_path, 2) as staged:
            (staged / "half").write_text("w")
            raise OSError(28, "No space left on device")

    with pytest.raises(
        CheckpointError, match=r"step_000002.*No space left.*intact; the newest is step_000001"
    ):
        run_out_of_space()
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_000001"]
    verify_step(earlier)


def test_another_process_that_has_gone_is_no_matter_of_the_disk(tmp_path: Path) -> None:
    words = "[/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:10409"
    with pytest.raises(RuntimeError, match="closed by peer") as caught, write_step(tmp_path, 1):
        raise RuntimeError(words)
    assert not isinstance(caught.value, CheckpointError)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_while_saving_is_passed_on_and_cleaned_up(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), write_step(tmp_path, 2):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_saving_the_same_step_again_replaces_it_whole(tmp_path: Path) -> None:
    save(tmp_path, 5, "old")
    saved = save(tmp_path, 5, "new")
    assert (saved.model_dir / "model.safetensors").read_text() == "new"
    verify_step(saved)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "manifest.json").unlink(), "not finished"),
        (lambda path: (path / "manifest.json").write_text("{"), "cannot be read"),
        (lambda path: (path / "manifest.json").write_text("[]"), "cannot be read"),
        (lambda path: (path / "manifest.json").write_text('{"files": {"a": 3}}'), "cannot be read"),
        (
            lambda path: (path / "model" / "model.safetensors").write_text("weigh"),
            "has 5 bytes, 7 were written",
        ),
        (lambda path: (path / "model" / "model.safetensors").write_text("weighty"), "has changed"),
        (lambda path: shutil.rmtree(path / "model"), "model.safetensors cannot be read: No such file"),
    ],
)
def test_damage_is_named_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage, reason
) -> None:
    good = save(tmp_path, 4)
    bad = save(tmp_path, 8)
    damage(bad.path)
    with pytest.raises(CheckpointError, match=reason):
        verify_step(bad)
    with caplog.at_level(logging.WARNING, "tune"):
        assert find_newest_complete_step(tmp_path) == good
    assert "step_000008" in caplog.text
    assert reason in caplog.text


def test_newest_is_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 2):
        save(tmp_path, step)
    (tmp_path / "step_12").mkdir()
    (tmp_path / "step_000099").symlink_to("step_000002")
    newest = find_newest_complete_step(tmp_path)
    assert newest is not None
    assert newest.step == 1_000_000
    assert find_newest_complete_step(tmp_path / "nowhere") is None


def test_links_move_in_one_motion(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
        link_steps(tmp_path, latest=step, best=None)
    assert not (tmp_path / "best").exists()
    link_steps(tmp_path, latest=3, best=1)  # 3 is not there: its link stays
    assert os.readlink(tmp_path / "best") == "step_000001"
    assert os.readlink(tmp_path / "latest") == "step_000002"
    assert (tmp_path / "latest" / "manifest.json").exists()
    assert not (tmp_path / ".latest.new").exists()
    shutil.move(tmp_path, tmp_path.with_name("moved"))  # links are relative
    assert (tmp_path.with_name("moved") / "latest" / "manifest.json").exists()


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    link_steps(tmp_path, latest=5, best=2)
    deleted = prune_saved_steps(tmp_path, 2)
    assert [saved.step for saved in deleted] == [1, 3]
    assert [saved.step for saved in list_saved_steps(tmp_path)] == [2, 4, 5]
    assert not list(tmp_path.glob(".discarded*"))


def test_pruning_never_deletes_the_step_just_saved(tmp_path: Path) -> None:
    """Step 3 is damaged, so the run went on from step 1; a stop saved step 2, which is all there is to go on from."""
    for step in (1, 3, 2):
        save(tmp_path, step)
    (tmp_path / "step_000003" / "manifest.json").unlink()
    deleted = prune_saved_steps(tmp_path, 1, newest=2)
    assert [saved.step for saved in deleted] == [1]
    found = choose_step_to_resume(tmp_path, resume=True)
    assert found is not None
    assert found.step == 2


def test_choosing_where_to_go_on(tmp_path: Path) -> None:
    assert choose_step_to_resume(tmp_path, resume=False) is None
    assert choose_step_to_resume(tmp_path, resume=True) is None
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    with pytest.raises(
        CheckpointError, match=r"2 saved steps.*newest step_000002.*resume_from_checkpoint=true"
    ):
        choose_step_to_resume(tmp_path, resume=False)
    assert choose_step_to_resume(tmp_path, resume=True) == second
    assert choose_step_to_resume(tmp_path, True, "step_000001") == first
    with pytest.raises(CheckpointError, match=r"'recipe_state\.pt' is not a saved step.*1, step_000002"):
        choose_step_to_resume(tmp_path, True, "recipe_state.pt")
    for saved in (first, second):
        (saved.path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="none of the 2 saved steps"):
        choose_step_to_resume(tmp_path, resume=True)


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".unfinished_step_000002").mkdir()
    (tmp_path / ".discarded_step_000000").mkdir()
    remove_unfinished_steps(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_000001"]


def test_a_file_system_limit_is_a_clear_error(tmp_path: Path) -> None:
    earlier = save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        expected = r"could not save step_000002.*File too large.*GiB are free"
        with pytest.raises(CheckpointError, match=expected), write_step(tmp_path, 2) as staged:
            (staged / "weights").write_bytes(b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    verify_step(earlier)
    assert len(list(tmp_path.iterdir())) == 1


def test_one_run_at_a_time(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "new" / "out")
    with pytest.raises(TrainingError, match="another run is writing"):
        RunLock(tmp_path / "new" / "out")
    lock.release()
    lock.release()
    RunLock(tmp_path / "new" / "out").release()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write in output_dir"):
        RunLock(tmp_path / "file" / "out")


SAVE_FOR_EVER = """
    import sys
    from pathlib import Path
    from tune.training.saving.saved_steps import write_step
    output_dir, step = Path(sys.argv[1]), 0
    while True:
        step += 1
        with write_step(output_dir, step) as staged:
            for number in range(20):
                (staged / f"file_{number}").write_bytes(bytes([step % 251]) * 50_000)
"""


def test_killed_while_saving_every_named_step_is_whole(tmp_path: Path) -> None:
    for delay in (0.0, 0.011, 0.023):
        output_dir = tmp_path / str(delay)
        process = warm_python.Popen(
            [sys.executable, "-c", textwrap.dedent(SAVE_FOR_EVER), str(output_dir)], cwd=Path.cwd()
        )
        deadline = time.monotonic() + 300
        while not list_saved_steps(output_dir) and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(delay)
        process.kill()
        process.wait()
        steps = list_saved_steps(output_dir)
        assert steps
        for saved in steps:
            verify_step(saved)
        remove_unfinished_steps(output_dir)
        assert len(list(output_dir.iterdir())) == len(steps)
