"""Matrices with adapters that read one input, taken together, against each called by itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tune.modules.peft import FrozenLinear, LoRALinear
from tune.modules.peft.together import _can_join, linear_together

B, S, IN = 2, 5, 12


def lora(out: int, rank: int, dtype: torch.dtype, **settings: Any) -> LoRALinear:
    module = LoRALinear(IN, out, rank, alpha=3.0 + rank, **settings)
    module.fill_weight(torch.randn(out, IN).to(dtype))
    module.reset_adapter(torch.float32)
    nn.init.normal_(module.lora_b.weight)
    return module


def frozen(out: int, dtype: torch.dtype, quantize_base: bool = False, bias: bool = False) -> FrozenLinear:
    module = FrozenLinear(IN, out, bias, quantize_base)
    module.fill_weight(torch.randn(out, IN).to(dtype))
    return module


def plain(out: int, dtype: torch.dtype) -> nn.Linear:
    return nn.Linear(IN, out).to(dtype).requires_grad_(False)


# What stands beside an adapted matrix in models: others with adapters, frozen ones, in 4 bits or with biases.
SETS: dict[str, Any] = {
    "q, k, v": lambda dtype: (lora(14, 3, dtype), lora(6, 2, dtype), lora(6, 4, dtype, use_bias=True)),
    "q, v": lambda dtype: (lora(14, 3, dtype), plain(6, dtype), lora(6, 3, dtype)),
    "last": lambda dtype: (frozen(14, dtype, bias=True), lora(6, 5, dtype, use_rslora=True)),
    "nf4": lambda dtype: (
        lora(14, 3, dtype, quantize_base=True),
        frozen(6, dtype, quantize_base=True),
        lora(7, 3, dtype, quantize_base=True, use_bias=True),
    ),
}


def passed(outs: list[Tensor], x: Tensor, modules: nn.ModuleList) -> list[Tensor]:
    generator = torch.Generator().manual_seed(8)
    weights = [torch.randn(out.shape, generator=generator).to(out.dtype) for out in outs]
    sum((out * weight).sum().float() for out, weight in zip(outs, weights, strict=True)).backward()
    grads = [parameter.grad for parameter in modules.parameters() if parameter.requires_grad]
    return [*outs, *([] if x.grad is None else [x.grad]), *grads]


@pytest.mark.parametrize("needs_x", [True, False])
@pytest.mark.parametrize("mode", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("kind", SETS)
def test_values_and_gradients_are_those_of_each(kind: str, mode: str, needs_x: bool) -> None:
    torch.manual_seed(3)
    weight = torch.bfloat16 if mode == "bf16" else torch.float32
    modules = nn.ModuleList(SETS[kind](weight))
    for module in modules:
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias)
    twins = copy.deepcopy(modules)
    x = torch.randn(B, S, IN).to(weight)
    inputs = [x.clone().requires_grad_(needs_x) for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        assert _can_join(list(modules))
        together, each = linear_together(inputs[0], *modules), [twin(inputs[1]) for twin in twins]
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if mode == "fp32" else {"rtol": 0.02, "atol": 0.1}
    found, expected = passed(together, inputs[0], modules), passed(each, inputs[1], twins)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_no_more_is_kept_than_by_each() -> None:
    """In bf16 less: adapters in fp32 are kept as they are."""
    for dtype in (torch.float32, torch.bfloat16):
        modules = SETS["nf4"](dtype)
        given = {
            tensor.data_ptr() for module in modules for tensor in (*module.parameters(), *module.buffers())
        }
        sizes = []
        for call in (linear_together, lambda x, *modules: [module(x) for module in modules]):
            kept: dict[int, int] = {}

            def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                outs = call(torch.randn(B, S, IN).to(dtype).requires_grad_(), *modules)
            sizes.append(sum(size for place, size in kept.items() if place not in given))
            del outs
        assert sizes[0] <= sizes[1]
        assert (sizes[0] < sizes[1]) == (dtype == torch.bfloat16)


@pytest.mark.parametrize("kind", ["q, v", "nf4"])
def test_compiled_it_is_one_graph_that_keeps_no_matrix(kind: str) -> None:
    counters.clear()
    torch._dynamo.reset()
    modules = SETS[kind](torch.float32)
    given = {tensor.data_ptr() for module in modules for tensor in (*module.parameters(), *module.buffers())}
    forward = torch.compile(
        linear_together, backend="aot_eager_decomp_partition", fullgraph=True, dynamic=True
    )
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for num_tokens in (S, 9):
        x = torch.randn(B, num_tokens, IN)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        kept.clear()
        with torch.autocast("cpu", torch.bfloat16):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                outs = forward(inputs[0], *modules)
            expected = linear_together(inputs[1], *modules)
        most = B * num_tokens * (IN * 4 + 6 * 2)  # the input, and the narrow results in bf16
        assert sum(size for place, size in kept.items() if place not in given) <= most
        for out in (outs, expected):
            sum(part.float().square().sum() for part in out).backward()
        for ours, theirs in zip([*outs, inputs[0].grad], [*expected, inputs[1].grad], strict=True):
            torch.testing.assert_close(ours, theirs)
    assert counters["stats"]["unique_graphs"] == 1


def test_what_is_more_than_that_is_called_by_itself() -> None:
    simple, dtype = lora(6, 3, torch.float32), torch.float32
    trained = nn.Linear(IN, 6)
    hooked = plain(6, dtype)
    calls = []
    hooked.register_forward_hook(lambda *arguments: calls.append(1))
    others: list[nn.Module] = [
        lora(6, 3, dtype, use_dora=True),
        lora(6, 3, dtype, dropout=0.5),
        trained,
        hooked,
        type("Other", (nn.Linear,), {})(IN, 6).requires_grad_(False),
    ]
    for other in others:
        assert not _can_join([simple, other])
    assert _can_join([simple, lora(6, 3, dtype, dropout=0.5).eval()])
    assert not _can_join([plain(6, dtype), frozen(6, dtype)])
    simple.disabled = True
    assert not _can_join([simple, plain(6, dtype)])
    linear_together(torch.randn(B, S, IN), simple, hooked)
    assert calls == [1]
