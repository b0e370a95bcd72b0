"""Files are written one tensor at a time, whole or not at all, and are what other programs write."""

from __future__ import annotations

import json
import stat
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tune.checkpoints import same_bits
from tune.checkpoints.mapping import LayoutTensor, tensors_in_layout
from tune.checkpoints.writers import write_pickle, write_safetensors, write_shards
from tune.errors import CheckpointError
from tune.models.llama2 import LLAMA
from tune.modules import DecoderConfig, WeightRule

CONFIG = DecoderConfig(
    vocab_size=7,
    num_layers=2,
    num_heads=3,
    num_kv_heads=1,
    embed_dim=12,
    head_dim=4,
    intermediate_dim=10,
    max_seq_len=9,
)


class Counted:
    """Weights that are made when they are asked for, and counted while they live."""

    def __init__(self, tensors: dict[str, Tensor], fail_at: str = "") -> None:
        self._tensors = tensors
        self._fail_at = fail_at
        self._alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.most_alive = 0
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def read(self, name: str) -> Tensor:
        if name == self._fail_at:
            raise CheckpointError(f"{name} cannot be read")
        tensor = self._tensors[name].clone()
        self._alive.add(tensor)
        self.most_alive = max(self.most_alive, len(self._alive))
        return tensor


def make_tensors(weights: Counted) -> list[LayoutTensor]:
    return [
        LayoutTensor(f"their.{name}", shape, weights.dtype(name), (WeightRule(name, name),), weights, CONFIG)
        for name, shape in weights.shapes.items()
    ]


@pytest.fixture
def contents() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(3, 5, generator=generator).to(torch.bfloat16),
        "b": torch.randn(7, generator=generator),
        "c": torch.randn(2, 3, 4, generator=generator, dtype=torch.float64),
        "d": torch.randn(11, 2, generator=generator).half(),
        "e": torch.tensor(2.5),
        "f": torch.randn(4, 6, generator=generator).t(),  # not contiguous
    }


@pytest.mark.parametrize("kind", ["safetensors", "pickle", "shards"])
def test_values_come_back_and_only_one_tensor_lives_at_a_time(
    tmp_path: Path, contents: dict[str, Tensor], kind: str
) -> None:
    weights = Counted(contents)
    seen: list[int] = []
    if kind == "shards":
        write_shards(tmp_path, make_tensors(weights), 150, seen.append)
        places = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
        assert len(set(places.values())) > 2
        found = {name: load_file(tmp_path / file)[name] for name, file in places.items()}
    elif kind == "safetensors":
        write_safetensors(tmp_path / "x.safetensors", make_tensors(weights), seen.append)
        found = load_file(tmp_path / "x.safetensors")
        with safe_open(tmp_path / "x.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt"}
    else:
        write_pickle(tmp_path / "x.pth", make_tensors(weights), seen.append)
        found = torch.load(tmp_path / "x.pth", weights_only=True)
    assert {name.removeprefix("their.") for name in found} == set(contents)
    assert all(same_bits(found[f"their.{name}"], tensor) for name, tensor in contents.items())
    assert sum(seen) == sum(tensor.nbytes for tensor in contents.values())
    assert weights.most_alive <= 2  # the last one is let go when the next has come


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_a_file_keeps_what_it_held_until_the_new_one_is_whole(
    tmp_path: Path, contents: dict[str, Tensor], kind: str
) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    write = write_safetensors if kind == "safetensors" else write_pickle
    with pytest.raises(CheckpointError, match="c cannot be read"):
        write(path, make_tensors(Counted(contents, fail_at="c")))
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    write(path, make_tensors(Counted(contents)))
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444  # others may read it, as the umask has it


def test_every_tensor_starts_at_a_multiple_of_its_numbers_size(
    tmp_path: Path, contents: dict[str, Tensor]
) -> None:
    write_safetensors(tmp_path / "x", make_tensors(Counted(contents)))
    raw = (tmp_path / "x").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert (8 + length) % 8 == 0
    sizes = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    assert all(entry["data_offsets"][0] % sizes[entry["dtype"]] == 0 for entry in entries)


def test_metadata_is_written_in_its_order(tmp_path: Path, contents: dict[str, Tensor]) -> None:
    """Equal runs leave equal files, whatever order the keys would have in a hash table."""
    metadata = {"zebra": "1", "apple": "2", "mango": "3"}
    write_safetensors(tmp_path / "x", make_tensors(Counted(contents)), metadata=metadata)
    with safe_open(tmp_path / "x", framework="pt") as file:
        assert file.metadata() == {"format": "pt", **metadata}
    raw = (tmp_path / "x").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert list(header["__metadata__"]) == ["format", *metadata]


def test_a_narrower_dtype_that_loses_a_value_is_an_error() -> None:
    def cast(value: float, dtype: torch.dtype) -> Tensor:
        weights = Counted({"a": torch.tensor([1.0, value])})
        return LayoutTensor("a", (2,), dtype, (WeightRule("a", "a"),), weights, CONFIG).read()

    assert cast(6e4, torch.float16)[1] == 6e4
    assert cast(float("inf"), torch.float16)[1] == float("inf")
    assert cast(float("nan"), torch.float16)[1].isnan()
    with pytest.raises(CheckpointError, match=r"a holds values up to 7e\+04, and float16 ends at 6\.55e\+04"):
        cast(-7e4, torch.float16)
    with pytest.raises(CheckpointError, match="bfloat16 ends at"):
        cast(torch.finfo(torch.float32).max, torch.bfloat16)
    assert cast(1e38, torch.bfloat16)[1].isfinite()


def test_a_layout_that_lacks_a_parameter_says_which() -> None:
    shapes = {"tok_embeddings.weight": (7, 12), "layers.0.x.bias": (3,), "layers.1.x.bias": (3,)}
    weights = Counted({name: torch.zeros(shape) for name, shape in shapes.items()})
    with pytest.raises(
        CheckpointError, match=r"Hugging Face layout has no place for layers\.N\.x\.bias of this"
    ):
        tensors_in_layout(weights, LLAMA.hf, CONFIG)
