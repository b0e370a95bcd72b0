"""Optimizers of bitsandbytes: tried before a run, kept in few bytes, and paged again after they were read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from run_states import save_run_state
from torch import Tensor, nn

from tune.config.component import Component
from tune.errors import ConfigError
from tune.training import build_optimizer
from tune.training.optimizers import check_step, restore_paged_state
from tune.training.saving.run_state import load_run_state

CPU = torch.device("cpu")


class NeedsAGPU(torch.optim.SGD):
    """Refuses as bitsandbytes did before its kernels for the CPU: at the first step."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if any(weight.device.type == "cpu" for group in self.param_groups for weight in group["params"]):
            raise AttributeError("'NoneType' object has no attribute 'shape'")


def make_model(device: torch.device = CPU) -> nn.Module:
    torch.manual_seed(0)
    # The first is below the size from which on 8 bits are used, the last above the size that is paged.
    return nn.Sequential(nn.Linear(30, 70), nn.Tanh(), nn.Linear(70, 90), nn.Linear(90, 1200)).to(device)


def build(model: nn.Module, name: str, in_backward: bool = False) -> torch.optim.Optimizer:
    component = Component(f"bitsandbytes.optim.{name}", {"lr": 0.05})
    return build_optimizer(component, model.parameters(), in_backward=in_backward)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> list[Tensor]:
    device = next(model.parameters()).device
    for seed in seeds:
        inputs = torch.randn(7, 30, generator=torch.Generator().manual_seed(seed)).to(device)
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [weight.detach().cpu() for weight in model.parameters()]


def test_an_optimizer_that_cannot_step_here_is_refused_early() -> None:
    weights = [nn.Parameter(torch.full((3, 5), 2.0)), nn.Parameter(torch.ones(7, dtype=torch.bfloat16))]
    with pytest.raises(ConfigError) as caught:
        check_step("bitsandbytes.optim.Some8bit", lambda params: NeedsAGPU(params, lr=1.0), weights)
    message = str(caught.value)
    assert "bitsandbytes.optim.Some8bit cannot train on cpu" in message
    assert "torch.float32 weights fails ('NoneType' object has no attribute 'shape')" in message
    assert "Use torch.optim.AdamW, a GPU, or a later bitsandbytes." in message


def test_a_trial_leaves_the_weights_and_the_random_numbers_alone() -> None:
    weights = [nn.Parameter(torch.full((3, 5), 2.0)), nn.Parameter(torch.ones(7, dtype=torch.bfloat16))]
    tried: list[torch.dtype] = []

    def make(params: list[Tensor]) -> torch.optim.Optimizer:
        tried.extend(weight.dtype for weight in params)
        return torch.optim.SGD(params, lr=1.0)

    before = torch.get_rng_state()
    check_step("x.SGD", make, weights)
    assert tried == [torch.float32, torch.bfloat16]
    assert torch.equal(before, torch.get_rng_state())
    assert (weights[0] == 2).all()
    assert all(weight.grad is None for weight in weights)


@pytest.mark.parametrize("in_backward", [False, True])
def test_one_that_this_release_cannot_step_is_refused(in_backward: bool) -> None:
    pytest.importorskip("bitsandbytes")
    # It is in the package, and its step fails without momentum in 0.46 as in 0.50.
    with pytest.raises(
        ConfigError, match=r"PytorchLARS cannot train on cpu: with bitsandbytes \d.*AdamW, a GPU"
    ):
        build(make_model(), "PytorchLARS", in_backward)


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit", "PagedAdamW", "AdEMAMix8bit", "Lion8bit"])
def test_saved_and_read_it_goes_on_as_it_would_have(tmp_path: Path, name: str, in_backward: bool) -> None:
    pytest.importorskip("bitsandbytes")
    model = make_model()
    optimizer = build(model, name, in_backward)
    train(model, optimizer, range(3))
    again = make_model()
    again.load_state_dict(model.state_dict())
    read = build(again, name, in_backward)
    save_run_state(tmp_path, model, optimizer, {}, {})
    load_run_state(tmp_path, again, read, {})
    for weight, other in zip(model.parameters(), again.parameters(), strict=True):
        assert optimizer.state[weight].keys() == read.state[other].keys()
        for key, value in optimizer.state[weight].items():
            ours = read.state[other][key]
            assert torch.equal(ours, value) if isinstance(value, Tensor) else ours == value
    expected, actual = train(model, optimizer, range(3, 6)), train(again, read, range(3, 6))
    assert all(torch.equal(left, right) for left, right in zip(actual, expected, strict=True))


def test_sharded_weights_are_refused() -> None:
    """A step of theirs would fail: the package's operators know nothing of shards."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        weight = nn.Parameter(DTensor.from_local(torch.ones(3, 5), mesh, [Shard(0)]))
        component = Component("bitsandbytes.optim.AdamW8bit", {"lr": 0.1})
        with pytest.raises(ConfigError, match=r"takes no sharded weights; use torch\.optim\.AdamW"):
            build_optimizer(component, [weight], in_backward=False)
    finally:
        distributed.destroy_process_group()


def test_moments_take_a_byte_a_number() -> None:
    pytest.importorskip("bitsandbytes")
    model = make_model()
    optimizer = build(model, "AdamW8bit")
    train(model, optimizer, range(1))
    state = optimizer.state[model[3].weight]
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8
    held = sum(state[key].nbytes for key in ("state1", "state2", "absmax1", "absmax2"))
    assert held < 2.05 * model[3].weight.numel()


@pytest.mark.gpu
@pytest.mark.parametrize("in_backward", [False, True])
def test_paged_memory_is_paged_again_after_reading(tmp_path: Path, in_backward: bool) -> None:
    pytest.importorskip("bitsandbytes")
    device = torch.device("cuda", torch.cuda.current_device())
    model, again = make_model(device), make_model(device)
    optimizer, read = (build(each, "PagedAdamW8bit", in_backward) for each in (model, again))
    train(model, optimizer, range(3))
    assert optimizer.state[model[3].weight]["state1"].is_paged
    again.load_state_dict(model.state_dict())
    save_run_state(tmp_path, model, optimizer, {}, {})
    load_run_state(tmp_path, again, read, {})
    assert read.state[again[3].weight]["state1"].is_paged
    assert read.state[again[3].weight]["qmap1"].device == device
    expected, actual = train(model, optimizer, range(3, 6)), train(again, read, range(3, 6))
    assert all(torch.equal(left, right) for left, right in zip(actual, expected, strict=True))
    assert read.state[again[3].weight]["state1"].is_paged


def test_other_optimizers_keep_what_was_read() -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    train(model, optimizer, range(1))
    state = {weight: dict(optimizer.state[weight]) for weight in model.parameters()}
    restore_paged_state(optimizer)
    assert all(
        optimizer.state[weight][key] is value for weight in state for key, value in state[weight].items()
    )
