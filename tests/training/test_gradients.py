"""What happens between backward pass and step: clipping, and the decision whether to step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from tune.errors import CheckpointError, TrainingError
from tune.training import NonFiniteGuard, clip_gradients
from tune.training.gradients import MAX_SKIPPED_IN_A_ROW

NO_SCALER = GradScaler("cpu", enabled=False)
NAN, INF = torch.tensor(math.nan), torch.tensor(math.inf)
ONE = torch.tensor(1.0)


def make_weights() -> list[nn.Parameter]:
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1, 3)), nn.Parameter(torch.zeros(5))]
    weights[0].grad = torch.tensor([3.0, 0.0])
    weights[1].grad = torch.tensor([[0.0, 4.0, 0.0]])
    return weights  # the third has no gradient


def test_the_norm_is_over_all_gradients_and_before_clipping() -> None:
    weights = make_weights()
    assert float(clip_gradients(weights, None)) == pytest.approx(5.0)
    assert weights[0].grad is not None
    assert weights[0].grad.tolist() == [3.0, 0.0]
    assert float(clip_gradients(weights, 2.5)) == pytest.approx(5.0)
    assert weights[0].grad.tolist() == pytest.approx([1.5, 0.0])
    assert float(clip_gradients(weights, 100.0)) == pytest.approx(2.5)
    assert weights[0].grad.tolist() == pytest.approx([1.5, 0.0], rel=1e-5)


def test_numbers_pass() -> None:
    guard = NonFiniteGuard("stop", NO_SCALER)
    assert guard.allows(1, ONE, ONE)
    assert guard.allows(2, ONE)
    assert guard.num_skipped == 0


@pytest.mark.parametrize(
    ("loss", "norm", "words"),
    [(NAN, ONE, "loss is nan"), (INF, NAN, "loss is inf"), (ONE, NAN, "norm is nan")],
)
def test_stop_says_what_and_where(loss: torch.Tensor, norm: torch.Tensor, words: str) -> None:
    with pytest.raises(TrainingError, match=f"step 12: the .*{words}.*after step 11.*on_non_finite=skip"):
        NonFiniteGuard("stop", NO_SCALER).allows(12, loss, norm)


def test_the_error_is_told_even_where_the_cleanup_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def save() -> None:
        raise CheckpointError("the disk is full")

    with pytest.raises(CheckpointError, match="the disk is full"):
        NonFiniteGuard("stop", NO_SCALER).allows(12, NAN, before_stopping=save)
    assert [record.getMessage() for record in caplog.records] == [
        "step 12: the loss is nan; the run ends before it"
    ]


def test_skip_goes_on_but_not_for_ever() -> None:
    guard = NonFiniteGuard("skip", NO_SCALER)
    for step in range(MAX_SKIPPED_IN_A_ROW - 1):
        assert not guard.allows(step, ONE, INF)
    assert guard.allows(98, ONE, ONE)  # one good step starts the count anew
    for step in range(MAX_SKIPPED_IN_A_ROW - 1):
        assert not guard.allows(step, NAN, ONE)
    assert guard.num_skipped == 2 * MAX_SKIPPED_IN_A_ROW - 2
    with pytest.raises(TrainingError, match="in a row"):
        guard.allows(99, NAN, ONE)


def test_fp16_overflow_is_part_of_finding_the_scale() -> None:
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(ONE)
    guard = NonFiniteGuard("stop", scaler)
    assert not guard.allows(1, ONE, INF)
    with pytest.raises(TrainingError, match="loss is nan"):
        guard.allows(2, NAN, INF)
    lowest = GradScaler("cpu", init_scale=1.0)
    lowest.scale(ONE)
    with pytest.raises(TrainingError, match="norm is inf"):
        NonFiniteGuard("stop", lowest).allows(3, ONE, INF)
