"""An adapter beside one matrix: what it computes, and what it keeps for the backward pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune.errors import ConfigError
from tune.modules.peft import (
    LoRALinear,
    adapter_parameters,
    is_adapter,
)

b, s, i, o, r = 2, 5, 14, 11, 3
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "dropout": {"dropout": 0.4},
    "dora-dropout": {"use_dora": True, "dropout": 0.4},
}


def stirred(module: nn.Module, seed: int = 1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if is_adapter(f".{name}"):
                noise = torch.randn(parameter.shape, generator=generator) * 0.2
                parameter.add_(noise.to(parameter))
    return module


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_numeric_differences(kind: str, use_bias: bool) -> None:
    torch.manual_seed(0)
    module = stirred(LoRALinear(i, o, r, 5.0, use_bias=use_bias, **KINDS[kind]).double())
    x = torch.randn(b, s, i, dtype=torch.double, requires_grad=True)
    lengths = module._row_lengths()

    def forward(*inputs: Tensor) -> Tensor:
        torch.manual_seed(6)  # the same numbers are dropped
        return module(inputs[0])

    # The lengths are a constant to the gradient, so they are one to the differences.
    module._row_lengths = lambda: lengths
    inputs = (x, *(parameter for name, parameter in module.named_parameters() if is_adapter(f".{name}")))
    assert len(inputs) == 3 + module.use_dora
    assert torch.autograd.gradcheck(forward, inputs)


def test_the_formula() -> None:
    torch.manual_seed(0)
    x = torch.randn(b, s, i)
    for use_rslora, scaling in ((False, 5.0 / r), (True, 5.0 / math.sqrt(r))):
        module = stirred(LoRALinear(i, o, r, 5.0, use_bias=True, use_rslora=use_rslora))
        change = scaling * module.lora_b.weight @ module.lora_a.weight
        expected = x @ (module.weight + change).t() + module.bias
        torch.testing.assert_close(module(x), expected)
        torch.testing.assert_close(module.merged_weight(), module.weight + change)


def test_magnitudes_are_the_lengths_of_the_merged_rows() -> None:
    torch.manual_seed(0)
    module = stirred(LoRALinear(i, o, r, 5.0, use_dora=True))
    lengths = module.merged_weight().norm(dim=1)
    torch.testing.assert_close(lengths, module.magnitude.abs())
    turned = module.weight + module.scaling * module.lora_b.weight @ module.lora_a.weight
    torch.testing.assert_close(module._row_lengths(), turned.norm(dim=1))


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_off_in_eval_and_leaves_the_frozen_part_alone(kind: str) -> None:
    torch.manual_seed(0)
    module = LoRALinear(i, o, r, 5.0, **KINDS[kind])
    x = torch.randn(b, s, i)
    frozen = F.linear(x, module.weight)
    assert torch.equal(module(x), frozen)  # B is zero: what is dropped does not show
    stirred(module).eval()
    assert torch.equal(module(x), module(x))
    module.train()
    assert torch.equal(module(x), module(x)) == ("dropout" not in kind)
    many = torch.stack([module(x) for _ in range(3000)]).mean(0)
    torch.testing.assert_close(many, module.eval()(x), rtol=0.0, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_any_shape_and_stride(kind: str) -> None:
    torch.manual_seed(0)
    module = stirred(LoRALinear(i, o, r, 5.0, use_bias=True, **KINDS[kind])).eval()
    x = torch.randn(s, b, i)
    for view in (x.transpose(0, 1), x[:, 0], x[0, 0], x[:0], x.expand(2, s, b, i), x[::2]):
        view = view.detach().requires_grad_()
        out = module(view)
        assert out.shape == (*view.shape[:-1], o)
        torch.testing.assert_close(out, view @ module.merged_weight().t() + module.bias)
        out.sum().backward()
        assert view.grad.shape == view.shape


def test_a_row_of_zeros_stays_one() -> None:
    module = LoRALinear(i, o, r, 5.0, use_dora=True)
    weight = torch.randn(o, i)
    weight[4] = 0.0
    module.fill_weight(weight)
    x = torch.randn(s, i)
    assert torch.equal(module(x), x @ weight.t())
    module(x).sum().backward()
    assert all(
        parameter.grad.isfinite().all() for parameter in adapter_parameters(nn.Sequential(module)).values()
    )


def test_what_is_kept_for_the_backward_pass() -> None:
    """x, once for all that read it, and products of width r: nothing of the outputs' width, no second matrix."""
    torch.manual_seed(0)
    modules = [
        LoRALinear(i, o, r, 5.0, dropout=dropout, quantize_base=quantize_base)
        for dropout in (0.0, 0.4)
        for quantize_base in (False, True)
    ]
    for module in modules[1::2]:
        module.fill_weight(torch.randn(o, i))
        module.reset_adapter()
    x = torch.randn(b, s, i, requires_grad=True)
    for module in modules:
        saved: list[Tensor] = []

        def pack(tensor: Tensor, saved: list[Tensor] = saved) -> Tensor:
            saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module(x)
        known = {p.untyped_storage().data_ptr() for p in (*module.parameters(), *module.buffers(), x)}
        extra = {
            t.untyped_storage().data_ptr(): t for t in saved if t.untyped_storage().data_ptr() not in known
        }
        assert sum(tensor.nbytes for tensor in extra.values()) == b * s * (4 * r + i * (module.dropout > 0))


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_in_4_bits_it_does_what_the_matrix_they_stand_for_does(kind: str, use_bias: bool) -> None:
    torch.manual_seed(0)
    quantized = LoRALinear(i, o, r, 5.0, use_bias=use_bias, quantize_base=True, **KINDS[kind])
    dense = LoRALinear(i, o, r, 5.0, use_bias=use_bias, **KINDS[kind])
    quantized.fill_weight(torch.randn(o, i))
    dense.fill_weight(quantized.nf4.dequantize())
    found = []
    for module in (quantized, dense):
        torch.manual_seed(2)
        module.reset_adapter()
        stirred(module)
        if use_bias:
            nn.init.normal_(module.bias)
        x = torch.randn(b, s, i, requires_grad=True)
        out = module(x)
        out.square().sum().backward()
        found.append((out, x.grad, *(p.grad for n, p in module.named_parameters() if is_adapter(f".{n}"))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_half_precision(base: torch.dtype, kind: str) -> None:
    torch.manual_seed(0)
    module = stirred(LoRALinear(i, o, r, 5.0, use_bias=True, **KINDS[kind])).eval()
    exact = module(torch.ones(b, s, i))
    module.weight.data = module.weight.to(base)  # fill_weight would begin the magnitudes anew
    with torch.autocast("cpu", torch.bfloat16):
        out = module(torch.ones(b, s, i, requires_grad=True))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0.02, atol=0.05)
    out.float().sum().backward()
    assert module.lora_b.weight.grad.dtype == torch.float32


def test_a_small_step_of_a_magnitude_is_not_rounded_away() -> None:
    torch.manual_seed(0)
    module = LoRALinear(i, o, r, 5.0, use_dora=True)
    module.fill_weight(torch.randn(o, i).bfloat16())
    module.reset_adapter(torch.float32)
    x = torch.randn(4000, i).bfloat16()
    before = module(x).detach().float().abs().mean()
    step = 1.0 + 0.75 * 2.0**-8  # bf16 rounds it to one, though not all that it multiplies
    with torch.no_grad():
        module.magnitude.mul_(step)
    after = module(x).detach().float().abs().mean()
    assert math.isclose(after / before, step, abs_tol=2.0**-10)


def test_a_base_of_another_shape() -> None:
    with pytest.raises(ConfigError, match=r"\[5, 4\] cannot stand where \[11, 14\] is needed"):
        LoRALinear(i, o, r, 5.0).fill_weight(torch.zeros(5, 4))
    with pytest.raises(ConfigError, match="at least 1"):
        LoRALinear(i, o, 0, 5.0)
