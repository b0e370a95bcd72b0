"""A few rows times a matrix in 4 bits: what the dequantised matrix gives, without there being one."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tune.generation import generate
from tune.modules import DecoderConfig, TransformerDecoder
from tune.modules.peft import (
    LoRAConfig,
    NF4Weight,
    apply_lora,
    nf4_codes,
    nf4_linear,
    quantize_nf4,
    reset_adapters,
)

# More numbers than a CPU dequantises at a time, and pieces that do not come out even.
OUT, IN = 613, 896


def matrix(rows: int = OUT, columns: int = IN) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator)


class LargestTensor(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that an operator gives."""

    num_numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point():
            self.num_numbers = max(self.num_numbers, out.numel())
        return out


@pytest.mark.parametrize("num_rows", [1, 3, 8])
@pytest.mark.parametrize("has_bias", [False, True])
def test_few_rows_on_a_cpu(num_rows: int, has_bias: bool) -> None:
    weight, x = quantize_nf4(matrix()), torch.randn(num_rows, 1, IN)
    bias = torch.randn(OUT) if has_bias else None
    expected = F.linear(x, weight.dequantize(), bias)
    with LargestTensor() as largest:
        out = nf4_linear(x, weight, bias)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)
    assert largest.num_numbers < OUT * IN


def test_few_rows_of_a_large_bf16_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = quantize_nf4(matrix(2348, 1792).bfloat16()), torch.randn(1, 1792).bfloat16()
    with LargestTensor() as largest:
        out = nf4_linear(x, weight)
    expected = x.float() @ weight.dequantize().float().t()
    torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))
    assert largest.num_numbers < 2348 * 1792


@pytest.mark.parametrize(("rows", "columns", "num_rows"), [(33, 71, 2), (96, 160, 2), (33, 128, 9)])
def test_others_meet_the_whole_matrix(rows: int, columns: int, num_rows: int) -> None:
    """Rows that begin within a block, and more than a few."""
    weight, x = quantize_nf4(matrix(rows, columns)), torch.randn(num_rows, columns)
    torch.testing.assert_close(nf4_linear(x, weight), x @ weight.dequantize().t(), rtol=1e-5, atol=1e-5)


def test_gradients_reach_a_few_rows() -> None:
    weight, x = quantize_nf4(matrix()), torch.randn(2, IN, requires_grad=True)
    grad = torch.randn(2, OUT)
    (ours,) = torch.autograd.grad(nf4_linear(x, weight), x, grad)
    torch.testing.assert_close(ours, grad @ weight.dequantize(), rtol=1e-5, atol=1e-4)


def on_device(weight: NF4Weight) -> tuple[Tensor, ...]:
    """The arguments of the kernel."""
    numbers = [bits.view(torch.float32) for bits in (weight.range_bits, weight.mean_bits)]
    tables = nf4_codes._code_table(weight.device), nf4_codes._scale_table(weight.device)
    return weight.codes, weight.scale_codes, *numbers, *tables


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns", "num_rows"), [(7, 64, 1), (33, 320, 3), (130, 704, 8)])
def test_the_kernel(
    rows: int, columns: int, num_rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Triton's interpreter, or on a GPU."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert os.environ["TRITON_INTERPRET"]  # read when the kernel is defined
    from tune.modules.kernels.nf4_triton import multiply

    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = NF4Weight((rows, columns), double_block_size=7).fill_(matrix(rows, columns)).to(device)
    x = torch.randn(num_rows, columns, device=device).to(dtype)
    out = multiply(x, *on_device(weight), rows, 7)  # type: ignore[call-arg, arg-type]
    expected = x.float() @ weight.dequantize(dtype).float().t()
    # The interpreter cuts a bf16 number off where a GPU rounds it to the nearest.
    bound = (1e-6 if dtype == torch.float32 else 2**-6) * float(expected.abs().max())
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=bound)


def test_tokens_of_a_quantised_model_are_those_read_at_once() -> None:
    torch.manual_seed(5)
    model = TransformerDecoder(DecoderConfig(71, 2, 2, 1, 64, 32, 128, 40))
    apply_lora(model, LoRAConfig(rank=4, alpha=8, quantize_base=True))
    reset_adapters(model, torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
        # All at once: more rows than a few.
        prompt = [7, 70, 3, 3, 9, 11, 2, 5, 60]
        written = generate(model, prompt, max_new_tokens=24)
        logits = model(torch.tensor([prompt + written]))[0]
    assert logits.argmax(-1)[len(prompt) - 1 : -1].tolist() == written
    assert len(set(written)) > 4
