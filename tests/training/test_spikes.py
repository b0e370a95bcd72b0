"""Jumps of the loss are told from its noise: on thousands of curves of the kinds that training gives."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest

from tune.training.spikes import SpikeWatch

LENGTH = 150


def decaying(num_curves: int, noise: str, seed: int = 0) -> list[list[float]]:
    """Return curves that fall from 2..10 to 0.3..2, some fast and some slow, under 1% to 15% of noise."""
    rng = np.random.default_rng(seed)
    start, end = rng.uniform(2, 10, (num_curves, 1)), rng.uniform(0.3, 2, (num_curves, 1))
    steps, time_constant = np.arange(LENGTH), rng.uniform(5, 100, (num_curves, 1))
    base = end + (start - end) * np.exp(-steps / time_constant)
    share, shape = rng.uniform(0.01, 0.15, (num_curves, 1)), (num_curves, LENGTH)
    factors = {
        "normal": lambda: 1 + share * rng.standard_normal(shape),
        "student": lambda: 1 + share * rng.standard_t(5, shape),
        "lognormal": lambda: np.exp(0.3 * rng.standard_normal(shape)),
        # A loss that wanders, as when easy and hard stretches of the data follow each other.
        "wandering": lambda: np.exp(
            0.05 * rng.standard_normal(shape) + 0.006 * np.cumsum(rng.standard_normal(shape), 1)
        ),
    }
    return (base * factors[noise]()).tolist()  # type: ignore[no-any-return]


def spikes_of(losses: list[float]) -> list[int]:
    watch = SpikeWatch()
    return [step for step, loss in enumerate(losses) if watch.observe(step, loss)]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="tune")


@pytest.mark.parametrize(
    ("noise", "rate"), [("normal", 0.001), ("wandering", 0.001), ("student", 0.02), ("lognormal", 0.001)]
)
def test_noise_alone_is_no_spike(noise: str, rate: float) -> None:
    """As the class states it: 10,000 curves in all, of four kinds of noise."""
    false_alarms = sum(bool(spikes_of(curve)) for curve in decaying(2500, noise))
    assert false_alarms / 2500 < rate


@pytest.mark.parametrize(
    ("noise", "times", "share"), [("normal", 5.0, 1.0), ("student", 5.0, 0.97), ("lognormal", 30.0, 0.97)]
)
@pytest.mark.parametrize("length", [1, 20])
def test_a_jump_is_reported_once(noise: str, times: float, share: float, length: int) -> None:
    """For one logged step or for twenty: it is reported at its first, and that is all that is reported."""
    once = 0
    for curve in decaying(300, noise, seed=length):
        spiked = [loss * (times if 90 <= step < 90 + length else 1.0) for step, loss in enumerate(curve)]
        once += spikes_of(spiked) == [90]
    assert once / 300 >= share


def test_two_spikes_are_two_and_a_level_that_stays_is_usual() -> None:
    rng = np.random.default_rng(1)
    calm = (2.0 + 0.05 * rng.standard_normal(400)).tolist()
    twice = [loss + (3.0 if step in (100, 101, 140) else 0.0) for step, loss in enumerate(calm)]
    assert spikes_of(twice) == [100, 140]
    stays = [loss + (3.0 if step >= 100 else 0.0) for step, loss in enumerate(calm)]
    assert spikes_of(stays) == [100]
    assert spikes_of([*stays, 20.0]) == [100, 400]


def test_what_cannot_be_judged_is_left_alone() -> None:
    assert spikes_of([2.0] * 19 + [50.0]) == []
    assert spikes_of([2.0] * 20 + [50.0]) == [20]
    # After a calm time a rise of a few per cent is still none.
    assert spikes_of([2.0] * 80 + [2.09]) == []
    assert spikes_of([2.0] * 80 + [2.2]) == [80]
    assert spikes_of([2.0, math.nan, 0.0, -1.0] * 40 + [math.inf, 2.0]) == []


def test_the_report_has_the_numbers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="tune")
    losses = [2.0, 2.1, 2.0, 1.9, 2.0] * 10
    watch = SpikeWatch(window=30, num_near=15)
    for step, loss in enumerate([*losses, 7.25, 7.5]):
        watch.observe(step, loss)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith(
        "step 50: the loss jumped to 7.25; the last 15 logged were about 2, give or take 5%."
    )


def test_a_resumed_watch_goes_on_as_it_was() -> None:
    curve = [
        loss + (4.0 if step in range(60, 64) else 0.0) for step, loss in enumerate(decaying(1, "normal")[0])
    ]
    whole = SpikeWatch()
    reported = [whole.observe(step, loss) for step, loss in enumerate(curve)]
    assert sum(reported) == 1
    for cut in (5, 61, 100):
        first, second = SpikeWatch(), SpikeWatch()
        got = [first.observe(step, loss) for step, loss in enumerate(curve[:cut])]
        second.load_state_dict(first.state_dict())
        got += [second.observe(step, loss) for step, loss in enumerate(curve[cut:], cut)]
        assert got == reported
        assert second.state_dict() == whole.state_dict()
