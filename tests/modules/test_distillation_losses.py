"""Divergences of a student from a teacher: numbers worked by hand, and gradients of autograd on full logits."""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import tune.modules.loss as losses
from tune.errors import ConfigError, TrainingError
from tune.modules.loss import (
    DistillationLoss,
    ForwardKLLoss,
    ForwardKLWithChunkedOutputLoss,
    Head,
    JensenShannonLoss,
    ReverseKLLoss,
    ReverseKLWithChunkedOutputLoss,
    SymmetricKLLoss,
    SymmetricKLWithChunkedOutputLoss,
)

B, S, D, D_TEACHER, V = 2, 301, 7, 11, 23  # more rows than one piece; widths of their own
STUDENT, TEACHER = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
# Of those two, in units of log 2 where they come out even.
BY_HAND = {
    "forward": (ForwardKLLoss(), 1.75 * log(2)),  # 0.25 * 1 + 0.25 * 2 + 0.5 * 2
    "forward chunked": (ForwardKLWithChunkedOutputLoss(), 1.75 * log(2)),
    "reverse": (ReverseKLLoss(), 0.25 * log(2)),  # 0.5 * 1 + 0.25 * 0 - 0.25 * 1
    "reverse chunked": (ReverseKLWithChunkedOutputLoss(), 0.25 * log(2)),
    "symmetric": (SymmetricKLLoss(), log(2)),
    "symmetric, mostly forward": (SymmetricKLWithChunkedOutputLoss(sym_kd_ratio=0.8), 1.45 * log(2)),
    "jensen-shannon": (JensenShannonLoss(), 0.5 * log(4 / 3) + 0.25 * log(2 / 3)),  # m = 3/8, 1/4, 3/8
    # m = 5/16, 1/4, 7/16: 0.75 KL(q || m) + 0.25 KL(p || m)
    "jensen-shannon, mostly the teacher's": (
        JensenShannonLoss(beta=0.75),
        0.75 * (log(4 / 5) / 4 + log(8 / 7) / 2) + 0.25 * (log(8 / 5) / 2 + log(4 / 7) / 4),
    ),
    "jensen-shannon as forward": (JensenShannonLoss(beta=0.0), 0.25 * log(2)),
    "jensen-shannon as reverse": (JensenShannonLoss(beta=1.0), 0.25 * log(2)),
}
LOSSES: dict[str, DistillationLoss] = {
    "forward": ForwardKLLoss(),
    "forward at 2.5": ForwardKLLoss(temperature=2.5),
    "reverse": ReverseKLWithChunkedOutputLoss(5),
    "reverse at 0.7": ReverseKLLoss(temperature=0.7),
    "symmetric": SymmetricKLLoss(0.3),
    "jensen-shannon": JensenShannonLoss(0.2),
    "jensen-shannon at 2": JensenShannonLoss(0.9, temperature=2.0, num_output_chunks=1),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_values_worked_by_hand(name: str) -> None:
    loss, expected = BY_HAND[name]
    labels = torch.tensor([0])
    assert float(loss(STUDENT.log(), TEACHER.log(), labels)) == pytest.approx(expected, abs=1e-6)
    # At temperature T the same distributions have logits of T times the size, and count T^2 times.
    loss.temperature = 3.0
    scaled = loss(3.0 * STUDENT.log(), 3.0 * TEACHER.log(), labels)
    loss.temperature = 1.0
    assert float(scaled) == pytest.approx(9.0 * expected, abs=1e-5)


def test_only_positions_with_a_target_count() -> None:
    student, teacher = (torch.cat([row.log()] * 5)[None] for row in (STUDENT, TEACHER))  # [1, 5, 3]
    labels = torch.tensor([[0, -100, 2, 2, -100]])
    student[0, 1], teacher[0, 4] = torch.randn(3), torch.nan
    loss = ReverseKLLoss()
    assert float(loss(student, teacher, labels)) == pytest.approx(0.25 * log(2))
    assert float(loss(student, teacher, labels, normalize=False)) == pytest.approx(0.75 * log(2))
    pieces = [tensor.tensor_split(2, dim=1) for tensor in (student, teacher)]
    assert float(loss(*pieces, labels)) == pytest.approx(0.25 * log(2))
    nothing = loss(student.requires_grad_(), teacher, torch.full_like(labels, -100))
    nothing.backward()
    assert float(nothing.detach()) == 0.0


def test_impossible_entries_count_for_nothing() -> None:
    """Logits of minus infinity, as torchtune's losses take them; without a NaN in the gradient."""
    nowhere = torch.tensor([[-torch.inf]])
    for loss, expected in BY_HAND.values():
        student = torch.cat([STUDENT.log(), nowhere], dim=1).requires_grad_()
        value = loss(student, torch.cat([TEACHER.log(), nowhere], dim=1), torch.tensor([1]))
        value.backward()
        assert float(value.detach()) == pytest.approx(expected, abs=1e-6)
        assert student.grad is not None
        assert student.grad.isfinite().all()


def test_arguments_out_of_range_are_refused() -> None:
    for make in (
        lambda: ForwardKLLoss(temperature=0.0),
        lambda: ReverseKLWithChunkedOutputLoss(num_output_chunks=0),
        lambda: SymmetricKLLoss(sym_kd_ratio=1.1),
        lambda: JensenShannonLoss(beta=-0.1),
    ):
        with pytest.raises(ConfigError, match=r"must"):
            make()


def heads(
    dtype: torch.dtype = torch.float32, softcap: float | None = None, rows: tuple[int, int] = (V, V)
) -> tuple[list[Tensor], Tensor, dict[str, Any]]:
    """Hidden states and matrices of student and teacher; labels; caps and weights."""
    generator = torch.Generator().manual_seed(5)

    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    tensors = [make(B, S, D), make(rows[0], D), make(B, S, D_TEACHER), make(rows[1], D_TEACHER)]
    labels = torch.randint(0, V, (B, S), generator=generator)
    labels[torch.rand(B, S, generator=generator) < 0.3] = -100
    return tensors, labels, {"softcap": softcap, "weights": torch.rand(B, S, generator=generator)}


def on_full_logits(
    loss: DistillationLoss, tensors: list[Tensor], labels: Tensor, softcap: float | None, weights: Tensor
) -> Tensor:
    """The same by formulas of torch's own, on all logits at once."""
    hidden, weight, teacher_hidden, teacher_weight = tensors
    num = min(weight.shape[0], teacher_weight.shape[0])
    student, teacher = F.linear(hidden, weight[:num]), F.linear(teacher_hidden, teacher_weight[:num])
    if softcap is not None:
        student, teacher = softcap * torch.tanh(student / softcap), 2 * torch.tanh(teacher / 2)
    temperature = loss.temperature
    student, teacher = (
        student.log_softmax(-1) if temperature == 1 else (student / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
    )

    def kl(one: Tensor, other: Tensor) -> Tensor:
        return F.kl_div(other, one, reduction="none", log_target=True).sum(-1)

    entropy = -(teacher.exp() * teacher).sum(-1)
    if isinstance(loss, SymmetricKLLoss):
        ratio = loss.sym_kd_ratio
        each = ratio * (kl(teacher, student) + entropy) + (1 - ratio) * kl(student, teacher)
    elif isinstance(loss, JensenShannonLoss):
        mixture = (loss.beta * teacher.exp() + (1 - loss.beta) * student.exp()).log()
        each = loss.beta * kl(teacher, mixture) + (1 - loss.beta) * kl(student, mixture)
    elif isinstance(loss, ReverseKLLoss):
        each = kl(student, teacher)
    else:
        each = kl(teacher, student) + entropy
    return (each * weights * (labels != -100)).sum() * temperature**2


def from_hidden(
    loss: DistillationLoss, tensors: list[Tensor], labels: Tensor, softcap: float | None, weights: Tensor
) -> Tensor:
    cap = None if softcap is None else 2.0
    return loss.sum_from_hidden(
        Head(tensors[0], tensors[1], softcap), Head(tensors[2], tensors[3], cap), labels, weights
    )


def value_and_grads(
    function: Any, loss: DistillationLoss, tensors: list[Tensor], *others: Any, factor: float = 0.3
) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_(index < 2) for index, tensor in enumerate(tensors)]
    total = function(loss, leaves, *others)
    (total * factor).backward()
    assert leaves[2].grad is None
    return [total.detach(), *(leaf.grad for leaf in leaves[:2])]


@pytest.mark.parametrize("rows", [(V, V), (V + 2, V), (V, V + 6)], ids=str)
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("name", LOSSES)
def test_pieces_equal_autograd_on_full_logits(
    name: str, softcap: float | None, rows: tuple[int, int]
) -> None:
    tensors, labels, others = heads(softcap=softcap, rows=rows)
    ours = value_and_grads(from_hidden, LOSSES[name], tensors, labels, *others.values())
    exact = [tensor.double() for tensor in tensors]
    theirs = value_and_grads(on_full_logits, LOSSES[name], exact, labels, *others.values())
    for left, right in zip(ours, theirs, strict=True):
        assert left.dtype == torch.float32
        torch.testing.assert_close(left.double(), right, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["forward", "reverse at 0.7", "jensen-shannon"])
def test_half_precision_is_as_exact_as_full_logits(name: str, dtype: torch.dtype) -> None:
    tensors, labels, others = heads(dtype)
    ours = value_and_grads(from_hidden, LOSSES[name], tensors, labels, *others.values())
    exact = [tensor.double() for tensor in tensors]
    truth = value_and_grads(on_full_logits, LOSSES[name], exact, labels, *others.values())
    assert ours[0].dtype == torch.float32
    assert float(ours[0]) == pytest.approx(
        float(truth[0]), rel=1e-3
    )  # logits of 8 bits, errors of either sign
    for left, right in zip(ours[1:], truth[1:], strict=True):
        assert left.dtype == dtype
        assert (left - right).norm() <= 0.02 * right.norm()


def test_autocast_keeps_fp32_gradients_for_fp32_weights() -> None:
    tensors, labels, others = heads()
    truth = value_and_grads(from_hidden, LOSSES["reverse"], tensors, labels, *others.values())
    with torch.autocast("cpu", torch.bfloat16):
        ours = value_and_grads(from_hidden, LOSSES["reverse"], tensors, labels, *others.values())
    for left, right in zip(ours, truth, strict=True):
        assert left.dtype == torch.float32
        assert 0 < (left - right).norm() <= 0.02 * right.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_targets_give_zero_and_zero_gradients(dtype: torch.dtype) -> None:
    tensors, labels, others = heads(dtype)
    nothing = torch.full_like(labels, -100)
    value, *grads = value_and_grads(from_hidden, ForwardKLLoss(), tensors, nothing, *others.values())
    assert value == 0
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)


def test_full_logits_never_stand() -> None:
    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, Tensor) and tensor.dim() == 2 and tensor.shape[1] == V:
                    self.seen = max(self.seen, tensor.shape[0])
            return out

    tensors, labels, others = heads()
    with Largest() as mode, torch.autograd.set_multithreading_enabled(False):
        value_and_grads(from_hidden, JensenShannonLoss(), tensors, labels, *others.values())
    assert 0 < mode.seen <= 256 < int((labels != -100).sum())


def test_misfits_and_second_backward_passes_are_errors() -> None:
    tensors, labels, others = heads()
    with pytest.raises(TrainingError, match="do not fit"):
        from_hidden(ForwardKLLoss(), tensors, labels[:, :-1], None, others["weights"])
    with pytest.raises(TrainingError, match="do not fit"):
        from_hidden(ForwardKLLoss(), [*tensors[:3], tensors[1]], labels, None, others["weights"])
    tensors[0].requires_grad_()
    total = from_hidden(ForwardKLLoss(), tensors, labels, None, others["weights"])
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        total.backward()


def test_arguments_are_in_the_order_of_torchtunes() -> None:
    for name in ("ForwardKL", "ReverseKL", "SymmetricKL"):
        assert getattr(losses, f"{name}Loss")().ignore_index == -100
        assert getattr(losses, f"{name}WithChunkedOutputLoss")(7).num_output_chunks == 7
