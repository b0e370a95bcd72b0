"""A disk that fills up, as runs of one process and of two meet it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.distributed.launching import launch
from tune.cli.main import main
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


@pytest.fixture
def run(common: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Train on two processes, or in this one; return the exit code, and what was said."""

    def train(num_processes: int, *arguments: str) -> tuple[int, str]:
        words = (*common, f"batch_size={4 // num_processes}", *arguments)
        if num_processes == 1:
            code, said = main(["run", "full_finetune", *words]), capsys.readouterr().err
        else:
            done = launch(num_processes, "full_finetune", *words)
            code, said = done.returncode, done.stderr
        assert "Traceback" not in said, said
        assert said.count("error:") <= 1, said
        return code, said

    return train


def test_a_full_disk_is_one_error_and_loses_nothing(disk: Path, run: Callable[..., tuple[int, str]]) -> None:
    """Of a step of 8.5 MB, 2.8 are the model: with no room for it, for the state, or for anything at all."""
    out = disk / "out"
    go_on = [f"output_dir={out}", "resume_from_checkpoint=true"]
    fill(disk, 14_000_000)  # for one step and the second one's model
    code, said = run(2, *go_on, "enable_async_checkpointing=true")
    assert code == 1, said
    assert "could not save step_000002" in said
    assert "the optimizer state cannot be written: " in said
    assert "No space left on device" in said
    assert "intact; the newest is step_000001" in said
    assert [saved.step for saved in list_saved_steps(out)] == [1]
    assert not list(out.glob(".unfinished*"))

    fill(disk, 1_000_000)
    code, said = run(1, *go_on)
    assert code == 1, said
    assert "could not save step_000002" in said
    assert "the model cannot be written" in said
    assert "No space left on device" in said

    fill(disk, 0)
    (out / "logs" / "rank_1.log").unlink()  # which finds no room, either
    code, said = run(2, *go_on)
    assert code == 1, said
    assert f"cannot be copied to {out}/.tokenizer: [Errno 28] No space left on device" in said
    assert "Saved steps are intact" in said
    assert not (out / ".tokenizer.new").exists()

    (disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    code, said = run(2, *go_on)
    assert code == 1, said
    assert f"output_dir: {out} cannot be written to" in said

    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    code, said = run(1, *go_on)
    assert code == 0, said
    assert steps_of(out) == [1, 2, 3]
    for saved in list_saved_steps(out):
        verify_step(saved)
    newest = find_newest_complete_step(out)
    assert newest is not None
    assert newest.step == 3
