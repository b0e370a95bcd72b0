"""A disk that fills up, as runs of one process and of two meet it; and what else may be in the way of a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.launching import launch
from tests.permissions import bind_for_good, require_binding
from tune.training import find_newest_complete_step, list_saved_steps, verify_step

MOUNT = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 60 MB."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run([*MOUNT, str(path)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of 3 steps of 4 sequences; each step is saved."""
    path = tmp_path_factory.mktemp("data") / "orders.jsonl"
    rows = [{"instruction": "Say it.", "input": "mill " * (1 + i % 5), "output": "mill"} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        *("--config", "tiny/full_finetune", f"dataset.source={path}", "epochs=1", "log_level=WARNING"),
        *("log_every_n_steps=1", "lr_scheduler.num_warmup_steps=1", "save_every_n_steps=1"),
    ]


def fill(disk: Path, num_free: int) -> None:
    """Leave so many bytes free."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - num_free)


def steps_of(output_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def run(num_processes: int, common: list[str], *arguments: str) -> tuple[int, str]:
    done = launch(num_processes, "full_finetune", *common, f"batch_size={4 // num_processes}", *arguments)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("error:") <= 1, done.stderr
    return done.returncode, done.stderr


def test_a_full_disk_is_one_error_and_loses_nothing(disk: Path, common: list[str]) -> None:
    """Of a step of 8.5 MB, 2.8 are the model: with no room for it, for the state, or for anything at all."""
    out = disk / "out"
    go_on = [f"output_dir={out}", "resume_from_checkpoint=true"]
    fill(disk, 14_000_000)  # for one step and the second one's model
    code, said = run(2, common, *go_on, "enable_async_checkpointing=true")
    assert code == 1, said
    assert "could not save step_000002" in said
    assert "the optimizer state cannot be written: " in said
    assert "No space left on device" in said
    assert "intact; the newest is step_000001" in said
    assert [saved.step for saved in list_saved_steps(out)] == [1]
    assert not list(out.glob(".unfinished*"))

    fill(disk, 1_000_000)
    code, said = run(1, common, *go_on)
    assert code == 1, said
    assert "could not save step_000002" in said
    assert "the model cannot be written" in said
    assert "No space left on device" in said

    fill(disk, 0)
    (out / "logs" / "rank_1.log").unlink()  # which finds no room, either
    code, said = run(2, common, *go_on)
    assert code == 1, said
    assert f"cannot be copied to {out}/.tokenizer: [Errno 28] No space left on device" in said
    assert "Saved steps are intact" in said
    assert not (out / ".tokenizer.new").exists()

    (disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    code, said = run(2, common, *go_on)
    assert code == 1, said
    assert f"output_dir: {out} cannot be written to" in said

    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    code, said = run(1, common, *go_on)
    assert code == 0, said
    assert steps_of(out) == [1, 2, 3]
    for saved in list_saved_steps(out):
        verify_step(saved)
    newest = find_newest_complete_step(out)
    assert newest is not None
    assert newest.step == 3


# What the first argument says happens on one process, in the middle of a run or before a saved step is loaded.
MEDDLING = """
import os, shutil, sys
from recipes.full_finetune import FullFinetuneRecipe, recipe_main
from tune import training

rank, when, what = os.environ["RANK"], *os.environ["MEDDLING"].split()
save, find = FullFinetuneRecipe.save_checkpoint, training.Checkpoints.find

def meddle(folder):
    folder.chmod(0o500) if what == "lock" else shutil.rmtree(folder)

def save_checkpoint(self):
    if when == "saving" and rank == "1" and self.state.step == 2:
        self.checkpoints.wait()
        meddle(self.checkpoints.output_dir)
    save(self)

def find_and_meddle(self, *args, **kwargs):
    find(self, *args, **kwargs)
    if when == "loading" and rank == "1":
        meddle(self.resumed.state_dir)

FullFinetuneRecipe.save_checkpoint, training.Checkpoints.find = save_checkpoint, find_and_meddle
if __name__ == "__main__":
    sys.exit(recipe_main())
"""


def test_what_one_process_loses_ends_all(
    common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output directory is locked while two processes train; the state of a step goes before they load it."""
    require_binding()
    (tmp_path / "meddling.py").write_text(MEDDLING)
    out = tmp_path / "out"
    words = [*common, f"output_dir={out}", "batch_size=2", "resume_from_checkpoint=true"]
    monkeypatch.setenv("MEDDLING", "saving lock")
    done = launch(
        2, tmp_path / "meddling.py", *words, "enable_async_checkpointing=true", before=bind_for_good
    )
    out.chmod(0o700)
    assert done.returncode == 1, done.stderr
    assert "could not save step_000002" in done.stderr
    assert "Permission denied" in done.stderr
    assert "Traceback" not in done.stderr
    assert [saved.step for saved in list_saved_steps(out)] == [1]

    shutil.copytree(out / "step_000001", tmp_path / "whole")
    monkeypatch.setenv("MEDDLING", "loading remove")
    done = launch(2, tmp_path / "meddling.py", *words)
    assert done.returncode == 1, done.stderr
    assert "cannot be read: " in done.stderr
    assert "No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1
    shutil.rmtree(out / "step_000001")
    shutil.copytree(tmp_path / "whole", out / "step_000001")
    verify_step(list_saved_steps(out)[-1])
