"""Files that claim what they do not hold: refused before memory is taken, and explained."""

from __future__ import annotations

import json
import resource
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tune.models
from tune.checkpoints import find_model_dir, load_into, open_weights, save_meta, save_model
from tune.checkpoints.file_formats import PickleFile, SafetensorsFile
from tune.errors import CheckpointError
from tune.models.llama2 import llama2


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    model = llama2(29, 3, 4, 24, 33, num_kv_heads=2, intermediate_dim=20)
    save_model(model, tmp_path / "model", max_shard_bytes=9000)
    return tmp_path / "model"


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Address space ends 2 GiB above what is in use: who believes a file that claims more runs out of it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**31, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def write_header(path: Path, header: object, length: int | None = None, data: bytes = b"\0" * 64) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(shape: list[int], offsets: tuple[int, int] = (0, 64), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry([2**40])},
        {"a": entry([2**31, 2**31], (0, 2**64 - 1))},
        {"a": entry([2**62, 4])},
        {"a": entry([10**30])},
        {"a": entry([-16])},
        {"a": entry([16], (0, 2**50))},
        {"a": entry([16], (64, 0))},
        {"a": entry([8], (0, 32)), "b": entry([8], (16, 48))},  # overlapping
        {"a": entry([15], (0, 60))},  # a gap at the end
        b"[" * 200_000,
    ],
    ids=range(10),
)
@pytest.mark.usefixtures("little_memory")
def test_a_header_that_claims_too_much_is_refused(tmp_path: Path, header: object) -> None:
    write_header(tmp_path / "model.safetensors", header)
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        open_weights(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 2**30, 2**63, 2**64 - 1])
@pytest.mark.usefixtures("little_memory")
def test_a_header_of_another_length_than_it_says_is_refused(tmp_path: Path, length: int) -> None:
    write_header(tmp_path / "model.safetensors", {"a": entry([16])}, length)
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        open_weights(tmp_path)


def test_one_name_twice_in_a_header_is_refused(tmp_path: Path) -> None:
    twice = b'{"a": %s, "a": %s}' % (
        json.dumps(entry([8], (0, 32))).encode(),
        json.dumps(entry([8], (32, 64))).encode(),
    )
    write_header(tmp_path / "model.safetensors", twice)
    with pytest.raises(CheckpointError):
        open_weights(tmp_path)


@pytest.mark.usefixtures("little_memory")
def test_a_pickle_that_repeats_a_number_endlessly_is_refused(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(2**20, 2**20)
    torch.save({"a": torch.zeros(3), "b": huge}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"b claims 4398046511104 bytes .* and the file holds 4"):
        open_weights(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_model_with_one_bad_shard_is_not_loaded_in_part(model_dir: Path, damage: str) -> None:
    victim = sorted(model_dir.glob("*.safetensors"))[1]
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[: -5 if damage == "cut" else 0])
    with pytest.raises(CheckpointError, match=victim.name):
        tune.models.from_checkpoint(model_dir)


@pytest.mark.parametrize(
    ("dtype", "shown"),
    [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.uint8, "U8"), (torch.bool, "BOOL")],
)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_quantised_weights_are_named_as_such(
    model_dir: Path, tmp_path: Path, dtype: torch.dtype, shown: str, kind: str
) -> None:
    weights = {}
    for file in model_dir.glob("*.safetensors"):
        weights.update(load_file(file))
    for layer in range(3):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        weights[name] = weights[name].to(dtype)
    (tmp_path / "q").mkdir()
    shutil.copy(model_dir / "config.json", tmp_path / "q")
    if kind == "bin":
        torch.save(weights, tmp_path / "q" / "pytorch_model.bin")
        shown = str(dtype)
    else:
        save_file(weights, tmp_path / "q" / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        tune.models.from_checkpoint(tmp_path / "q")
    assert "of an unsupported type (3):" in str(caught.value)
    assert f"model.layers.{{0-2}}.mlp.down_proj.weight: stored as {shown}; only fp64, fp32" in str(
        caught.value
    )


def test_links_that_lead_in_circles_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for look in (find_model_dir, open_weights):
        with pytest.raises(CheckpointError):
            look(tmp_path / "a")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").symlink_to("model.safetensors")
    (tmp_path / "m" / "config.json").symlink_to("config.json")
    for look in (open_weights, tune.models.from_checkpoint):
        with pytest.raises(CheckpointError):
            look(tmp_path / "m")


def test_several_models_of_torchtune_in_one_folder_are_a_choice(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "torchtune_model_0.pt")
    assert list(open_weights(tmp_path)) == ["a"]
    torch.save({"model": {"b": torch.ones(2)}}, tmp_path / "torchtune_model_1.pt")
    with pytest.raises(
        CheckpointError, match=r"holds 2 models \(torchtune_model_0\.pt, torchtune_model_1\.pt\)"
    ):
        open_weights(tmp_path)
    assert list(open_weights(tmp_path / "torchtune_model_1.pt")) == ["b"]


@pytest.mark.parametrize("is_mapped", [True, False])
def test_a_pickle_gives_memory_back_and_keeps_its_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_mapped: bool
) -> None:
    contents = {name: torch.randn(50, number) for number, name in enumerate("abcd", start=3)}
    path = tmp_path / "pytorch_model.bin"
    torch.save(contents, path, _use_new_zipfile_serialization=is_mapped)
    monkeypatch.setattr(PickleFile, "_MAX_RESIDENT_BYTES", 700)
    file = PickleFile(path)
    kept = {name: file.read(name) for name in "abcdabcd"}
    file.release()
    assert all(torch.equal(kept[name], tensor) for name, tensor in contents.items())
    # Another file under the same name, while the first is read.
    torch.save({name: tensor.double() for name, tensor in contents.items()}, tmp_path / "other")
    (tmp_path / "other").replace(path)
    if is_mapped:
        with pytest.raises(CheckpointError, match="changed while it was read; a is not what it was"):
            file.read("a")


def test_a_file_that_comes_and_goes_is_read_or_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3, 2)}, tmp_path / "kept")
    code = f"""
import os
print(flush=True)
while True:
    os.link({str(tmp_path / "kept")!r}, {str(file)!r})
    os.unlink({str(file)!r})
"""
    found: set[str] = set()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        until = time.monotonic() + 0.7
        try:
            while time.monotonic() < until:
                with suppress(CheckpointError):  # and nothing else
                    SafetensorsFile(file).read("a")
                    found.add("read")
                    continue
                found.add("gone")
        finally:
            other.kill()
    assert "gone" in found


@pytest.mark.parametrize("layout", ["safetensors", "consolidated"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_shard_that_goes_while_the_others_are_read(
    model_dir: Path, tmp_path: Path, layout: str, damage: str
) -> None:
    """Half of the weights are in the model by then."""
    model = tune.models.from_checkpoint(model_dir)
    if layout == "consolidated":
        model_dir = tmp_path / "meta"
        save_meta(model, model_dir)
    source = open_weights(model_dir)
    names = list(source)
    files = sorted({info.file for info in source.infos.values()})
    assert len(files) > 2 or layout == "consolidated"
    for name in names[: len(names) // 2]:
        source.read(name)
    for file in files:
        if damage == "gone":
            file.unlink()
        else:  # a new file under the name, as a copy or a download that has begun again
            content = file.read_bytes()
            file.unlink()
            file.write_bytes(content[: len(content) // 2])
    if layout == "consolidated":
        source._file_of[names[0]].release()  # as after every 256 MiB
    reason = "No such file" if damage == "gone" else "cut short"
    with pytest.raises(CheckpointError, match=rf"({'|'.join(file.name for file in files)}).*{reason}"):
        load_into(model, source)
