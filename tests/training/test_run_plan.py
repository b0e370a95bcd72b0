"""Precision, processes, signals, speed, fingerprints, progress: what surrounds the loop."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tune.config.component import Component
from tune.config.params import ParamsError
from tune.errors import CheckpointError, ConfigError, TrainingError
from tune.recipes.params.full_finetune import FullFinetuneParams
from tune.training import (
    StopRequest,
    TrainState,
    explain_out_of_memory,
    init_mesh,
    plan_precision,
    setup_torch_profiler,
)
from tune.training.batches import TokenCounts
from tune.training.distributed.sharded_model import describe_processes
from tune.training.memory.available import get_peak_memory_gib
from tune.training.progress import Progress, format_duration, format_summary
from tune.training.saving.fingerprint import check_fingerprint, describe_component, hash_dataset
from tune.training.throughput import SpeedMeter, measure_matmul_rate
from tune.utils import get_logger
from tune.utils.exclusions import Choices, split_processes
from tune.utils.mesh import Mesh

CPU = torch.device("cpu")


# ---- precision


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "kept", "compute", "text"),
    [
        ("bf16", None, torch.bfloat16, torch.bfloat16, "bfloat16"),
        ("fp32", None, torch.float32, torch.float32, "float32"),
        ("bf16", "fp32", torch.float32, torch.bfloat16, "bfloat16 with weights in float32"),
        ("fp16", None, torch.float32, torch.float16, "float16 with weights in float32"),
    ],
)
def test_precision(
    dtype: str, param_dtype: str | None, kept: torch.dtype, compute: torch.dtype, text: str
) -> None:
    precision = plan_precision(dtype, param_dtype, CPU)
    assert (precision.param_dtype, precision.compute_dtype, str(precision)) == (kept, compute, text)
    assert precision.needs_loss_scaling == (dtype == "fp16")
    weight = torch.ones(3, 3, dtype=kept)
    with precision.autocast():
        assert (weight @ weight).dtype == compute


def test_fp16_weights_are_refused() -> None:
    with pytest.raises(TrainingError, match="param_dtype=fp32"):
        plan_precision("fp16", "bf16", CPU)


# ---- processes


@pytest.mark.parametrize(
    ("choices", "dims"),
    [
        ({}, (1, 6)),
        ({"replicate_dim": 2}, (2, 3)),
        ({"replicate_dim": 3, "shard_dim": 2}, (3, 2)),
        ({"enable_fsdp": False}, (6, 1)),
        ({"replicate_dim": 6}, (6, 1)),
        ({"cpu_offload": True}, (1, 6)),
        ({"optimizer_in_bwd": True}, (1, 6)),
    ],
)
def test_processes_are_split(choices: dict[str, Any], dims: tuple[int, int]) -> None:
    assert split_processes(Choices(6, **choices)) == dims


@pytest.mark.parametrize(
    ("world_size", "choices", "says"),
    [
        (1, {"replicate_dim": 2, "shard_dim": 3}, "needs 6 processes, but 1 was"),
        (6, {"replicate_dim": 4}, "needs 4 processes, but 6 were"),
        (6, {"shard_dim": 5}, "needs 5 processes"),
        (1, {"cpu_offload": True}, "with 1 process and .* nothing is sharded"),
        (6, {"cpu_offload": True, "enable_fsdp": False}, "with 6 processes and .* nothing is sharded"),
        (6, {"optimizer_in_bwd": True, "enable_fsdp": False}, "optimizer_in_bwd steps .* set it to false"),
        (6, {"dtype": "fp16"}, "use bf16"),
    ],
)
def test_what_processes_cannot_do_is_refused(
    monkeypatch: pytest.MonkeyPatch, world_size: int, choices: dict[str, Any], says: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    with pytest.raises(ConfigError, match=says):
        init_mesh(CPU, Choices(**choices))


def test_validation_and_the_run_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"data_parallel_replicate_dim": 2, "data_parallel_shard_dim": 1, "optimizer_in_bwd": True}
    with pytest.raises(ParamsError) as early:
        FullFinetuneParams(model_checkpoint="x", output_dir="y", **fields)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError) as late:
        init_mesh(CPU, Choices(replicate_dim=2, shard_dim=1, optimizer_in_bwd=True))
    assert str(late.value).rstrip(".") in str(early.value)


def test_one_process_is_a_mesh() -> None:
    for choices in ({}, {"enable_fsdp": False}):
        mesh = init_mesh(CPU, Choices(**choices))
        assert not mesh.shards
        assert mesh.is_rank_zero
        assert mesh.from_rank_zero(lambda: 3) == mesh.broadcast(3) == 3
        assert mesh.gather_to_all(5) == [5]
        assert mesh.max(7.5) == 7.5
        assert mesh.sums([2, 3]) == [2, mesh.sum(3)]
        total = torch.ones(3)
        assert mesh.sum_(total) is total
        mesh.close()


def test_ranks_of_a_third_dimension_share_batches() -> None:
    """What a tensor-parallel dimension would be: the last one, whose processes work on the same batch."""
    ranks = [Mesh(CPU, rank, 12, replicate_dim=2, shard_dim=3).data_parallel_rank for rank in range(12)]
    assert ranks == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_how_a_model_is_spread_is_told() -> None:
    model = torch.nn.Linear(3, 5)
    assert describe_processes(model, Mesh()) == "1 process"
    mesh = Mesh(CPU, world_size=6, replicate_dim=2, shard_dim=3)
    assert describe_processes(model, mesh) == "6 processes with a whole copy each"


# ---- signals


@pytest.mark.parametrize(
    ("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]
)
def test_a_signal_asks_and_the_old_handler_comes_back(signum: signal.Signals, exit_code: int) -> None:
    before = signal.getsignal(signum)
    with StopRequest(Mesh()) as stop:
        assert not stop
        assert stop.exit_code == 0
        os.kill(os.getpid(), signum)
        assert stop
        assert stop.exit_code == exit_code
    assert signal.getsignal(signum) is before


def test_a_second_interrupt_stops_at_once() -> None:
    with StopRequest(Mesh()):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # the first: the step under way is still finished
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_off_the_main_thread_nothing_is_installed() -> None:
    seen = []

    def run() -> None:
        with StopRequest(Mesh()) as stop:
            seen.append(bool(stop))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False]


# ---- speed and memory


def test_speed_counts_work_and_leaves_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("tune.training.throughput.time.perf_counter", lambda: now[0])
    meter = SpeedMeter(CPU, lambda length: 100.0 * length, 1e5, measure_limit=lambda: 1e5)
    meter.start()
    meter.count(TokenCounts(num_tokens=30, num_targets=10, sum_of_squares=500))
    meter.count(TokenCounts(num_tokens=20, num_targets=10, sum_of_squares=500))
    now[0] += 2.0
    with meter.paused():
        now[0] += 30.0
    speed = meter.read()
    seconds = meter.total_seconds
    assert seconds == pytest.approx(2.0)
    assert speed.tokens_per_second == pytest.approx(50 / seconds)
    assert speed.trained_tokens_per_second == pytest.approx(20 / seconds)
    # The mean length that attention sees is 1000 / 50 = 20 tokens.
    assert speed.fraction_of_limit == pytest.approx(50 / seconds * 2000 / 1e5)
    assert meter.read().tokens_per_second == 0


def test_a_limit_that_training_outruns_is_measured_again() -> None:
    limits = iter([1e-3, 1e30])
    meter = SpeedMeter(CPU, lambda length: 1.0, next(limits), measure_limit=lambda: next(limits))
    meter.count(TokenCounts(num_tokens=1000, num_targets=1000, sum_of_squares=1000))
    assert 0 < meter.read().fraction_of_limit < 1
    assert meter.limit == 1e30


def test_the_matmul_rate_is_plausible() -> None:
    rate = measure_matmul_rate(CPU, torch.float32, seconds=0.01)
    assert 1e8 < rate < 1e14


def test_peak_memory_grows_with_what_is_held() -> None:
    before = get_peak_memory_gib(CPU)
    held = torch.ones(60 * 2**20, dtype=torch.float32)  # 240 MiB
    assert get_peak_memory_gib(CPU) - before >= 0
    assert get_peak_memory_gib(CPU) > 0.2
    del held


def test_out_of_memory_says_what_helps() -> None:
    with pytest.raises(TrainingError, match=r"can't allocate memory.*batch_size"), explain_out_of_memory():
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="another"), explain_out_of_memory():
        raise RuntimeError("another matter")


# ---- fingerprints


def examples(seed: int, size: int = 30) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 50, (size, 7), generator=generator).tolist()
    return [{"tokens": row, "labels": [-100, *row[1:]]} for row in rows]


def test_a_dataset_is_recognised_and_any_change_seen() -> None:
    base = hash_dataset(examples(0))
    assert base == hash_dataset(examples(0))
    assert base != hash_dataset(examples(1))
    assert base != hash_dataset(examples(0)[:-1])
    changed = examples(0)
    changed[17]["labels"][3] = -100
    assert base != hash_dataset(changed)
    swapped = examples(0)
    swapped[0]["tokens"], swapped[1]["tokens"] = swapped[1]["tokens"], swapped[0]["tokens"]
    assert base != hash_dataset(swapped)
    assert hash_dataset([]).startswith("0 examples")


def test_every_difference_is_shown() -> None:
    optimizers = [Component("torch.optim.AdamW", {"lr": lr, "betas": [0.9, 0.95]}) for lr in (0.1, 0.2)]
    saved = {"sequences": "2", "optimizer": describe_component(optimizers[0]), "seed": "3"}
    check_fingerprint(saved, dict(saved), "out/step_000001")
    current = {"sequences": "4", "optimizer": describe_component(optimizers[1]), "seed": "3"}
    with pytest.raises(CheckpointError) as caught:
        check_fingerprint(saved, current, "out/step_000001")
    text = str(caught.value)
    assert "sequences: was 2, is 4" in text
    assert "optimizer.lr: was 0.1, is 0.2" in text
    assert "betas" not in text
    assert "seed" not in text
    assert "model_checkpoint=out/step_000001/model" in text
    assert "allow_changes_on_resume=true" in text


def test_changes_may_be_allowed_and_are_told(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    saved = {"sequences": "2", "code": "recipe 1", "threads": "2", "processes": "1"}
    check_fingerprint(saved, {**saved, "sequences": "4"}, "step_000001", allow_changes=True)
    assert "sequences: was 2, is 4" in caplog.text
    caplog.clear()
    # What only decides how sums are rounded is never refused, and never silent.
    check_fingerprint(saved, {**saved, "code": "recipe 2", "threads": "64", "processes": "3"}, "step_000001")
    assert "code: was recipe 1, is recipe 2" in caplog.text
    assert "threads: was" in caplog.text
    assert "processes: was 1, is 3" in caplog.text


# ---- what is shown


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    get_logger("INFO")
    with Progress(20) as progress:
        progress.advance()
        progress.show(1, {"lr": 1e-5, "loss": 2.0, "unknown": 3, "fraction_of_limit": 0.25})
    line = capsys.readouterr().err
    assert line.startswith("step  1/20 | loss 2.0000 | lr 1.00e-05 | 25.0% of limit | ")
    assert line.endswith("left\n")


def test_on_a_terminal_lines_stay_above_a_bar_that_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        get_logger("INFO")
        with Progress(2000) as progress:
            progress.advance()
            metrics = {
                "loss": 12.3456,
                "val_loss": 2.5,
                "val_perplexity": 12.1825,
                "tokens_per_second": 123456.0,
            }
            progress.show(50, metrics, num_steps=50)
            get_logger().info("Saved step_000050")
            progress.advance()
    said = []
    with suppress(OSError):  # the other end is closed, and all of it is read
        while part := os.read(ours, 2**16):
            said.append(part)
    os.close(ours)
    text = b"".join(said).decode()
    drawn = [line for line in re.split(r"[\r\n]+", text) if "%|" in line]
    assert drawn
    assert max(map(len, drawn)) <= 80
    bars = [re.search(r"\|(.*)\|", line) for line in drawn]
    assert min(len(bar[1]) for bar in bars if bar) >= 20
    assert "2/2000" in drawn[-1]  # no figure is cut
    assert "loss 12.35" in drawn[-1]
    shown = [line.strip() for line in re.split(r"[\r\n]+", text)]
    line = next(line for line in shown if line.startswith("step   50/2000"))
    assert "loss 12.3456 (mean of 50) | val loss 2.5000 | perplexity 12.18 | 123,456 tok/s" in line
    place = shown.index("Saved step_000050")
    assert any("%|" in below for below in shown[place + 1 :])  # the bar is below it again


@pytest.mark.parametrize(("seconds", "text"), [(7, "0:07"), (185.4, "3:05"), (7800, "2:10:00")])
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


# ---- profiler


def test_a_disabled_profiler_is_idle_and_an_empty_one_refused(tmp_path: object) -> None:
    with setup_torch_profiler() as profiler:
        profiler.step()
    with pytest.raises(TrainingError, match="record nothing"):
        setup_torch_profiler(enabled=True, cpu=False, cuda=False, output_dir=str(tmp_path))


def test_the_profiler_writes_a_trace(tmp_path: object) -> None:
    profiler = setup_torch_profiler(
        enabled=True, wait_steps=0, warmup_steps=1, active_steps=1, output_dir=str(tmp_path)
    )
    with profiler:
        for _ in range(3):
            torch.ones(3, 3) @ torch.ones(3, 3)
            profiler.step()
    assert len(os.listdir(str(tmp_path))) == 1


def test_the_summary_names_what_to_type_next(tmp_path: Path) -> None:
    speed = SpeedMeter(torch.device("cpu"), lambda length: 1.0, 1.0, lambda: 1.0)
    folder = tmp_path / "my run"
    summary = format_summary(folder, TrainState(7, step=3, num_steps=3, loss=1.0), speed)
    assert f"tune run generate '{folder}' prompt='...'" in summary  # as a shell takes it
    assert f"tune chat '{folder}'" in summary
    assert " time " not in summary  # no step was taken
    adapter = format_summary(folder, TrainState(7, step=2, num_steps=3, loss=1.0), speed, "base")
    assert "latest/adapter" in adapter
    assert "resume_from_checkpoint=true" in adapter
