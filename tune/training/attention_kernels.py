"""Which of torch's attention kernels training takes first."""

from __future__ import annotations

from contextlib import ExitStack

import torch

__all__ = ["prefer_attention_kernels"]

# What is preferred for the rest of the process: torch takes it back when the context is closed.
_preferred = ExitStack()


def prefer_attention_kernels(device: torch.device) -> None:
    """Let torch take the fastest kernel for plain causal attention on this GPU, for the rest of the process.

    For the process, not around the forward pass: blocks are recomputed and compiled at other times, and must meet the
    same kernel. On Hopper that is cuDNN's, at about twice the rate of FlashAttention-2, except where a run is to be
    deterministic. Elsewhere torch's own order stays.
    """
    _preferred.close()
    if device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        return
    if torch.cuda.get_device_capability(device) == (9, 0):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        others = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        _preferred.enter_context(sdpa_kernel([SDPBackend.CUDNN_ATTENTION, *others], set_priority=True))
