"""The loss's kernel for GPUs: in Triton's interpreter where Triton is installed, and on a GPU where there is one."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from tune.modules.loss import LinearCrossEntropyLoss, linear_cross_entropy

R, D, V = 7, 5, 8203  # more columns than one step of the kernel
CASES = [(softcap, weighted) for softcap in (None, 3.0) for weighted in (False, True)]


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("the kernel is compiled here, see below")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert os.environ["TRITON_INTERPRET"]  # read when the kernel is defined
    pytest.importorskip("triton")


def compare_with_torch(dtype: torch.dtype, softcap: float | None, weighted: bool, device: str) -> None:
    from tune.modules.kernels.cross_entropy_triton import cross_entropy_

    generator = torch.Generator().manual_seed(5)
    scores = 3 * torch.randn(R, V, generator=generator)
    scores[1] *= 1e3  # far beyond what an exponential can take
    scores[2, 17], scores[3, 8200] = float("nan"), float("-inf")
    targets = torch.randint(0, V, (R,), generator=generator)
    targets[0], targets[4] = 0, V - 1
    factors = torch.rand(R, generator=generator) * 2 if weighted else None
    logits = scores.to(dtype)
    room = torch.empty_like(scores) if dtype == torch.bfloat16 else None
    grad = logits.clone()
    losses = linear_cross_entropy.cross_entropy_(grad, targets, factors, softcap, True, room)
    assert losses[2].isnan()
    assert losses.isfinite().sum() == R - 1
    for needs_grad in (False, True):
        ours = logits.to(device)
        there = None if factors is None else factors.to(device)
        got = cross_entropy_(ours, targets.to(device), there, softcap, needs_grad)
        torch.testing.assert_close(got.cpu(), losses, rtol=1e-5, atol=1e-5, equal_nan=True)
        # A sum in another order, or the interpreter's rounding, takes a bf16 number to its neighbour.
        near = {"rtol": 2**-7, "atol": 1e-7} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-6}
        wanted = grad if needs_grad else logits
        torch.testing.assert_close(ours.cpu(), wanted, **near, equal_nan=True)


def value_and_grads(
    dtypes: tuple[torch.dtype, torch.dtype], softcap: float | None, weighted: bool, device: str
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(6)
    hidden = torch.randn(1, 23, D, generator=generator).to(dtypes[0])
    weight = torch.randn(37, D, generator=generator).to(dtypes[1])
    labels = torch.randint(0, 37, (1, 23), generator=generator)
    labels[:, 5:9] = -100
    weights = torch.rand(1, 23, generator=generator).to(device) if weighted else None
    leaves = [tensor.to(device).requires_grad_() for tensor in (hidden, weight)]
    with torch.autocast(device, torch.bfloat16, enabled=dtypes[0] != dtypes[1]):
        loss = LinearCrossEntropyLoss()(*leaves, labels.to(device), softcap, weights)
    loss.backward()
    return [tensor.detach().cpu() for tensor in (loss, *(leaf.grad for leaf in leaves))]


@pytest.mark.parametrize(("softcap", "weighted"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradient_are_those_of_torch(
    interpreter: None, dtype: torch.dtype, softcap: float | None, weighted: bool
) -> None:
    compare_with_torch(dtype, softcap, weighted, "cpu")


@pytest.mark.parametrize(("softcap", "weighted"), [(None, False), (3.0, True)])
def test_a_loss_with_the_kernel_is_the_same_loss(
    interpreter: None, monkeypatch: pytest.MonkeyPatch, softcap: float | None, weighted: bool
) -> None:
    bf16, fp32 = torch.bfloat16, torch.float32
    monkeypatch.setattr(linear_cross_entropy, "_CPU_ROWS", (8, 8))  # so that there are several pieces
    for dtypes in ((fp32, fp32), (bf16, bf16), (bf16, fp32)):
        plain = value_and_grads(dtypes, softcap, weighted, "cpu")
        with monkeypatch.context() as patch:
            patch.setattr(linear_cross_entropy, "has_kernel", lambda logits: True)
            with_kernel = value_and_grads(dtypes, softcap, weighted, "cpu")
        for ours, theirs in zip(with_kernel, plain, strict=True):
            assert ours.dtype == theirs.dtype
            # The interpreter cuts a bf16 number off where a GPU rounds it to the nearest.
            assert (ours - theirs).norm() <= (1e-5 if dtypes[0] == fp32 else 2**-7) * theirs.norm()


def test_a_gpu_takes_pieces_of_thousands_of_rows() -> None:
    loss, gpu = LinearCrossEntropyLoss(8), torch.device("cuda")
    for num_targets in (1, 4095, 4096, 8191, 8200, 20_000, 60_000, 100_000):
        rows = loss.rows_per_piece(num_targets, gpu)
        num_pieces = -(-num_targets // rows)
        assert min(num_targets, 4096) <= rows <= 8192
        assert num_pieces * rows - num_targets < num_pieces  # the last is as large as the others
    assert LinearCrossEntropyLoss(1).rows_per_piece(8192, gpu) == 8192


@pytest.mark.gpu
@pytest.mark.parametrize(("softcap", "weighted"), CASES)
def test_the_compiled_kernel_gives_what_a_cpu_gives(softcap: float | None, weighted: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        compare_with_torch(dtype, softcap, weighted, "cuda")
    for dtypes in ((torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)):
        here, there = (value_and_grads(dtypes, softcap, weighted, device) for device in ("cpu", "cuda"))
        for ours, theirs in zip(there, here, strict=True):
            assert (ours - theirs).norm() <= (1e-4 if dtypes[0] == torch.float32 else 1e-2) * theirs.norm()
