"""Recomputing: the numbers stay, the names stay."""

from __future__ import annotations

import torch
from torch import nn

from tune.training import checkpoint_activations


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.num_runs = 0

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        self.num_runs += 1
        hidden = nn.functional.dropout(self.linear(x), 0.3, self.training)
        return x + scale * hidden.square()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, scale=0.5)
        return x


def gradients(model: Model) -> list[torch.Tensor]:
    torch.manual_seed(4)
    model(torch.linspace(-1, 1, 24).view(4, 6)).sum().backward()
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


def test_recomputation_changes_no_gradient_and_no_name() -> None:
    plain, recomputing = Model(), Model()
    checkpoint_activations(recomputing.layers)
    for expected, actual in zip(gradients(plain), gradients(recomputing), strict=True):
        assert torch.equal(expected, actual)  # the same dropout both times, too
    assert list(recomputing.state_dict()) == list(plain.state_dict())
    assert [layer.num_runs for layer in plain.layers] == [1, 1, 1]
    assert [layer.num_runs for layer in recomputing.layers] == [2, 2, 2]


def test_without_gradients_blocks_run_once() -> None:
    model = Model()
    checkpoint_activations(model.layers)
    with torch.no_grad():
        model(torch.ones(1, 6))
    assert [layer.num_runs for layer in model.layers] == [1, 1, 1]


def test_recomputation_keeps_only_inputs() -> None:
    def saved_bytes(model: Model) -> int:
        total = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.ones(4, 6))
        return total

    recomputing = Model()
    checkpoint_activations(recomputing.layers)
    assert saved_bytes(recomputing) < saved_bytes(Model())
