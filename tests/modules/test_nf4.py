"""NF4 against a slow reference written from the paper, against bitsandbytes, and in the places a model puts it."""

from __future__ import annotations

import copy
import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from tune.errors import CheckpointError, ConfigError, TrainingError
from tune.modules.peft import NF4Weight, nf4_codes, nf4_linear, quantize_nf4
from tune.modules.peft.nf4_codes import NF4_CODES

OUT, IN = 96, 160
BLOCK, GROUP = 64, 256
# Half the widest gap between neighbouring codes: how far from a number its code can be, in units of the block's scale.
HALF_GAP = max(b - a for a, b in pairwise(NF4_CODES)) / 2
# Half the widest gap of the 8-bit codes, which is 0.9 / 64, in units of the group's range.
HALF_SCALE_GAP = 0.9 / 64 / 2


def matrix(rows: int = OUT, columns: int = IN, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers, each row with a deviation of its own."""
    generator = torch.Generator().manual_seed(seed)
    spread = 0.1 + torch.rand(rows, 1, generator=generator)
    return (torch.randn(rows, columns, generator=generator) * spread).to(dtype)


def codes_of(weight: NF4Weight) -> Tensor:
    """One code per number, padding included."""
    return torch.stack([weight.codes >> 4, weight.codes & 15], -1).flatten()


def scales_of(weight: NF4Weight) -> np.ndarray:
    """The dequantised scales, by the definition of 8-bit dynamic quantisation."""
    table = dynamic_numbers()[weight.scale_codes.numpy()]
    ranges = weight.range_bits.numpy().view(np.float32).repeat(weight.double_block_size)[: len(table)]
    mean = weight.mean_bits.numpy().view(np.float32)
    return table * ranges + mean


def dynamic_numbers() -> np.ndarray:
    """8-bit dynamic quantisation's 256 numbers: for an exponent e from -6 to 0, 2^(e+6) fractions in (0.1, 1)."""
    positive = [
        10.0**e * (0.1 + 0.9 * (n + 0.5) / 2 ** (e + 6)) for e in range(-6, 1) for n in range(2 ** (e + 6))
    ]
    return np.array(sorted([*positive, *(-p for p in positive), 0.0, 1.0]), dtype=np.float32)


def slow_codes(values: np.ndarray, table: np.ndarray) -> list[int]:
    """The nearest entry for each number of one block, by looking at every one."""
    largest = np.abs(values).max()
    scaled = values / largest if largest > 0 else values
    return [int(np.abs(table - number).argmin()) for number in scaled]


# --- The code book and the numbers stored ---


def test_the_codes_are_quantiles_of_a_normal_distribution() -> None:
    # arXiv:2305.14314, 3 and appendix E: 8 steps above zero and 7 below, from the quantile that leaves out half of
    # the mean of 1/30 and 1/32, scaled to end at one. The authors' figures went through fp32.
    quantile = statistics.NormalDist().inv_cdf
    end = 0.9677083  # the authors' rounding of 1 - (1/30 + 1/32) / 2
    assert abs(end - (1 - (1 / 30 + 1 / 32) / 2)) < 1e-7
    above = [quantile(end + (0.5 - end) * n / 8) for n in range(8)]
    below = [-quantile(end + (0.5 - end) * n / 7) for n in range(7)]
    expected = sorted([*above, 0.0, *below])
    assert np.allclose(np.array(expected) / max(expected), NF4_CODES, atol=2e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "columns"), [(7, 64), (OUT, IN), (33, 71), (1, 1), (3, 43)])
def test_codes_and_scales_are_the_nearest_by_brute_force(rows: int, columns: int, dtype: torch.dtype) -> None:
    tensor = matrix(rows, columns, dtype)
    weight = quantize_nf4(tensor)
    numbers = np.zeros(math.ceil(rows * columns / BLOCK) * BLOCK, dtype=np.float32)
    numbers[: rows * columns] = tensor.float().numpy().reshape(-1)
    blocks = numbers.reshape(-1, BLOCK)
    expected = np.array([slow_codes(block, np.array(NF4_CODES)) for block in blocks])
    assert np.array_equal(codes_of(weight).numpy(), expected.reshape(-1))
    largest = np.abs(blocks).max(1)
    centred = largest - largest.mean(dtype=np.float32)
    groups = [centred[start : start + GROUP] for start in range(0, len(centred), GROUP)]
    expected_scales = np.array([code for group in groups for code in slow_codes(group, dynamic_numbers())])
    # torch and numpy sum a mean in another order, so a scale in the middle of two codes may go either way.
    distance = np.abs(weight.scale_codes.numpy().astype(int) - expected_scales)
    assert distance.max() <= 1
    assert (distance > 0).mean() < 0.01


# The last is more than one part of the workspace, and ends inside a block.
@pytest.mark.parametrize(("rows", "columns"), [(OUT, IN), (33, 71), (613, 859)])
def test_dequantised_is_code_times_scale_rounded_once(rows: int, columns: int) -> None:
    weight = quantize_nf4(matrix(rows, columns))
    codes = np.array(NF4_CODES, dtype=np.float32)[codes_of(weight).numpy()].reshape(-1, BLOCK)
    product = torch.from_numpy(codes * scales_of(weight)[:, None]).reshape(-1)[: rows * columns]
    single = weight.dequantize()
    # The test's table of 8-bit numbers is exact, the reference's went through fp32.
    torch.testing.assert_close(single, product.view(rows, columns), rtol=0, atol=1e-6)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(weight.dequantize(dtype), single.to(dtype))


def test_parts_do_not_show() -> None:
    tensor = matrix(613, 859)
    whole = quantize_nf4(tensor)
    first, second = (part[None] for part in tensor.view(-1).split([64 * 4321, 613 * 859 - 64 * 4321]))
    assert torch.equal(whole.codes[:4321], quantize_nf4(first).codes)
    assert torch.equal(whole.codes[4321:], quantize_nf4(second).codes)


def test_a_view_with_other_strides_is_quantised_as_its_copy() -> None:
    view = matrix(IN, OUT).t()
    assert not view.is_contiguous()
    assert torch.equal(quantize_nf4(view).codes, quantize_nf4(view.contiguous()).codes)


# --- Against the published reference ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equal_to_bitsandbytes(dtype: torch.dtype) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    tensor = matrix(640, 2048, dtype)
    packed, state = functional.quantize_4bit(tensor, blocksize=64, compress_statistics=True, quant_type="nf4")
    weight = quantize_nf4(tensor)
    assert torch.equal(weight.codes.view(-1), packed.view(-1))
    assert torch.equal(weight.range_bits.view(torch.float32), state.state2.absmax)
    assert torch.equal(weight.mean_bits.view(torch.float32)[0], state.offset)
    # Its CPU kernel takes the farther of two codes where a scale lies near the middle; elsewhere they are equal.
    _, plain = functional.quantize_4bit(tensor, blocksize=64, quant_type="nf4")
    ranges = state.state2.absmax.repeat_interleave(GROUP)[: len(plain.absmax)]
    centred = (plain.absmax - state.offset) / ranges
    ours, theirs = (
        (state.state2.code[codes.long()] - centred).abs() for codes in (weight.scale_codes, state.absmax)
    )
    differ = weight.scale_codes != state.absmax
    assert differ.float().mean() < 0.005
    assert (ours[differ] < theirs[differ]).all()
    # What it stored, we read as it does: to the bit.
    weight.scale_codes = state.absmax
    for out in (torch.float32, torch.bfloat16):
        state.dtype = out
        assert torch.equal(weight.dequantize(out), functional.dequantize_4bit(packed, state))


# --- Properties ---


@pytest.mark.parametrize(("rows", "columns"), [(OUT, IN), (33, 71)])
def test_quantising_again_changes_no_code(rows: int, columns: int) -> None:
    weight = quantize_nf4(matrix(rows, columns))
    assert torch.equal(quantize_nf4(weight.dequantize()).codes, weight.codes)


def test_the_error_is_bounded_block_by_block() -> None:
    tensor = matrix(613, 320)
    weight = quantize_nf4(tensor)
    blocks = tensor.view(-1, BLOCK)
    largest = blocks.abs().amax(1)
    ranges = weight.range_bits.view(torch.float32).repeat_interleave(GROUP)[: len(largest)]
    bound = HALF_GAP * largest + HALF_SCALE_GAP * ranges
    error = (weight.dequantize().view(-1, BLOCK) - blocks).abs().amax(1)
    assert (error <= bound * (1 + 1e-5)).all()
    assert (error > 0.5 * HALF_GAP * largest).any()  # the bound is not idle


def test_signs_turn_where_the_codes_have_both() -> None:
    # Only -1, 0 and 1 are codes with both signs.
    tensor = torch.randint(-1, 2, (OUT, IN), generator=torch.Generator().manual_seed(1)).float()
    there, back = quantize_nf4(tensor * 0.3), quantize_nf4(tensor * -0.3)
    assert torch.equal(there.dequantize(), -back.dequantize())
    assert torch.equal(there.dequantize(), tensor * 0.3)


def test_zeros_stay_zero_whatever_stands_beside_them() -> None:
    tensor = matrix()
    tensor[::3] = 0.0
    tensor[:, ::7] = 0.0
    assert (quantize_nf4(tensor).dequantize()[tensor == 0] == 0).all()
    assert (quantize_nf4(torch.zeros(3, 5)).dequantize() == 0).all()


def test_a_constant_matrix_comes_back() -> None:
    assert torch.equal(quantize_nf4(torch.full((OUT, IN), -0.7)).dequantize(), torch.full((OUT, IN), -0.7))


def test_tiny_blocks_beside_large_ones_never_turn_their_signs() -> None:
    tensor = matrix(64, 256)
    tensor[::2] *= 1e-6
    restored = quantize_nf4(tensor).dequantize()
    assert (restored * tensor >= 0).all()


@pytest.mark.parametrize("magnitude", [1e-45, 1e-39, 1e30])
def test_extreme_magnitudes_stay_finite(magnitude: float) -> None:
    tensor = matrix() * magnitude
    restored = quantize_nf4(tensor).dequantize()
    assert restored.isfinite().all()
    assert (restored - tensor).abs().max() <= tensor.abs().max()


def test_a_normal_matrix_is_kept_to_a_tenth() -> None:
    tensor = torch.randn(512, 1024, generator=torch.Generator().manual_seed(2))
    error = (quantize_nf4(tensor).dequantize() - tensor).norm() / tensor.norm()
    assert 0.08 < error < 0.10


def test_memory_is_what_was_promised() -> None:
    weight = quantize_nf4(matrix(2048, 3072, torch.bfloat16))
    stored = sum(buffer.untyped_storage().nbytes() for buffer in weight.buffers())
    assert stored == weight.nbytes
    assert stored / (2048 * 3072) < 0.516


@pytest.mark.parametrize(("block_size", "double_block_size"), [(32, 256), (128, 7), (6, 1), (4096, 256)])
def test_other_block_sizes(block_size: int, double_block_size: int) -> None:
    tensor = matrix()
    weight = quantize_nf4(tensor, block_size, double_block_size)
    assert weight.codes.shape[1] == block_size // 2
    assert (weight.dequantize() - tensor).norm() / tensor.norm() < 0.25


# --- What is refused ---


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", [0, OUT * IN - 1])
def test_numbers_that_are_not_finite_are_refused(bad: float, place: int) -> None:
    tensor = matrix()
    tensor.view(-1)[place] = bad
    with pytest.raises(CheckpointError, match="1 of 240 NF4 blocks hold a number that is infinite"):
        quantize_nf4(tensor)


def test_numbers_too_large_for_their_mean_are_refused() -> None:
    with pytest.raises(CheckpointError, match="finite, but too large"):
        quantize_nf4(torch.full((OUT, IN), 3e38))


def test_wrong_shapes_sizes_and_dtypes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[out, in\], not \[3, 4, 5\]"):
        quantize_nf4(torch.zeros(3, 4, 5))
    with pytest.raises(ConfigError, match=r"at least one number, not \[0, 5\]"):
        quantize_nf4(torch.zeros(0, 5))
    with pytest.raises(ConfigError, match="block_size=63"):
        quantize_nf4(matrix(), block_size=63)
    with pytest.raises(ConfigError, match="double_block_size=0"):
        quantize_nf4(matrix(), double_block_size=0)
    for dtype in (torch.float64, torch.int64, torch.uint8, torch.complex64):
        with pytest.raises(TrainingError, match="convert it first"):
            quantize_nf4(torch.zeros(3, 4, dtype=dtype))
    with pytest.raises(ConfigError, match=r"not to torch\.int8"):
        quantize_nf4(matrix()).dequantize(torch.int8)
    with pytest.raises(TrainingError, match=r"\[96, 160\] cannot be filled from \[160, 96\]"):
        NF4Weight((OUT, IN)).fill_(matrix(IN, OUT))
    with pytest.raises(TrainingError, match="load its values first"):
        quantize_nf4(matrix().to("meta"))
    with pytest.raises(TrainingError, match=r"rows of 160; this input is \[2, 96\]"):
        nf4_linear(torch.zeros(2, OUT), quantize_nf4(matrix()))


# --- On a GPU ---


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["triton", "torch"])
@pytest.mark.parametrize(("rows", "columns"), [(OUT, IN), (33, 71), (613, 859)])
def test_a_gpu_gives_the_same_numbers(
    rows: int, columns: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "triton":
        pytest.importorskip("triton")
    monkeypatch.setattr(nf4_codes, "has_triton", lambda: kernel == "triton")
    weight = quantize_nf4(matrix(rows, columns), double_block_size=7)
    there = copy.deepcopy(weight).cuda()
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(there.dequantize(dtype).cpu(), weight.dequantize(dtype))


@pytest.mark.gpu
def test_a_gpu_quantises_to_the_same_codes() -> None:
    tensor = matrix(613, 859)
    there, here = quantize_nf4(tensor.cuda()), quantize_nf4(tensor)
    # A GPU's reciprocal may differ in the last bit, and so a number in the middle of two codes.
    assert (there.codes.cpu() != here.codes).float().mean() < 1e-3
    assert (there.scale_codes.cpu() != here.scale_codes).float().mean() < 1e-2
