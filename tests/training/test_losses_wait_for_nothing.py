"""Losses of a micro-batch whose targets the host has counted: no operator tells it anything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tune.data import shift_labels
from tune.modules import DecoderConfig, TransformerDecoder
from tune.modules.loss import ForwardKLLoss, Head, LinearCrossEntropyLoss, answer_log_probs, loss_sum
from tune.modules.peft import LoRAConfig, apply_lora
from tune.training import count_targets
from tune.training.batches import NUM_TARGETS, to_device


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


@pytest.mark.parametrize("method", ["full", "lora", "distill", "preference"])
def test_no_loss_waits_where_the_host_has_counted(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward pass, to the bit what they are where the device is asked."""
    # Only a CPU, which waits for nobody, looks at targets before they are used.
    monkeypatch.setattr(LinearCrossEntropyLoss, "check_targets", lambda *_: None)
    torch.manual_seed(5)
    model, teacher = (TransformerDecoder(DecoderConfig(61, 2, 6, 2, 48, 8, 50, 64)) for _ in range(2))
    if method == "lora":
        apply_lora(model, LoRAConfig(rank=4, alpha=8))
    tokens = torch.randint(0, 61, (4, 13))
    own_labels = tokens.where(torch.rand(4, 13) < 0.6, -100)
    labels = shift_labels(own_labels)
    answers = torch.arange(4)[:, None].expand(4, 13)

    def find_loss(num_targets: int | None) -> Tensor:
        if method == "preference":
            return answer_log_probs(model, tokens, labels, answers, 4, num_targets=num_targets).sums.sum()
        if method == "distill":
            taught = Head.of(teacher, teacher.hidden(tokens))
            own = Head.of(model, model.hidden(tokens))
            return ForwardKLLoss().sum_from_hidden(own, taught, labels, num_targets=num_targets)
        return loss_sum(LinearCrossEntropyLoss(), model, tokens, labels, num_targets=num_targets)

    def run(num_targets: int | None) -> list[Tensor]:
        model.zero_grad()
        loss = find_loss(num_targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return [loss, *(weight.grad for weight in model.parameters() if weight.grad is not None)]

    expected, num_targets = run(None), count_targets(own_labels)
    with Waits() as waits:
        found = run(num_targets)
    assert waits.names == []
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert to_device({"labels": own_labels}, torch.device("cpu"))[NUM_TARGETS].sum() == num_targets


def test_a_count_of_other_labels_is_not_believed() -> None:
    """The recipes count what is not -100; a loss that ignores something else counts for itself."""
    torch.manual_seed(5)
    hidden, weight, labels = torch.randn(2, 3, 5), torch.randn(7, 5), torch.randint(0, 7, (2, 3))
    labels[0, 1] = 0
    loss = LinearCrossEntropyLoss(ignore_index=0)
    assert torch.equal(loss(hidden, weight, labels, num_targets=6), loss(hidden, weight, labels))
