"""Weight files: which are found, and what is said of broken ones."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tune.checkpoints import WeightSource, open_weights
from tune.errors import CheckpointError

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(5, dtype=torch.bfloat16)}


def write_indexed(directory: Path) -> Path:
    save_file({"a.weight": TENSORS["a.weight"]}, directory / "model-00001-of-00002.safetensors")
    save_file({"b.weight": TENSORS["b.weight"]}, directory / "model-00002-of-00002.safetensors")
    places = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate(TENSORS, start=1)}
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    return index


def check_content(source: WeightSource) -> None:
    assert dict(source.shapes) == {"a.weight": (2, 3), "b.weight": (5,)}
    assert source.infos["b.weight"].dtype == torch.bfloat16
    assert all(torch.equal(source.read(name), value) for name, value in TENSORS.items())


@pytest.mark.parametrize(
    "layout", ["single", "indexed", "numbered", "bin", "old-bin", "meta", "file", "files"]
)
def test_every_layout_is_found(tmp_path: Path, layout: str) -> None:
    location: Path | list[Path] = tmp_path
    if layout in ("single", "file"):
        save_file(TENSORS, tmp_path / "model.safetensors")
        location = tmp_path / "model.safetensors" if layout == "file" else tmp_path
    elif layout in ("indexed", "numbered", "files"):
        index = write_indexed(tmp_path)
        if layout != "indexed":
            index.unlink()
        if layout == "files":
            location = sorted(tmp_path.glob("*.safetensors"))
    elif layout == "meta":
        torch.save(TENSORS, tmp_path / "consolidated.00.pth")
    else:
        torch.save(TENSORS, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=layout == "bin")
    check_content(open_weights(location))


def test_weights_beside_an_optimizer_in_one_file_are_found(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "optimizer": {"lr": 0.1}}, tmp_path / "x.pt")
    check_content(open_weights(tmp_path / "x.pt"))


def test_other_weight_files_beside_the_model_are_left_alone(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    save_file({"c": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    torch.save({"d": torch.zeros(1)}, tmp_path / "consolidated.00.pth")
    check_content(open_weights(tmp_path))


def test_missing_parts_are_all_named(tmp_path: Path) -> None:
    write_indexed(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 weight files are missing: model-00002-of-00002"):
        open_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="holds 1 of the 00002 parts"):
        open_weights(tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"1 of 1 weight files are missing: gone.* holds model-00001-of-00002.safetensors:",
    ):
        open_weights([tmp_path / "gone.safetensors"])


def test_an_index_that_is_wrong_is_explained(tmp_path: Path) -> None:
    index = write_indexed(tmp_path)
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": places | {"c": places["a.weight"]}}))
    with pytest.raises(CheckpointError, match="not where the index says: c"):
        open_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": places | {"c": "../../etc/passwd"}}))
    with pytest.raises(CheckpointError, match="outside its directory"):
        open_weights(tmp_path)
    for content in ("{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "{"):
        index.write_text(content)
        with pytest.raises(CheckpointError, match=r"index\.json"):
            open_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "n" * 5000}}))
    with pytest.raises(CheckpointError, match="that no file can be called"):
        open_weights(tmp_path)


def test_an_index_knows_scales_too(tmp_path: Path) -> None:
    shards = {
        "1.safetensors": {
            "a.weight": torch.ones(6, 4).to(torch.float8_e4m3fn),
            "b_blocks": torch.full((2, 3, 1, 16), 0x22, dtype=torch.uint8),
        },
        "2.safetensors": {
            "a.weight_scale_inv": torch.tensor(0.5),
            "b_scales": torch.full((2, 3, 1), 128, dtype=torch.uint8),
        },
    }
    for file, tensors in shards.items():
        save_file(tensors, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    places = {name: file for file, tensors in shards.items() for name in tensors}
    index.write_text(json.dumps({"weight_map": places}))
    source = open_weights(tmp_path)
    assert torch.equal(source.read("a.weight"), torch.full((6, 4), 0.5, dtype=torch.bfloat16))
    assert torch.equal(source.read("b"), torch.full((2, 32, 3), 2.0, dtype=torch.bfloat16))
    index.write_text(json.dumps({"weight_map": places | {"b_scales": "1.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"not where the index says: b_scales"):
        open_weights(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    save_file(TENSORS, tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError, match="stands in both"):
        open_weights([tmp_path / "x.safetensors", tmp_path / "y.safetensors"])


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "consolidated.00.pth"])
@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "json", "head"])
def test_damaged_files_are_explained(tmp_path: Path, file: str, damage: str) -> None:
    path = tmp_path / file
    if path.suffix == ".safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path)
    whole = path.read_bytes()
    damaged = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "garbage": bytes(range(256)) * 9,
        "json": b'{"version": "https://git-lfs.github.com/spec/v1"}',
        "head": b"\xff" * 16 + whole[16:],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(CheckpointError, match="download or copy it again"):
        open_weights(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=150)
@given(data=st.data(), kind=st.sampled_from(["model.safetensors", "zip.bin", "old.bin"]))
def test_no_damage_yields_anything_but_a_checkpoint_error(
    tmp_path: Path, data: st.DataObject, kind: str
) -> None:
    path = tmp_path / kind
    if kind == "model.safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=kind == "zip.bin")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        source = open_weights(path)
        for name in source:
            source.read(name)
    except CheckpointError:
        pass


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("the pickle ran",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_is_more_than_weights_is_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # torch words its refusal of the last one differently, and advises to run it.
    for name, content in (("x.bin", {"a": Payload()}), ("y.pth", Payload()), ("w.bin", {"a": os.system})):
        torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match="could run code"):
            open_weights(tmp_path / name)
    (tmp_path / "z.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(CheckpointError):
        open_weights(tmp_path / "z.bin")
    assert "the pickle ran" not in capsys.readouterr().out


def test_pickles_of_other_things_are_explained(tmp_path: Path) -> None:
    torch.save({"state": TENSORS, "step": 3}, tmp_path / "nested.pt")
    with pytest.raises(CheckpointError, match="more than tensors: state, step"):
        open_weights(tmp_path / "nested.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        open_weights(tmp_path / "list.pt")


def test_places_without_weights_are_explained(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match="no weights were found"):
        open_weights(tmp_path)
    with pytest.raises(CheckpointError, match="is no weight file"):
        open_weights(tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match="no directory or file"):
        open_weights(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="empty"):
        open_weights([])
