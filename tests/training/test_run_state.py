"""The state beside the weights: it comes back bit for bit, and reading it runs nothing."""

from __future__ import annotations

import os
import pickle
import random
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_states import save_run_state
from torch import nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

from tune.checkpoints.manifest import MANIFEST_NAME, write_manifest
from tune.errors import CheckpointError
from tune.training import Checkpoints, OptimizerInBackward, TrainState, list_saved_steps
from tune.training.saving.run_state import load_run_state, read_run
from tune.utils.mesh import Mesh

ALONE = Mesh()


def make_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        x = torch.randn(7, 3, generator=generator).to(next(model.parameters()).dtype)
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


OPTIMIZERS = {
    "adamw_fused": lambda w: torch.optim.AdamW(w, lr=0.01, fused=True),
    "adamw_foreach": lambda w: torch.optim.AdamW(w, lr=0.01, foreach=True),
    "sgd_plain": lambda w: torch.optim.SGD(w, lr=0.01),
    "sgd_momentum": lambda w: torch.optim.SGD(w, lr=0.01, momentum=0.9),
    "rprop": lambda w: torch.optim.Rprop(w),
    "adafactor": lambda w: torch.optim.Adafactor(w, lr=0.01),
    "nadam": lambda w: torch.optim.NAdam(w, lr=0.01),
    "asgd": lambda w: torch.optim.ASGD(w, lr=0.01),
    "in_backward": lambda w: OptimizerInBackward(w, lambda p: torch.optim.AdamW(p, lr=0.01)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_optimizer_takes_the_same_steps(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    make = OPTIMIZERS[name]
    model = make_model(dtype)
    optimizer = make(model.parameters())
    take_steps(model, optimizer, 4, seed=5)
    save_run_state(tmp_path, model, optimizer, {"step": 4}, {})
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    take_steps(model, optimizer, 3, seed=6)

    resumed = make_model(dtype)
    resumed.load_state_dict(weights)
    again = make(resumed.parameters())
    assert read_run(tmp_path) == {"step": 4}
    load_run_state(tmp_path, resumed, again, {})
    take_steps(resumed, again, 3, seed=6)
    for expected, actual in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, actual)


def test_groups_settings_come_back(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.param_groups[0]["lr"] = 0.007
    save_run_state(tmp_path, model, optimizer, {}, {})
    again = torch.optim.SGD(model.parameters(), lr=0.5)
    load_run_state(tmp_path, model, again, {})
    assert again.param_groups[0]["lr"] == 0.007
    assert again.param_groups[0]["params"] == list(model.parameters())


def test_another_model_or_optimizer_is_refused(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    take_steps(model, optimizer, 1, seed=0)
    save_run_state(tmp_path, model, optimizer, {}, {})
    other = nn.Sequential(nn.Linear(3, 5))
    with pytest.raises(CheckpointError, match=r"'2\.weight', not in this model"):
        load_run_state(tmp_path, other, torch.optim.AdamW(other.parameters()), {})
    per_weight = OptimizerInBackward(model.parameters(), lambda p: torch.optim.AdamW(p))
    with pytest.raises(CheckpointError, match="1 parameter groups, this one has 4"):
        load_run_state(tmp_path, model, per_weight, {})


class Average:
    """A part of a recipe of one's own."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def test_a_part_no_longer_tracked_is_not_lost_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    saved = {"average": Average({"w": torch.arange(6.0), "n": 7}), "idle": Average({})}
    save_run_state(tmp_path, model, optimizer, {"step": 1}, saved)

    with pytest.raises(CheckpointError, match=r"the state of average, which .*allow_changes_on_resume=true"):
        load_run_state(tmp_path, model, optimizer, {})
    with caplog.at_level("WARNING"):
        load_run_state(tmp_path, model, optimizer, {}, allow_lost_parts=True)
    assert "The saved state of average is left behind" in caplog.text

    again = Average({})
    load_run_state(tmp_path, model, optimizer, {"average": again})  # one that was idle is no loss
    assert again.state["n"] == 7
    assert torch.equal(again.state["w"], torch.arange(6.0))


def test_plain_state_of_an_unknown_weight_is_refused(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model[0].weight]["count"] = 3  # type: ignore[index]
    save_run_state(tmp_path, model, optimizer, {"step": 1}, {})
    other = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 2))
    renamed = nn.ModuleDict({"head": other})
    with pytest.raises(CheckpointError, match=r"of a weight '0\.weight', not in this model"):
        load_run_state(tmp_path, renamed, torch.optim.SGD(renamed.parameters(), lr=0.1), {})


def draw() -> list[Any]:
    return [random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist()]


@pytest.mark.parametrize("version", [2, 3])
def test_a_resumed_run_draws_what_would_have_come(tmp_path: Path, version: int) -> None:
    """Also where a loop never seeds its steps, and from a step that an older version saved."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def write_model(model: nn.Module, folder: Path) -> None:
        (folder / "model").mkdir()
        draw()

    with closing(Checkpoints(tmp_path, ALONE)) as checkpoints:
        checkpoints.save(TrainState(7, step=4), model, optimizer, write_model)
    expected = draw()
    if version == 2:
        run_file = tmp_path / "latest" / "state" / "run.pt"
        content = torch.load(run_file, weights_only=True)
        assert content["version"] == 3
        torch.save({**content, "version": 2, "rng": [{"torch": torch.get_rng_state()}]}, run_file)
        (saved,) = list_saved_steps(tmp_path)
        (saved.path / MANIFEST_NAME).unlink()
        write_manifest(saved.path, saved.step)
    np.random.randn()  # leaves a second gaussian waiting, which is part of the state
    state = TrainState(7)
    with closing(Checkpoints(tmp_path, ALONE)) as checkpoints:
        checkpoints.find(resume=True)
        checkpoints.restore(state, model, optimizer)
    assert state.step == 4
    assert draw() == expected


def test_parts_come_back(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])
    for _ in range(3):
        optimizer.step()
        schedule.step()
    save_run_state(tmp_path, model, optimizer, {}, {"schedule": schedule})
    again = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule_again = torch.optim.lr_scheduler.MultiStepLR(again, [2, 5])
    load_run_state(tmp_path, model, again, {"schedule": schedule_again})
    assert schedule_again.state_dict() == schedule.state_dict()
    assert again.param_groups[0]["lr"] == pytest.approx(0.05)


class Malice:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_strangers_state_cannot_run_code(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    take_steps(model, optimizer, 1, seed=0)
    save_run_state(tmp_path, model, optimizer, {}, {})
    marker = tmp_path / "was_run"
    index = tmp_path / "optimizer" / ".metadata"
    content = index.read_bytes()
    index.write_bytes(pickle.dumps(Malice(marker)))
    with pytest.raises(CheckpointError, match=r"posix.mkdir"):
        load_run_state(tmp_path, model, optimizer, {})
    index.write_bytes(content)
    load_run_state(tmp_path, model, optimizer, {})
    torch.save({"run": Malice(marker)}, tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_run_state(tmp_path, model, optimizer, {})
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_an_unreadable_state_is_a_clear_error(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "run.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"run\.pt"):
        read_run(tmp_path)


def test_changed_settings_stay_and_the_schedule_goes_on(tmp_path: Path) -> None:
    """Also where there was no schedule before, and where the optimizer is another one, which then begins anew."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    take_steps(model, optimizer, 3, seed=0)
    save_run_state(tmp_path, model, optimizer, {"step": 3}, {})
    again = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.7)
    schedule = torch.optim.lr_scheduler.ExponentialLR(again, gamma=0.1)
    with pytest.raises(CheckpointError, match="nothing was saved of schedule"):
        load_run_state(tmp_path, model, again, {"schedule": schedule})
    again = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.7)
    schedule = torch.optim.lr_scheduler.ExponentialLR(again, gamma=0.1)
    load_run_state(tmp_path, model, again, {"schedule": schedule}, settings_changed=True)
    assert again.param_groups[0]["lr"] == pytest.approx(0.5 * 0.1**3)
    assert again.param_groups[0]["momentum"] == 0.7
    assert not again.state
    take_steps(model, again, 1, seed=1)


def test_ctrl_c_during_reading_or_writing_is_no_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    take_steps(model, optimizer, 2, seed=5)
    save_run_state(tmp_path / "whole", model, optimizer, {"step": 2}, {})
    again = torch.optim.AdamW(model.parameters(), lr=0.01)

    def write() -> None:
        save_run_state(tmp_path / "part", model, optimizer, {"step": 2}, {})

    def read() -> None:
        load_run_state(tmp_path / "whole", model, again, {})

    for act, cls, name in (
        (write, FileSystemWriter, "prepare_local_plan"),
        (write, FileSystemWriter, "write_data"),
        (read, FileSystemReader, "read_data"),
    ):
        with monkeypatch.context() as patch, interrupt_at(patch, cls, name), pytest.raises(KeyboardInterrupt):
            act()
    read()
    assert again.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()


@contextmanager
def interrupt_at(patch: pytest.MonkeyPatch, cls: type, name: str) -> Iterator[None]:
    """Send this process a real SIGINT as a method is entered, once."""
    method = getattr(cls, name)

    def entered(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return method(*args, **kwargs)

    patch.setattr(cls, name, entered)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
