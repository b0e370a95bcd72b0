"""A run on two processes that cannot be lost: killed, stopped, out of disk; resumed, it is the same run."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.launching import launch, rank_of, start
from tests.permissions import bind_for_good, can_bind, require_binding
from tune.cli.main import main
from tune.training import find_newest_complete_step, list_saved_steps

TINY = ("full_finetune", "--config", "tiny/full_finetune")
NUM_STEPS = 12


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of 12 steps of 6 sequences on two processes, each step saved; its epochs do not come out even."""
    path = tmp_path_factory.mktemp("data") / "orders.jsonl"
    words = ["mill", "basket", "goose", "crab", "forest"]
    rows = [
        {
            "instruction": "Say it.",
            "input": " ".join(words[: 1 + i % 5]),
            "output": " ".join(words[: 1 + i % 3]),
        }
        for i in range(34)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        *(
            f"dataset.source={path}",
            "batch_size=3",
            "epochs=2",
            "log_every_n_steps=1",
            "save_every_n_steps=1",
        ),
        *("lr_scheduler.num_warmup_steps=2", "log_level=WARNING", "enable_async_checkpointing=true"),
    ]


@pytest.fixture(scope="module")
def ended(common: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where bad_ends.py left its runs, and what both processes said about them."""
    folder = tmp_path_factory.mktemp("ended")
    before = bind_for_good if can_bind() else None
    done = launch(2, Path(__file__).with_name("bad_ends.py"), str(folder), *common, before=before)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def whole(ended: Path) -> Path:
    """The run that nothing happens to."""
    assert said_of(ended, "whole") == ["ended with 0"] * 2
    return ended / "whole"


def said_of(ended: Path, name: str) -> list[str]:
    return [json.loads((ended / f"said_{rank}.json").read_text())[name] for rank in (0, 1)]


def rows_of(output_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def weights_of(output_dir: Path) -> bytes:
    return (output_dir / "latest" / "model" / "model.safetensors").read_bytes()


def assert_same_run(one: Path, other: Path) -> None:
    """The weights byte for byte, and each step's loss once."""
    assert weights_of(one) == weights_of(other)
    assert [(row["step"], row["loss"]) for row in rows_of(one)] == [
        (row["step"], row["loss"]) for row in rows_of(other)
    ]


def wait_for(path: Path, process: Any) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.01)


def test_killed_at_any_moment_it_is_the_same_run(common: list[str], whole: Path, tmp_path: Path) -> None:
    """All at once, as when a machine goes down; then one process, as when the kernel runs out of memory."""
    out = tmp_path / "out"
    words = (*TINY, *common, f"output_dir={out}", "resume_from_checkpoint=true")
    rng, step = random.Random(1), 0
    for kills_all in (True, False):
        # Processes that read ahead outlive the rank that is killed alone.
        process = start(2, *words, f"num_workers={0 if kills_all else 1}")
        # Early, so that on a busy machine it does not come to its end before this process has its turn.
        wait_for(out / f"step_{step + rng.randint(1, 2):06d}", process)
        time.sleep(rng.random() * 0.15)
        if kills_all:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            assert process.poll() is None, "it was done before it could be killed"
            os.kill(rank_of(process.pid, 1), signal.SIGKILL)
        _, err = process.communicate(timeout=120)
        assert process.returncode != 0
        newest = find_newest_complete_step(out)
        assert newest is not None, err
        assert step < newest.step < NUM_STEPS
        step = newest.step
    done = launch(2, *words)
    assert done.returncode == 0, done.stderr
    assert_same_run(whole, out)


def test_asked_to_stop_all_stop_after_the_same_step(
    common: list[str], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the run goes on with another number of processes, the same but for how sums are rounded."""
    out = tmp_path / "out"
    words = (*TINY, *common, f"output_dir={out}")
    process = start(2, *words)
    wait_for(out / "step_000004", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    newest = list_saved_steps(out)[-1]
    assert newest == find_newest_complete_step(out)
    assert newest.step == rows_of(out)[-1]["step"]

    def go_on(*changes: str) -> tuple[int, str]:
        return main(["run", *words, "resume_from_checkpoint=true", *changes]), capsys.readouterr().err

    code, err = go_on()
    assert code == 1
    assert "sequences_per_step: was 6, is 3" in err
    # Three of one sequence, then six: the same global batch, cut up otherwise.
    code, err = go_on("batch_size=6", f"max_steps_per_epoch={NUM_STEPS}")
    assert code == 1
    assert "max_steps_per_epoch: was None, is 12" in err
    code, err = go_on("batch_size=6")
    assert code == 0, err
    assert "processes: was 2, is 1" in err
    ours, theirs = (
        load_file(out / "latest/model/model.safetensors"),
        load_file(whole / "latest/model/model.safetensors"),
    )
    for name in ours:
        # AdamW divides by the root of squared gradients: where these are small, rounding shows.
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-4)
    assert [row["step"] for row in rows_of(out)] == list(range(1, NUM_STEPS + 1))


def test_a_process_that_cannot_write_fails_the_save_on_all(ended: Path) -> None:
    for said in said_of(ended, "limited"):
        assert said.startswith("CheckpointError: could not save step_000001")
    assert not list((ended / "limited").glob("*step_*"))


def test_a_loss_that_is_no_number_on_one_process_stops_all(ended: Path, whole: Path) -> None:
    """The step before is saved, the bad one kept for study, and without the cause the run goes on as if nothing was."""
    for said in said_of(ended, "broken"):
        assert said.startswith("TrainingError: ")
        assert "step 4: the loss is nan" in said
    assert said_of(ended, "steps") == ["[2, 3]"] * 2
    study = ended / "broken" / "non_finite_step_000004"
    reports = [json.loads((study / f"report_rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(report["micro_batches"]) for report in reports] == [1, 1]
    assert said_of(ended, "resumed") == ["ended with 0"] * 2
    assert_same_run(whole, ended / "broken")


def test_what_one_process_loses_ends_all(ended: Path) -> None:
    """The output directory is locked while two processes train; the state of a step goes before they load it."""
    require_binding()
    for said in said_of(ended, "locked"):
        assert said.startswith("CheckpointError: could not save step_000002")
        assert "Permission denied" in said
    for said in said_of(ended, "robbed"):
        assert said.startswith("CheckpointError: ")
        assert "cannot be read: " in said
        assert "No such file or directory" in said
    assert [path.name for path in (ended / "damaged").glob("step_*")] == ["step_000001"]
