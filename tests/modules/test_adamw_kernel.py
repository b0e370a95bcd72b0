"""The fused step for GPUs: in Triton's interpreter where Triton is installed, and on a GPU where there is one."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

BF16 = torch.bfloat16


def compare_with_fp32(device: str) -> None:
    from tune.modules.kernels.adamw_triton import step_rounded_
    from tune.modules.optim.adamw import _Settings

    torch.manual_seed(0)
    settings = _Settings(1e-3, 0.9, 0.999, 0.01, 1e-8)
    start = [torch.randn(1500), torch.randn(1500), 0.1 * torch.randn(1500), torch.rand(1500)]
    for dtype, num_draws, within in ((torch.float32, 1, 1e-5), (BF16, 20, 5 / (2 * 20**0.5))):
        parts = [part.to(dtype).to(device) for part in start]
        weight = nn.Parameter(parts[0].float().clone())
        weight.grad = parts[1].float()
        optimizer = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.01)
        state = {"exp_avg": parts[2].float().clone(), "exp_avg_sq": parts[3].float().clone()}
        optimizer.state[weight] = {"step": torch.tensor(4.0), **state}
        optimizer.step()
        exact = [weight.detach(), *(optimizer.state[weight][key] for key in ("exp_avg", "exp_avg_sq"))]
        drawn: list[list[Tensor]] = []
        for seed in range(num_draws):
            stepped = [part.clone() for part in parts]
            step_rounded_(stepped, 5, seed * 0x1234567890ABCDE, 2**33, settings)
            drawn.append([stepped[place].float() for place in (0, 2, 3)])
        for tensors, wanted in zip(zip(*drawn, strict=True), exact, strict=True):
            unit = wanted.abs() * 2**-7 + 1e-6 if dtype == BF16 else wanted.abs() + 1e-3
            assert ((torch.stack(tensors).mean(0) - wanted).abs() / unit).max() < within
    # What is no number stays none, whatever its bits are: those that a GPU makes are all ones.
    parts = [torch.ones(70, dtype=BF16, device=device) for _ in range(4)]
    parts[3] = torch.full((70,), 2**31 - 1, dtype=torch.int32, device=device).view(torch.float32)
    step_rounded_(parts, 1, 3, 0, settings)
    assert parts[0].isnan().all()


def test_it_steps_as_fp32_does_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("the kernel is compiled here, see below")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert os.environ["TRITON_INTERPRET"]  # read when the kernel is defined
    pytest.importorskip("triton")
    compare_with_fp32("cpu")


@pytest.mark.gpu
def test_on_a_gpu_too() -> None:
    compare_with_fp32("cuda")
