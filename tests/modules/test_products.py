"""Products by whichever library is faster: the same numbers as torch's own, in fp32, and the same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tune.modules.activation import Activation, activate, activate_times
from tune.modules.linear import Linear
from tune.modules.products import multiply, multiply_add

# Large enough for another library than torch's own choice, where there is one.
T, IN, OUT = 64, 304, 336


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_large_product_is_torchs_but_for_rounding(has_bias: bool) -> None:
    torch.manual_seed(3)
    ours, exact = Linear(IN, OUT, bias=has_bias), nn.Linear(IN, OUT, bias=has_bias).double()
    exact.load_state_dict({name: weight.double() for name, weight in ours.state_dict().items()})
    x = torch.randn(2, T // 2, IN, requires_grad=True)
    y = x.detach().double().requires_grad_()
    factors = torch.randn(2, T // 2, OUT)
    out, expected = ours(x), exact(y)
    (out * factors).sum().backward()
    (expected * factors).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(out, expected.float(), rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(x.grad, y.grad.float(), rtol=2e-5, atol=2e-5)
    for parameter, other in zip(ours.parameters(), exact.parameters(), strict=True):
        assert parameter.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(parameter.grad, other.grad.float(), rtol=2e-5, atol=5e-5)


def test_large_products_differentiate_in_other_ways_too() -> None:
    """Twice, and by torch.func, which wants an operator's own rule."""
    torch.manual_seed(3)
    module = Linear(IN, OUT)
    x = torch.randn(T, IN, requires_grad=True)
    (grad,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()  # type: ignore[no-untyped-call]
    twice = 2 * module.weight.t() @ module.weight
    torch.testing.assert_close(x.grad, 2 * grad.detach() @ twice, rtol=1e-4, atol=1e-3)
    found = torch.func.grad(lambda given: module(given).square().sum())(x.detach())
    torch.testing.assert_close(found, grad.detach())


def test_of_a_frozen_matrix_the_input_is_not_kept() -> None:
    module, x = Linear(IN, OUT).requires_grad_(False), torch.randn(T, IN, requires_grad=True)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = module(x)
    assert all(tensor.data_ptr() != x.data_ptr() for tensor in kept)
    out.sum().backward()
    assert x.grad is not None


def test_products_leave_what_they_are_given() -> None:
    """But for the total."""
    torch.manual_seed(3)
    x, matrix, bias, total = torch.randn(T, IN), torch.randn(IN, OUT), torch.randn(OUT), torch.randn(T, OUT)
    given = x.clone(), matrix.clone(), bias.clone()
    torch.testing.assert_close(multiply(x, matrix, bias), x @ matrix + bias, rtol=1e-4, atol=1e-4)
    expected = total + x @ matrix
    torch.testing.assert_close(multiply_add(total, x, matrix), expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(one, other) for one, other in zip(given, (x, matrix, bias), strict=True))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gate_is_autograds_to_the_bit(activation: Activation, dtype: torch.dtype) -> None:
    """What is kept are its two inputs alone."""
    torch.manual_seed(3)
    gate, up, factors = torch.randn(3, 5, 7, 11).to(dtype)[:, :, :2].unbind(0)
    found = []
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    def plain(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        return activate(gate, activation) * up

    for function in (plain, activate_times):
        one, other = (part.clone().requires_grad_() for part in (gate, up))
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = function(one, other, activation)
        (out * factors).sum().backward()  # type: ignore[no-untyped-call]
        found.append([out, one.grad, other.grad])
    assert {tensor.data_ptr() for tensor in kept} == {one.data_ptr(), other.data_ptr()}
    for result, expected in zip(*found, strict=True):
        assert result is not None
        assert expected is not None
        assert torch.equal(result, expected)
