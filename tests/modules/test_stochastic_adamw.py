"""AdamW in bf16: on the course of fp32, the same wherever it is resumed, sharded or stepped."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import Tensor, nn

from tune.config.component import Component
from tune.modules.optim import AdamW
from tune.modules.optim.stochastic_rounding import NUM_DRAWN, bits_at, cut_off_, draw_bits, mix
from tune.training.optimizers import build_optimizer

BF16 = torch.bfloat16


def rounded(values: Tensor, key: int) -> Tensor:
    values = values.clone()
    drawn = draw_bits(0, 1 << 10, values.device)
    cut_off_(values, bits_at(drawn, mix(key), 3, len(values))[key % 3])
    assert torch.equal(values.to(BF16).float().isnan(), values.isnan())
    return values.to(BF16)


def test_the_mean_of_rounded_numbers_is_the_number() -> None:
    torch.manual_seed(0)
    values = torch.cat([torch.randn(40), torch.tensor([0.02, -3e-5, 1e30, 1e-38, 0.0])])
    mean = torch.stack([rounded(values, key).double() for key in range(4000)]).mean(0)
    unit = torch.maximum(values.abs() * 2**-7, torch.tensor(1e-45))  # of the last bit, at most
    assert ((mean - values) / unit).abs().max() < 5 / (2 * 4000**0.5)  # five standard errors of a coin
    assert ((mean - values) / unit).mean().abs() < 5 / (2 * (4000 * len(values)) ** 0.5)


def test_each_number_of_16_bits_is_drawn_as_often() -> None:
    drawn = draw_bits(7, 1 << 10, torch.device("cpu"))
    assert (drawn[:NUM_DRAWN].bincount(minlength=1 << 16) == NUM_DRAWN >> 16).all()
    # A row that begins near the end goes on from the beginning, for each of three tensors.
    row = bits_at(drawn, NUM_DRAWN - 3, 3, 1 << 10)
    assert torch.equal(row[0, 3:], drawn[: (1 << 10) - 3])
    assert not torch.equal(row[0], row[1])


def test_what_bf16_holds_is_kept_and_no_number_stays_none() -> None:
    torch.manual_seed(0)
    exact = torch.cat([torch.randn(500).to(BF16).float(), torch.tensor([0.0, -0.0, torch.inf, -torch.inf])])
    for key in range(20):
        assert torch.equal(rounded(exact, key).float(), exact)
    assert rounded(torch.full((50,), torch.nan), 1).isnan().all()
    # Never further than to one of its neighbours.
    values = torch.randn(500)
    assert ((rounded(values, 1).float() - values).abs() <= values.abs() * 2**-7).all()


def course(kind: type[torch.optim.Optimizer], dtype: torch.dtype, num_steps: int = 3000) -> dict[str, Tensor]:
    """Weights of 0.02 and gradients that become a tenth after 200 steps."""
    weight = nn.Parameter(torch.full((1024,), 0.02, dtype=dtype))
    optimizer = kind([weight], lr=2e-5, weight_decay=0.01)  # type: ignore[call-arg]
    generator = torch.Generator().manual_seed(1)
    for step in range(num_steps):
        gradient = torch.randn(1024, generator=generator) + 0.3
        weight.grad = (gradient * (0.1 if step >= 200 else 1.0)).to(dtype)
        optimizer.step()
    state = optimizer.state[weight]
    return {key: state[key].float() for key in ("exp_avg", "exp_avg_sq")} | {
        "moved": weight.detach().float() - 0.02
    }


def test_three_thousand_steps_follow_the_course_of_fp32() -> None:
    exact, here = course(torch.optim.AdamW, torch.float32), course(AdamW, BF16)
    nearest = course(torch.optim.AdamW, BF16)
    for key, within in (("moved", 0.01), ("exp_avg", 0.02), ("exp_avg_sq", 0.02)):
        mean, wanted = here[key].mean(), exact[key].mean()
        assert abs(mean - wanted) < within * abs(wanted), key
    # A weight is off by the chance of its roundings, 0.02 * 2^-8 a step, of which the mean is nothing.
    assert (here["moved"] - exact["moved"]).abs().mean() < 0.15 * exact["moved"].abs().mean()
    # What this is for: to the nearest a hundredth of the way is gone, and squares stand still.
    assert nearest["moved"].abs().mean() < 0.02 * exact["moved"].abs().mean()
    assert nearest["exp_avg_sq"].mean() > 5 * exact["exp_avg_sq"].mean()


def train(weights: list[nn.Parameter], steps: range, optimizer: AdamW | None = None) -> AdamW:
    optimizer = optimizer or AdamW(weights, lr=1e-3)
    for step in steps:
        for number, weight in enumerate(weights):
            generator = torch.Generator().manual_seed(100 * step + number)
            weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        optimizer.step()
    return optimizer


def make_weights() -> list[nn.Parameter]:
    torch.manual_seed(3)
    return [nn.Parameter(torch.randn(shape).to(BF16)) for shape in ((7, 300), (300,), (5, 3, 11))]


def test_resumed_it_is_the_same_to_the_bit() -> None:
    whole, halves = make_weights(), make_weights()
    train(whole, range(6))
    first = train(halves, range(3))
    second = AdamW(halves, lr=1e-3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    torch.manual_seed(99)  # the global generator has no say
    train(halves, range(3, 6), second)
    assert all(torch.equal(one, other) for one, other in zip(whole, halves, strict=True))


def test_pieces_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from tune.modules.optim import adamw

    whole, pieces = make_weights(), make_weights()
    train(whole, range(3))
    monkeypatch.setattr(adamw, "_AT_ONCE_PER_THREAD", 256)
    train(pieces, range(3))
    assert all(torch.equal(one, other) for one, other in zip(whole, pieces, strict=True))


def test_other_types_are_stepped_as_torch_does() -> None:
    torch.manual_seed(4)
    here = nn.Parameter(torch.randn(40, 3))
    there = nn.Parameter(here.detach().clone())
    ours, theirs = AdamW([here], lr=1e-3, fused=True), torch.optim.AdamW([there], lr=1e-3, fused=True)
    for step in range(5):
        here.grad = there.grad = torch.randn(40, 3, generator=torch.Generator().manual_seed(step))
        ours.step()
        theirs.step()
    assert torch.equal(here, there)
    # A step that torch's optimizer saved goes on here.
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    ours.step()
    theirs.step()
    assert torch.equal(here, there)


def test_in_the_backward_pass_each_weight_has_its_own_chance() -> None:
    torch.manual_seed(5)
    weights = [nn.Parameter(torch.full((2000,), 0.02, dtype=BF16)) for _ in range(2)]
    optimizer = build_optimizer(
        Component("tune.modules.optim.AdamW", {"lr": 2e-5}), weights, in_backward=True
    )
    sum((weight.float() * 0.5).sum() for weight in weights).backward()  # type: ignore[union-attr]
    optimizer.step()
    changed = [weight != 0.02 for weight in (w.detach().float() for w in weights)]
    assert all(flags.float().mean() > 0 for flags in changed)
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize(
    ("path", "dtype", "warns"),
    [
        ("torch.optim.AdamW", BF16, True),
        ("torch.optim.SGD", BF16, True),
        ("torch.optim.AdamW", torch.float32, False),
        ("tune.modules.optim.AdamW", BF16, False),
    ],
)
def test_what_rounding_to_the_nearest_loses_is_said(
    path: str, dtype: torch.dtype, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="tune"):
        build_optimizer(Component(path, {"lr": 1e-3}), [nn.Parameter(torch.ones(3, dtype=dtype))])
    assert ("are lost" in caplog.text) == warns


def test_a_shard_is_rounded_as_its_part_of_the_whole() -> None:
    """The second of two processes, of which this one alone is there: a step sends nothing."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.manual_seed(6)
    whole = nn.Parameter(torch.randn(7, 300).to(BF16))
    gradients = [torch.randn(7, 300).to(BF16) for _ in range(3)]
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))

        def second_part(tensor: Tensor) -> Tensor:
            held = tensor.detach()[4:].clone()
            return DTensor.from_local(
                held, mesh, [Shard(0)], run_check=False, shape=tensor.shape, stride=(300, 1)
            )

        part = nn.Parameter(second_part(whole))
        ours, alone = AdamW([part], lr=1e-2), AdamW([whole], lr=1e-2)
        for gradient in gradients:
            part.grad, whole.grad = second_part(gradient), gradient
            ours.step()
            alone.step()
        assert isinstance(part.data, DTensor)
        assert torch.equal(part.data.to_local(), whole.detach()[4:])
    finally:
        dist.destroy_process_group()
