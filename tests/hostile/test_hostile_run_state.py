"""A stranger's saved step whose manifest fits: each field of its state is looked at before it is used."""

from __future__ import annotations

import pickle
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from tune.checkpoints.manifest import write_manifest
from tune.data import ResumableSampler
from tune.errors import CheckpointError, DataError
from tune.training import Checkpoints, TrainState
from tune.training.lr_schedulers import get_cosine_schedule_with_warmup
from tune.training.saving.run_fields import check_group, check_part
from tune.training.saving.run_state import capture_run_state, load_run_state, write_run_state
from tune.training.spikes import SpikeWatch
from tune.utils.mesh import Mesh

ABSENT = object()
NAN = float("nan")
# Each fits few fields, if any.
WRONG = ("x", [object], {"a": 1}, -(10**30), 10**300, NAN, None, True, ABSENT, -3)
FITS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("run.loss", "run.best_val_loss"), (NAN, -3)),
    "run.val_loss": (NAN, -3, None),
    "run.best_step": (None,),
    "run.lowest_score": (ABSENT, NAN, -3),  # steps of before there was one lack it
    "run.num_stale": (ABSENT,),
    "run.weights": (ABSENT,),
    **dict.fromkeys(("parts.sampler.shuffle", "parts.spikes.is_high"), (True,)),
    "parts.sampler.mixture": (ABSENT,),
    "has_tensors": (True,),
    "kind": ("x",),
    "plain": ({},),
    # Older versions of torch do not save all of them.
    **dict.fromkeys(("parts.lr_scheduler._last_lr", "parts.lr_scheduler._step_count"), (ABSENT,)),
    "groups.0": ({"a": 1},),
    "groups.0.lr": (ABSENT, -3),
    "groups.0.betas": (ABSENT,),
    "groups.0.eps": (ABSENT, -3),
}
FIELDS = [
    *("run", "parts", "groups", "kind", "plain", "on_host", "has_tensors"),
    *(f"run.{name}" for name in TrainState(0).state()),
    "run.weights",
    *(f"parts.sampler.{name}" for name in ResumableSampler(3).state_dict()),
    *("parts.spikes.recent", "parts.spikes.is_high"),
    *(f"parts.lr_scheduler.{name}" for name in ("last_epoch", "base_lrs", "_last_lr", "_step_count")),
    *("groups.0", "groups.0.lr", "groups.0.betas", "groups.0.eps"),
]


def parts_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "sampler": ResumableSampler(11, seed=3),
        "spikes": SpikeWatch(),
        "scaler": GradScaler("cpu", enabled=False),
        "lr_scheduler": get_cosine_schedule_with_warmup(optimizer, 0, 9),
    }


def make() -> tuple[nn.Module, torch.optim.Optimizer, TrainState]:
    torch.manual_seed(1)
    model = nn.Linear(3, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)  # the weights stay
    state = TrainState(3)
    state.track(**parts_of(optimizer))
    return model, optimizer, state


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    model, optimizer, state = make()
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    state.begin_step()
    with closing(Checkpoints(folder, Mesh())) as checkpoints:
        checkpoints.save(state, model, optimizer, lambda model, path: (path / "model").mkdir())
    return folder


def sign(output_dir: Path) -> None:
    """Write the manifest anew, as a stranger can."""
    (output_dir / "step_000001" / "manifest.json").unlink()
    write_manifest(output_dir / "step_000001", 1)


def resume(output_dir: Path) -> None:
    model, optimizer, state = make()
    with closing(Checkpoints(output_dir, Mesh())) as checkpoints:
        checkpoints.find(resume=True)
        checkpoints.restore(state, model, optimizer)
    optimizer.step()


@pytest.mark.parametrize("path", FIELDS)
def test_a_field_of_another_kind_is_named(output_dir: Path, path: str) -> None:
    file = output_dir / "step_000001" / "state" / "run.pt"
    original = file.read_bytes()
    *way, name = path.split(".")
    known = "groups" if way == ["groups"] else name
    try:
        for value in WRONG:
            content = torch.load(file, weights_only=True)
            holder = content
            for key in way:
                holder = holder[int(key) if key.isdecimal() else key]
            if value is ABSENT and isinstance(holder, list):
                continue
            if value is ABSENT:
                del holder[name]
            else:
                holder[int(name) if name.isdecimal() else name] = [[]] if value == [object] else value
            torch.save(content, file)
            sign(output_dir)
            if any(value is fits or value == fits for fits in FITS.get(path, ())):
                resume(output_dir)
            elif path == "parts.sampler.mixture" and isinstance(value, str):
                with pytest.raises(DataError, match=f"mixture was {value}"):  # of other data, it says
                    resume(output_dir)
            else:
                with pytest.raises(CheckpointError, match=rf"run\.pt: .*{known}") as caught:
                    resume(output_dir)
                assert len(str(caught.value)) < 500 + len(str(output_dir))
            file.write_bytes(original)
    finally:
        file.write_bytes(original)
        sign(output_dir)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.update(exp_avg=torch.zeros(7, 2)), r"exp_avg is of shape \[7, 2\]"),
        (lambda state: state.update(exp_avg=torch.zeros(999)), r"exp_avg is of shape \[999\]"),
        (
            lambda state: state.update(exp_avg=torch.zeros(5, 3, dtype=torch.int64)),
            "exp_avg is of type torch.int64",
        ),
        (lambda state: state.pop("exp_avg"), "exp_avg is missing"),
    ],
)
def test_tensors_that_no_optimizer_has(tmp_path: Path, change: Any, says: str) -> None:
    model, optimizer, state = make()
    model.second = nn.Linear(3, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    change(optimizer.state[model.weight])
    write_run_state(tmp_path, capture_run_state(model, optimizer, state.state(), {}), Mesh())
    with pytest.raises(CheckpointError, match=says):
        load_run_state(tmp_path, model, torch.optim.AdamW(model.parameters(), lr=0.0), {})


class Whitening(torch.optim.SGD):
    """As Shampoo and its like: matrices of other shapes, a count, and nothing at all for a weight of one dimension."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for weight in self.param_groups[0]["params"]:
            if weight.dim() > 1:
                state = self.state[weight]
                state["left"] = state.get("left", 0) + weight.grad @ weight.grad.T
                state["order"] = torch.arange(weight.shape[0])


def test_state_of_any_optimizer_comes_back(tmp_path: Path) -> None:
    model, _, state = make()
    optimizer = Whitening(model.parameters(), lr=0.0)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    write_run_state(tmp_path, capture_run_state(model, optimizer, state.state(), {}), Mesh())
    resumed = Whitening(model.parameters(), lr=0.0)
    load_run_state(tmp_path, model, resumed, {})
    for key in ("left", "order"):
        assert torch.equal(resumed.state[model.weight][key], optimizer.state[model.weight][key])
    assert not resumed.state[model.bias]


def test_an_index_of_more_than_its_files_hold(tmp_path: Path) -> None:
    model, _, state = make()
    optimizer = Whitening(model.parameters(), lr=0.0)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    write_run_state(tmp_path, capture_run_state(model, optimizer, state.state(), {}), Mesh())
    (index,) = tmp_path.rglob(".metadata")
    content = pickle.loads(index.read_bytes())
    entry = content.state_dict_metadata["weight/left"]
    entry.size = torch.Size([10**6, 10**6])
    index.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"says 4,000,000,000,\d+ bytes of tensors"):
        load_run_state(tmp_path, model, Whitening(model.parameters(), lr=0.0), {})


def test_schedules_and_settings_of_any_kind_are_let_through(tmp_path):
    """What is checked must not refuse what an honest run has saved."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    rates = torch.optim.lr_scheduler
    schedules = (
        rates.SequentialLR(
            optimizer,
            [rates.ConstantLR(optimizer, 0.5, 2), rates.ExponentialLR(optimizer, 0.9)],
            milestones=[2],
        ),
        rates.ChainedScheduler([rates.ConstantLR(optimizer, 0.5, 2), rates.ExponentialLR(optimizer, 0.9)]),
        rates.CyclicLR(optimizer, 0.1, 0.2, scale_fn=lambda x: 1.0, cycle_momentum=False),
        rates.CosineAnnealingLR(optimizer, 7),
    )
    for schedule in schedules:
        check_part("lr_scheduler", schedule, schedule.state_dict(), tmp_path / "run.pt")
    group = {"lr": 0.1, "growth_rate": float("inf"), "betas": (0.9, 0.99), "foreach": None}
    check_group(0, group, group, tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match=r"groups\.0\.lr"):
        check_group(0, group | {"lr": float("inf")}, group, tmp_path / "run.pt")
