"""Schedules: their shape, and that they can be continued."""

from __future__ import annotations

import math

import pytest
import torch

from tune.config.component import Component
from tune.errors import ConfigError, TrainingError
from tune.training import build_lr_scheduler, get_lr
from tune.training.lr_schedulers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

PEAK = 0.5


def make_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=PEAK)


def rates(schedule: str, num_steps: int, **kwargs: object) -> list[float]:
    optimizer = make_optimizer()
    scheduler = globals()[schedule](optimizer, **kwargs)
    seen = []
    for _ in range(num_steps):
        seen.append(get_lr(optimizer))
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_rises_to_the_peak_and_falls_to_zero() -> None:
    seen = rates("get_cosine_schedule_with_warmup", 14, num_warmup_steps=4, num_training_steps=14)
    assert seen[:5] == pytest.approx([0, PEAK / 4, PEAK / 2, PEAK * 3 / 4, PEAK])
    falling = [PEAK * 0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    assert seen[4:] == pytest.approx(falling)
    assert rates("get_cosine_schedule_with_warmup", 15, num_warmup_steps=4, num_training_steps=14)[
        -1
    ] == pytest.approx(0, abs=1e-12)


def test_cosine_has_a_floor() -> None:
    seen = rates("get_cosine_schedule_with_warmup", 30, num_training_steps=10, min_lr_rate=0.2)
    assert seen[0] == PEAK
    assert seen[5] == pytest.approx(PEAK * (0.2 + 0.8 / 2))
    assert seen[10] == pytest.approx(PEAK * 0.2)
    assert min(seen) >= PEAK * 0.2 - 1e-12


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_warmup_as_a_share_of_the_run(name: str) -> None:
    schedule = f"get_{name}_schedule_with_warmup"
    # 0.25 of 10 steps is rounded up, as by the Trainer of Hugging Face
    shared = rates(schedule, 10, num_training_steps=10, warmup_ratio=0.25)
    counted = rates(schedule, 10, num_training_steps=10, num_warmup_steps=3)
    assert shared == counted
    assert shared[3] == PEAK
    assert rates(schedule, 1, num_training_steps=10, warmup_ratio=0.0) == [PEAK]
    for wrong in ({"warmup_ratio": 1.5}, {"warmup_ratio": 0.1, "num_warmup_steps": 3}):
        with pytest.raises(TrainingError, match="warmup"):
            rates(schedule, 1, num_training_steps=10, **wrong)
    if name != "constant":
        with pytest.raises(TrainingError, match="num_training_steps is required"):
            rates(schedule, 1)


def test_linear_and_constant() -> None:
    assert rates(
        "get_linear_schedule_with_warmup", 7, num_warmup_steps=2, num_training_steps=6
    ) == pytest.approx([0, PEAK / 2, PEAK, PEAK * 3 / 4, PEAK / 2, PEAK / 4, 0])
    assert rates("get_constant_schedule_with_warmup", 4, num_warmup_steps=2) == pytest.approx(
        [0, PEAK / 2, PEAK, PEAK]
    )


def test_never_negative_beyond_the_end() -> None:
    for name in ("get_cosine_schedule_with_warmup", "get_linear_schedule_with_warmup"):
        assert min(rates(name, 30, num_warmup_steps=1, num_training_steps=6)) >= 0


def test_a_warmup_longer_than_the_run_only_rises() -> None:
    seen = rates("get_cosine_schedule_with_warmup", 5, num_warmup_steps=10, num_training_steps=5)
    assert seen == sorted(seen)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"num_warmup_steps \(-3\)"):
        get_cosine_schedule_with_warmup(make_optimizer(), -3, 10)


@pytest.mark.parametrize("build", [get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup])
def test_state_continues_exactly(build: object) -> None:
    def run(num_steps: int, state: dict[str, object] | None = None) -> tuple[list[float], dict[str, object]]:
        optimizer = make_optimizer()
        scheduler = build(optimizer, 3, 11)  # type: ignore[operator]
        if state is not None:
            scheduler.load_state_dict(state)
            optimizer.param_groups[0]["lr"] = scheduler.get_last_lr()[0]
        seen = []
        for _ in range(num_steps):
            seen.append(get_lr(optimizer))
            optimizer.step()
            scheduler.step()
        return seen, scheduler.state_dict()

    whole, _ = run(11)
    first, state = run(5)
    rest, _ = run(6, state)
    assert first + rest == whole


def test_get_constant_is_exported() -> None:
    assert get_constant_schedule_with_warmup(make_optimizer()).get_last_lr() == [PEAK]
    assert get_linear_schedule_with_warmup(make_optimizer(), 0, 3).get_last_lr() == [PEAK]


def test_build_passes_the_number_of_steps_where_it_is_asked_for() -> None:
    cosine = Component("tune.training.lr_schedulers.get_cosine_schedule_with_warmup", {"num_warmup_steps": 0})
    optimizer = make_optimizer()
    scheduler = build_lr_scheduler(cosine, optimizer, 2)
    optimizer.step()
    scheduler.step()
    assert get_lr(optimizer) == pytest.approx(PEAK / 2)
    step = Component("torch.optim.lr_scheduler.StepLR", {"step_size": 1})
    assert build_lr_scheduler(step, make_optimizer(), 2) is not None
    constant = build_lr_scheduler(None, optimizer, 2)
    constant.step()
    assert get_lr(optimizer) == pytest.approx(PEAK / 2)
    constant.load_state_dict({})  # as older versions saved it
    constant.step()
    assert get_lr(optimizer) == pytest.approx(PEAK / 2)


@pytest.mark.parametrize(("num_steps", "share"), [(4, "6%"), (50, "98%"), (1, "0%")])
def test_a_run_that_ends_in_its_warmup_is_warned(
    num_steps: int, share: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The bundled config on somebody's fifty rows."""
    cosine = Component(
        "tune.training.lr_schedulers.get_cosine_schedule_with_warmup", {"num_warmup_steps": 50}
    )
    build_lr_scheduler(cosine, make_optimizer(), num_steps)
    (record,) = caplog.records
    said = record.getMessage()
    assert f"warms up for 50 steps, and the last one of this run, number {num_steps}," in said
    assert f"with {share} of it" in said
    build_lr_scheduler(cosine, make_optimizer(), 51)  # its last step is taken at the peak
    build_lr_scheduler(Component(cosine.path, {"num_warmup_steps": 0}), make_optimizer(), 1)
    assert len(caplog.records) == 1


def test_a_schedule_over_validation_losses_is_refused() -> None:
    plateau = Component("torch.optim.lr_scheduler.ReduceLROnPlateau")
    with pytest.raises(ConfigError, match="waits for a validation loss"):
        build_lr_scheduler(plateau, make_optimizer(), 5)


def test_a_schedule_that_ends_before_the_run_is_refused() -> None:
    one_cycle = Component("torch.optim.lr_scheduler.OneCycleLR", {"max_lr": 0.1, "total_steps": 7})
    with pytest.raises(ConfigError, match="ends after 7 steps, but the run has 8"):
        build_lr_scheduler(one_cycle, make_optimizer(), 8)
    assert build_lr_scheduler(one_cycle, make_optimizer(), 7) is not None
