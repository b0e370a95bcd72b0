"""Stepping inside the backward pass gives the weights that stepping after it gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tune.config.component import Component
from tune.errors import ConfigError
from tune.training import OptimizerInBackward, build_lr_scheduler, build_optimizer


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def train(in_backward: bool, num_steps: int = 5) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = make_model()
    adamw = Component("torch.optim.AdamW", {"lr": 0.05, "weight_decay": 0.1})
    optimizer = build_optimizer(adamw, model.parameters(), in_backward=in_backward)
    cosine = Component("tune.training.lr_schedulers.get_cosine_schedule_with_warmup", {"num_warmup_steps": 2})
    scheduler = build_lr_scheduler(cosine, optimizer, num_steps)
    assert scheduler is not None
    generator = torch.Generator().manual_seed(1)
    for _ in range(num_steps):
        model(torch.randn(7, 3, generator=generator)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return model, optimizer


def test_equal_to_stepping_afterwards_with_a_schedule() -> None:
    expected, actual = train(False)[0], train(True)[0]
    for ours, theirs in zip(actual.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.grad is None


def test_gradients_never_exist_all_at_once() -> None:
    model = make_model()
    OptimizerInBackward(model.parameters(), lambda p: torch.optim.SGD(p, lr=0.1))
    seen = []
    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(
            lambda _: seen.append(sum(w.grad is not None for w in model.parameters()))
        )
    model(torch.ones(2, 3)).sum().backward()
    assert len(seen) == 4
    assert max(seen) <= 1


def test_state_dict_comes_back() -> None:
    model, optimizer = train(True)
    state = optimizer.state_dict()
    assert len(state["state"]) == 4
    again = OptimizerInBackward(model.parameters(), lambda p: torch.optim.AdamW(p, lr=9.0))
    again.load_state_dict(state)
    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    for weight in model.parameters():
        assert torch.equal(again.state[weight]["exp_avg"], optimizer.state[weight]["exp_avg"])
        assert again._optimizers[0].state is again.state


@pytest.mark.parametrize(
    ("path", "kwargs", "fused"),
    [
        ("torch.optim.AdamW", {}, True),
        ("torch.optim.AdamW", {"foreach": False}, None),
        ("torch.optim.AdamW", {"fused": False}, False),
        ("torch.optim.Rprop", {}, None),
    ],
)
def test_fused_where_it_is_left_open(path: str, kwargs: dict[str, object], fused: bool | None) -> None:
    optimizer = build_optimizer(Component(path, kwargs), make_model().parameters(), in_backward=False)
    assert optimizer.defaults.get("fused") == fused


def test_frozen_weights_are_left_alone() -> None:
    model = make_model()
    model[0].requires_grad_(False)
    optimizer = build_optimizer(Component("torch.optim.SGD"), model.parameters(), in_backward=True)
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("LBFGS", "several times per step"),
        ("SparseAdam", "sparse gradients"),
        ("Muon", "cannot be built: Muon only supports 2D"),
    ],
)
def test_optimizers_that_cannot_train_this_are_refused(name: str, words: str) -> None:
    if not hasattr(torch.optim, name):
        pytest.skip("not in this torch")
    with pytest.raises(ConfigError, match=words):
        build_optimizer(Component(f"torch.optim.{name}"), make_model().parameters(), in_backward=False)


def test_whole_copies_on_several_processes_are_refused() -> None:
    """Each would step with its own part of the gradients."""
    sgd = Component("torch.optim.SGD", {"lr": 0.1})
    with pytest.raises(ConfigError, match="optimizer_in_bwd steps within the backward pass"):
        build_optimizer(sgd, make_model().parameters(), in_backward=True, world_size=2)
