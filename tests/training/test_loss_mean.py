"""The loss of a line: the mean since the line before, the same however a run was cut up."""

from __future__ import annotations

import math
import random

import pytest
import torch

from tune.modules.loss import LinearCrossEntropyLoss
from tune.training.loss_mean import LossMean
from tune.training.losses import is_cross_entropy, perplexity
from tune.training.spikes import SpikeWatch


def test_each_step_weighs_by_its_targets() -> None:
    mean = LossMean()
    mean.add(torch.tensor(2.0), 30)
    mean.add(torch.tensor(5.0), 10)
    assert mean.num_steps == 2
    assert mean.read() == (2.0 * 30 + 5.0 * 10) / 40
    mean.clear()
    assert mean.num_steps == 0
    assert math.isnan(mean.read())


def test_one_step_alone_is_not_rounded() -> None:
    loss = torch.tensor(1.0) / 3
    mean = LossMean()
    mean.add(loss, 7)
    assert mean.read() == float(loss)


def test_steps_that_were_not_taken_are_left_out() -> None:
    mean = LossMean()
    mean.add(torch.tensor(math.nan), 7)
    assert math.isnan(mean.read())
    mean.add(torch.tensor(3.0), 7)
    mean.add(torch.tensor(math.inf), 7)
    assert mean.read() == 3.0
    assert mean.num_steps == 3


@pytest.mark.parametrize("cut", [1, 63, 64, 65, 150])
def test_resumed_it_is_the_same_to_the_bit(cut: int) -> None:
    draw = random.Random(0)
    steps = [(torch.tensor(draw.uniform(0.1, 9.0)), draw.randint(1, 5000)) for _ in range(200)]
    whole, first, second = LossMean(), LossMean(), LossMean()
    for step in steps:
        whole.add(*step)
    for step in steps[:cut]:
        first.add(*step)
    first.read()  # a line at a request to stop, which is none of the lines that are due
    second.load_state_dict(first.state_dict())
    for step in steps[cut:]:
        second.add(*step)
    assert second.read() == whole.read()
    assert second.num_steps == 200


def test_a_step_saved_by_an_earlier_version() -> None:
    watch = SpikeWatch()
    watch.mean.add(2.0, 3)
    watch.load_state_dict({"recent": [], "is_high": False})
    assert watch.mean.num_steps == 0


def test_which_losses_have_a_perplexity() -> None:
    assert is_cross_entropy(LinearCrossEntropyLoss())
    assert is_cross_entropy(torch.nn.CrossEntropyLoss(reduction="sum"))
    assert not is_cross_entropy(torch.nn.CrossEntropyLoss(label_smoothing=0.1))
    assert not is_cross_entropy(torch.nn.MSELoss())
    assert perplexity(math.log(7.0)) == pytest.approx(7.0)
    assert perplexity(1e4) == math.inf
    assert math.isnan(perplexity(math.nan))
