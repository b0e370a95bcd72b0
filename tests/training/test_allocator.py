"""How torch's memory on a GPU grows is said before the GPU is first used, and never against the user."""

from __future__ import annotations

import pytest
import torch

from tune.utils import get_device


@pytest.mark.parametrize("name", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_segments_grow_unless_the_user_says_how(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    for variable in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(variable, raising=False)
    if name is not None:
        monkeypatch.setenv(name, "max_split_size_mb:64")
    # A GPU that cannot be used: any real call to it would be an error.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", calls.append)
    device = get_device("cuda")
    assert calls == [*(["expandable_segments:True"] if name is None else []), device]
    assert not torch.cuda.is_initialized()
