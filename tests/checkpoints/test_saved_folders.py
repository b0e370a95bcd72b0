"""What lies in a saved step is what was saved there, whoever reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tune.checkpoints import find_model_dir, open_weights
from tune.checkpoints.adapter_config import find_adapter_dir
from tune.checkpoints.manifest import write_manifest
from tune.errors import CheckpointError


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.fixture
def step(tmp_path: Path) -> Path:
    step = tmp_path / "step_000007"
    for folder, names in (("model", ("config.json",)), ("adapter", ("adapter_config.json",))):
        (step / folder).mkdir(parents=True)
        for name in names:
            (step / folder / name).write_text("{}\n\n")
        weights = {"weight": nn.Linear(3, 5).weight.detach()}
        name = "model.safetensors" if folder == "model" else "adapter_model.safetensors"
        save_file(weights, step / folder / name)
    write_manifest(step, 7)
    (tmp_path / "latest").symlink_to("step_000007")
    return step


READERS: list[tuple[str, Callable[[Path], Any]]] = [
    ("model/config.json", lambda out: find_model_dir(out)),
    ("model/model.safetensors", lambda out: open_weights(find_model_dir(out / "latest"))),
    ("model/model.safetensors", lambda out: open_weights(out / "step_000007/model/model.safetensors")),
    ("model/model.safetensors", lambda out: open_weights([out / "latest/model/model.safetensors"])),
    ("adapter/adapter_model.safetensors", lambda out: find_adapter_dir(out)),
    ("adapter/adapter_config.json", lambda out: find_adapter_dir(out / "step_000007")),
]


@pytest.mark.parametrize(("name", "read"), READERS)
def test_a_flipped_bit_is_found_whoever_reads(step: Path, name: str, read: Callable[[Path], Any]) -> None:
    read(step.parent)
    flip(step / name)
    with pytest.raises(CheckpointError, match=f"step_000007: the content of {name} has changed .*copy"):
        read(step.parent)
    # Whatever is not read does not matter.
    other = "adapter/adapter_config.json" if name.startswith("model") else "model/config.json"
    flip(step / name)
    flip(step / other)
    read(step.parent)


def test_a_copy_of_the_model_may_be_changed(step: Path, tmp_path: Path) -> None:
    shutil.copytree(step / "model", tmp_path / "mine")
    flip(tmp_path / "mine" / "config.json")
    assert find_model_dir(tmp_path / "mine") == tmp_path / "mine"
    assert open_weights(tmp_path / "mine").read("weight").dtype == torch.float32
