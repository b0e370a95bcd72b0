"""NF4 weights where a model puts them: products, gradients, autocast, the compiler, files, other dtypes and devices."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tune.errors import CheckpointError
from tune.modules.peft import NF4Weight, nf4_codes, nf4_linear, quantize_nf4

B, S, OUT, IN = 2, 5, 96, 160


def matrix(rows: int = OUT, columns: int = IN, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.5


class Block(nn.Module):
    """Two products with what a transformer puts between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = quantize_nf4(matrix(OUT, IN, seed=3))
        self.down = quantize_nf4(matrix(IN, OUT, seed=4))
        self.bias = nn.Parameter(torch.linspace(-1, 1, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return nf4_linear(F.silu(nf4_linear(x, self.up, self.bias)), self.down)

    def plain(self, x: Tensor) -> Tensor:
        """The same through dense matrices."""
        hidden = F.silu(F.linear(x, self.up.dequantize(x.dtype), self.bias.to(x.dtype)))
        return F.linear(hidden, self.down.dequantize(x.dtype))


def batch(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, S, IN, generator=torch.Generator().manual_seed(5)).to(dtype).requires_grad_()


def value_and_gradients(forward: object, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    assert callable(forward)
    out = forward(x)
    weights = torch.linspace(0.5, 1.5, out.numel()).view_as(out)
    return out, *torch.autograd.grad((out.float() * weights).sum(), (x, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_equals_the_dense_product_with_its_gradients(dtype: torch.dtype) -> None:
    block = Block()
    ours = value_and_gradients(block, batch(dtype), block.bias)
    dense = value_and_gradients(block.plain, batch(dtype), block.bias)
    assert ours[0].dtype == ours[1].dtype == dtype
    for mine, reference in zip(ours, dense):
        # The same products of the same numbers; in bf16 a sum may be rounded at another place.
        torch.testing.assert_close(mine, reference, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


def test_gradients_by_differences() -> None:
    weight = quantize_nf4(matrix(5, 7))
    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, bias: nf4_linear(x, weight, bias), (x, bias))
    assert torch.autograd.gradgradcheck(lambda x: nf4_linear(x, weight) ** 2, (x,))


@pytest.mark.parametrize("shape", [(IN,), (0, IN), (3, 1, 2, IN)])
def test_any_number_of_leading_dimensions(shape: tuple[int, ...]) -> None:
    weight, bias = quantize_nf4(matrix()), torch.linspace(-1, 1, OUT, requires_grad=True)
    x = torch.ones(shape, requires_grad=True)
    out = nf4_linear(x, weight, bias)
    torch.testing.assert_close(out, F.linear(x, weight.dequantize(), bias))
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape
    assert bias.grad is not None
    assert bias.grad.shape == (OUT,)


def test_autocast_decides_the_dtype() -> None:
    block = Block()
    with torch.autocast("cpu", torch.bfloat16):
        ours = value_and_gradients(block, batch(), block.bias)
        dense = value_and_gradients(block.plain, batch(), block.bias)
        double = nf4_linear(batch(torch.float64), block.up)
    assert ours[0].dtype == torch.bfloat16
    assert ours[1].dtype == torch.float32
    assert double.dtype == torch.float64
    for mine, reference in zip(ours, dense):
        torch.testing.assert_close(mine, reference, rtol=3e-2, atol=3e-2)


def saved_sizes(forward: object, x: Tensor) -> list[int]:
    """Bytes of each tensor that autograd keeps for the backward pass."""
    assert callable(forward)
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(x).sum().backward()
    return sizes


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_nothing_dequantised_is_kept(compiled: bool) -> None:
    block = Block()
    forward = (
        torch.compile(block, fullgraph=True, backend="aot_eager_decomp_partition") if compiled else block
    )
    dense = OUT * IN * 4
    assert max(saved_sizes(block.plain, batch())) == dense
    assert max(saved_sizes(forward, batch())) < 0.6 / 4 * dense


def test_eager_saves_activations_only() -> None:
    # Hooks that move saved tensors to the host must not be handed the base, layer by layer.
    assert sum(saved_sizes(Block(), batch())) <= B * S * OUT * 4


def test_compiled_equals_eager() -> None:
    block = Block()
    compiled = torch.compile(block, fullgraph=True)
    for mine, reference in zip(
        value_and_gradients(compiled, batch(), block.bias), value_and_gradients(block, batch(), block.bias)
    ):
        torch.testing.assert_close(mine, reference)


def test_operators_keep_their_contract_with_the_compiler() -> None:
    weight = quantize_nf4(matrix())
    sizes = (OUT, IN, weight.double_block_size)
    buffers = weight.buffers_in_order()
    bias = torch.zeros(OUT, requires_grad=True)
    torch.library.opcheck(torch.ops.tune.nf4_matmul.default, (batch(), bias, *buffers, *sizes, True))
    torch.library.opcheck(torch.ops.tune.nf4_dequantize.default, (*buffers, *sizes, torch.bfloat16))


def test_checkpointed_equals_kept() -> None:
    block = Block()
    again = value_and_gradients(lambda x: checkpoint(block, x, use_reentrant=False), batch(), block.bias)
    for mine, reference in zip(again, value_and_gradients(block, batch(), block.bias)):
        assert torch.equal(mine, reference)


def test_inference_first_spoils_no_training_after() -> None:
    weight = quantize_nf4(matrix())
    with torch.inference_mode():
        expected = nf4_linear(batch(), weight)
    x = batch()
    out = nf4_linear(x, weight)
    out.sum().backward()
    assert torch.equal(out, expected)


# --- Kept, moved and read back ---


@pytest.mark.parametrize("change", ["to", "half", "double", "bfloat16", "float"])
def test_another_dtype_changes_the_output_and_nothing_stored(change: str) -> None:
    weight = quantize_nf4(matrix())
    expected = weight.dequantize(torch.float32)
    model = nn.Sequential(weight, nn.Linear(OUT, 3))
    model.to(torch.bfloat16) if change == "to" else getattr(model, change)()
    assert weight.dtype == model[1].weight.dtype == weight.dequantize().dtype
    assert torch.equal(weight.dequantize(torch.float32), expected)
    assert weight.nbytes == quantize_nf4(matrix()).nbytes


def test_a_state_dict_goes_through_a_file(tmp_path: Path) -> None:
    weight = quantize_nf4(matrix())
    assert list(weight.parameters()) == []
    assert set(weight.state_dict()) == {"codes", "scale_codes", "range_bits", "mean_bits"}
    save_file(weight.state_dict(), tmp_path / "nf4.safetensors")
    other = NF4Weight((OUT, IN))
    other.load_state_dict(load_file(tmp_path / "nf4.safetensors"))
    assert torch.equal(other.dequantize(), weight.dequantize())
    meta = NF4Weight((OUT, IN), device="meta")
    meta.load_state_dict(weight.state_dict(), assign=True)
    meta.to("cpu", torch.bfloat16)
    assert torch.equal(copy.deepcopy(meta).dequantize(torch.float32), weight.dequantize())


def test_a_meta_weight_is_filled_where_the_tensor_is() -> None:
    weight = NF4Weight((OUT, IN), dtype=torch.bfloat16, device="meta")
    assert weight.dequantize().is_meta
    assert nf4_linear(torch.zeros(3, IN, device="meta"), weight).shape == (3, OUT)
    assert weight.fill_(matrix()) is weight
    assert weight.device.type == "cpu"
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight.dequantize(torch.float32), quantize_nf4(matrix()).dequantize())
    assert all(buffer.device.type == "cpu" for buffer in weight.buffers())
    broken = matrix(seed=7)
    broken[3, 5] = torch.nan
    with pytest.raises(CheckpointError):
        weight.fill_(broken)
    assert torch.equal(weight.dequantize(torch.float32), quantize_nf4(matrix()).dequantize())


def test_a_parameter_is_quantised_without_its_graph() -> None:
    weight = quantize_nf4(nn.Parameter(matrix()))
    assert not weight.dequantize().requires_grad


def test_under_a_default_device_tables_stay_where_the_weight_is() -> None:
    nf4_codes._pair_table.cache_clear()
    nf4_codes._scale_table.cache_clear()
    tensor = matrix()
    with torch.device("meta"):
        weight = quantize_nf4(tensor)
        out = weight.dequantize()
    assert torch.equal(out, quantize_nf4(matrix()).dequantize())
