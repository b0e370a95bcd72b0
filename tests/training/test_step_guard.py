"""What happens between backward pass and step: clipping, and the decision whether to step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.utils._python_dispatch import TorchDispatchMode

from tune.errors import CheckpointError, TrainingError
from tune.training import Checkpoints, StepGuard, TrainState, clip_gradients
from tune.training.step_guard import MAX_SKIPPED_IN_A_ROW
from tune.utils.mesh import Mesh

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


def test_the_norm_of_bf16_gradients_is_none_of_bf16() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.zeros(300, 1000, dtype=torch.bfloat16)) for _ in range(3)]
    for weight in weights:
        weight.grad = 1.83 * torch.randn(300, 1000).to(torch.bfloat16)
    exact = (
        sum(float(weight.grad.double().square().sum()) for weight in weights if weight.grad is not None)
        ** 0.5
    )
    assert float(clip_gradients(weights, None)) == pytest.approx(exact, rel=1e-5)
    weights[0].grad = torch.ones(300, 1000, dtype=torch.bfloat16)
    assert float(clip_gradients(weights[:1], 1.0, scale=2.0)) == pytest.approx(2 * 300_000**0.5, rel=1e-5)


class Waits(TorchDispatchMode):
    """Counts the operators that wait for a GPU: they tell the host a value, or a shape that hangs on one."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func.overloadpacket in (aten._local_scalar_dense, aten.nonzero, aten.is_nonzero, aten.equal):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("max_norm", [None, 2.5])
def test_from_gradient_to_step_is_waited_for_once(max_norm: float | None) -> None:
    """For the one flag that says whether the step is taken, which is known before weights are touched."""
    weights, guard = make_weights(), StepGuard("stop", NO_SCALER, TrainState(0, step=12))
    with Waits() as waits:
        assert guard.allows(ONE, clip_gradients(weights, max_norm, scale=0.5))
    assert len(waits.names) == 1, waits.names


def test_numbers_pass() -> None:
    guard = StepGuard("stop", NO_SCALER, TrainState(0, step=12))
    assert guard.allows(ONE, ONE)
    assert guard.allows(ONE)
    assert guard.num_skipped == 0


@pytest.mark.parametrize(
    ("loss", "norm", "words"),
    [(NAN, ONE, "loss is nan"), (INF, NAN, "loss is inf"), (ONE, NAN, "norm is nan")],
)
def test_stop_says_what_and_where(loss: torch.Tensor, norm: torch.Tensor, words: str) -> None:
    with pytest.raises(TrainingError, match=f"step 12: the .*{words}.*after step 11.*on_non_finite=skip"):
        StepGuard("stop", NO_SCALER, TrainState(0, step=12)).allows(loss, norm)


def test_the_error_is_told_even_where_the_cleanup_fails(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def save() -> None:
        raise CheckpointError("the disk is full")

    state = TrainState(0, step=12)
    guard = StepGuard("stop", NO_SCALER, state, Checkpoints(tmp_path, Mesh()))
    with (
        pytest.raises(CheckpointError, match="the disk is full"),
        guard.studying(torch.nn.Linear(2, 3), [], lambda batch: (NAN, 1), save),
    ):
        guard.allows(NAN)
    assert state.step == 11
    assert [record.getMessage() for record in caplog.records] == [
        "step 12: the loss is nan; the run ends before it"
    ]


def test_skip_goes_on_but_not_for_ever() -> None:
    guard = StepGuard("skip", NO_SCALER, TrainState(0, step=12))
    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        assert not guard.allows(ONE, INF)
    assert guard.allows(ONE, ONE)  # one good step starts the count anew
    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        assert not guard.allows(NAN, ONE)
    assert guard.num_skipped == 2 * MAX_SKIPPED_IN_A_ROW - 2
    with pytest.raises(TrainingError, match="in a row"):
        guard.allows(NAN, ONE)


def test_fp16_overflow_is_part_of_finding_the_scale() -> None:
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(ONE)
    guard = StepGuard("stop", scaler, TrainState(0, step=12))
    assert not guard.allows(ONE, INF)
    with pytest.raises(TrainingError, match="loss is nan"):
        guard.allows(NAN, INF)
    lowest = GradScaler("cpu", init_scale=1.0)
    lowest.scale(ONE)
    with pytest.raises(TrainingError, match="norm is inf"):
        StepGuard("stop", lowest, TrainState(0, step=12)).allows(ONE, INF)
