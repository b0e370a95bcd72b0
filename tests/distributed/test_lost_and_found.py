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

from tests.distributed.launching import children_of, launch, start
from tune.training import find_newest_complete_step, list_saved_steps

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
        *("--config", "tiny/full_finetune", f"dataset.source={path}", "batch_size=3", "epochs=2"),
        *("log_every_n_steps=1", "lr_scheduler.num_warmup_steps=2", "save_every_n_steps=1", "num_workers=1"),
        *("log_level=WARNING", "enable_async_checkpointing=true"),
    ]


@pytest.fixture(scope="module")
def whole(common: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happens to."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = launch(2, "full_finetune", *common, f"output_dir={out}")
    assert done.returncode == 0, done.stderr
    return out


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


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_any_moment_it_is_the_same_run(
    common: list[str], whole: Path, tmp_path: Path, seed: int
) -> None:
    out = tmp_path / "out"
    process = start(2, "full_finetune", *common, f"output_dir={out}")
    rng = random.Random(seed)
    wait_for(out / f"step_{rng.randint(1, NUM_STEPS - 3):06d}", process)
    time.sleep(rng.random() * 0.3)
    # All at once, as when a machine goes down, or one process, as when the kernel runs out of memory.
    if seed == 1:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        os.kill(max(children_of(process.pid)), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert find_newest_complete_step(out) is not None, err
    done = launch(2, "full_finetune", *common, f"output_dir={out}", "resume_from_checkpoint=true")
    assert done.returncode == 0, done.stderr
    assert_same_run(whole, out)


def test_asked_to_stop_all_stop_after_the_same_step(common: list[str], whole: Path, tmp_path: Path) -> None:
    """And the run goes on with another number of processes, the same but for how sums are rounded."""
    out = tmp_path / "out"
    process = start(2, "full_finetune", *common, f"output_dir={out}")
    wait_for(out / "step_000004", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    newest = list_saved_steps(out)[-1]
    assert newest == find_newest_complete_step(out)
    assert newest.step == rows_of(out)[-1]["step"]
    go_on = [f"output_dir={out}", "resume_from_checkpoint=true"]
    refused = launch(1, "full_finetune", *common, *go_on)
    assert refused.returncode == 1
    assert "sequences_per_step: was 6, is 3" in refused.stderr
    # Three of one sequence, then six: the same global batch, cut up otherwise.
    done = launch(1, "full_finetune", *common, *go_on, "batch_size=6", f"max_steps_per_epoch={NUM_STEPS}")
    assert done.returncode == 1
    assert "max_steps_per_epoch: was None, is 12" in done.stderr
    done = launch(1, "full_finetune", *common, *go_on, "batch_size=6")
    assert done.returncode == 0, done.stderr
    assert "processes: was 2, is 1" in done.stderr
    ours, theirs = (
        load_file(out / "latest/model/model.safetensors"),
        load_file(whole / "latest/model/model.safetensors"),
    )
    for name in ours:
        # AdamW divides by the root of squared gradients: where these are small, rounding shows.
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-4)
    assert [row["step"] for row in rows_of(out)] == list(range(1, NUM_STEPS + 1))


def test_a_process_that_cannot_write_fails_the_save_on_all(common: list[str], tmp_path: Path) -> None:
    """The second process may write no file of over 300 kB: its part of the optimizer's state is larger."""
    copy = tmp_path / "limited.py"
    copy.write_text(
        "import os, resource, sys\n"
        "if os.environ['RANK'] == '1':\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "from recipes.full_finetune import recipe_main\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(recipe_main())\n"
    )
    out = tmp_path / "out"
    done = launch(2, copy, *common, f"output_dir={out}", "enable_async_checkpointing=false")
    assert done.returncode == 1, done.stderr
    assert "could not save step_000001" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.glob("*step_*"))


def test_a_loss_that_is_no_number_on_one_process_stops_all(
    common: list[str], whole: Path, tmp_path: Path
) -> None:
    """The step before is saved, the bad one kept for study, and without the cause the run goes on as if nothing was."""
    copy = tmp_path / "breaking.py"
    copy.write_text(
        "import os, sys\n"
        "from recipes import full_finetune as original\n"
        "from recipes.full_finetune import recipe_main\n"
        "plain = original.FullFinetuneRecipe.batch_loss\n"
        "def broken(self, batch):\n"
        "    loss, num_targets = plain(self, batch)\n"
        "    is_bad = self.state.step == 4 and os.environ['RANK'] == '1'\n"
        "    return loss * float('nan') if is_bad else loss, num_targets\n"
        "original.FullFinetuneRecipe.batch_loss = broken\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(recipe_main())\n"
    )
    out = tmp_path / "out"
    rare = [*common, f"output_dir={out}", "save_every_n_steps=2"]
    done = launch(2, copy, *rare)
    assert done.returncode == 1, done.stderr
    assert "step 4: the loss is nan" in done.stderr
    assert "Traceback" not in done.stderr
    assert [saved.step for saved in list_saved_steps(out)] == [2, 3]
    study = out / "non_finite_step_000004"
    reports = [json.loads((study / f"report_rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(report["micro_batches"]) for report in reports] == [1, 1]
    go_on = launch(2, "full_finetune", *rare, "resume_from_checkpoint=true")
    assert go_on.returncode == 0, go_on.stderr
    assert_same_run(whole, out)
