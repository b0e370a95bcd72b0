"""Weight files of a stranger, through the command line: one error each, in little memory, or a model that is right."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tune.checkpoints import save_model
from tune.checkpoints.finite import count_nonfinite
from tune.cli.main import main
from tune.errors import CheckpointError
from tune.models import from_checkpoint
from tune.models.llama2 import llama2

MATRIX = "model.layers.0.self_attn.q_proj.weight"
Weights = dict[Any, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(llama2(29, 2, 4, 24, 33, num_kv_heads=2, intermediate_dim=20), tmp_path / "model")
    return tmp_path / "model"


def pickled(folder: Path, change: Callable[[Weights], object], **options: Any) -> Path:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    change(weights)
    torch.save(weights, folder / "pytorch_model.bin", **options)
    return folder / "pytorch_model.bin"


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["convert-ckpt", str(folder), str(folder.parent / "converted")]) == 1
    assert not (folder.parent / "converted").exists()
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert len(error) < 9000
    return error


def test_compressed_archives_say_their_size_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = pickled(folder, lambda weights: weights.update(bomb=torch.zeros(2**22)))
    packed = io.BytesIO()
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        total = sum(entry.file_size for entry in source.infolist())
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    plain.write_bytes(packed.getvalue())
    error = refused(folder, capsys)
    assert f"({len(packed.getvalue())} bytes)" in error
    assert f"unpacks to {total} bytes" in error


def test_entries_that_lie_in_one_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = pickled(folder, lambda weights: None)
    content = bytearray(file.read_bytes())
    first = content.index(b"PK\x01\x02")
    second = content.index(b"PK\x01\x02", first + 4)
    content[second + 42 : second + 46] = content[first + 42 : first + 46]  # the offset of its local header
    file.write_bytes(content)
    assert "lie in one another" in refused(folder, capsys)


def test_numbers_that_many_tensors_share(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    room = torch.zeros(2**20)
    file = pickled(folder, lambda weights: weights.update({f"x{i}": room.view(1, -1) for i in range(9)}))
    error = refused(folder, capsys)
    assert f"the file has {file.stat().st_size}" in error
    assert "share their numbers" in error


def test_a_bytearray_is_no_weight(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pickled(folder, lambda weights: weights.update(room=bytearray(9)))
    assert "bytearray" in refused(folder, capsys)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.empty(24, 24, device="meta"), "meta device"),
        (torch.eye(24).to_sparse(), "sparse_coo"),
        (torch.eye(24).to_sparse_csr(), "sparse_csr"),
        (torch.quantize_per_tensor(torch.eye(24), 0.1, 0, torch.qint8), "quantised torch.qint8"),
        (torch.eye(24, dtype=torch.complex64), "complex64"),
        (torch.eye(24).to(torch.float8_e5m2), "float8_e5m2"),
        (torch.eye(24, dtype=torch.int64), "int64"),
    ],
    ids=["meta", "coo", "csr", "quantised", "complex", "float8", "int"],
)
def test_tensors_of_other_kinds_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str], tensor: torch.Tensor, words: str, is_zip: bool
) -> None:
    pickled(folder, lambda weights: weights.update({MATRIX: tensor}), _use_new_zipfile_serialization=is_zip)
    error = refused(folder, capsys)
    if words == "float8_e5m2" and not is_zip:  # which torch itself cannot read in the old form
        assert "cannot be read as weights" in error
        return
    assert MATRIX in error
    assert words in error


@pytest.mark.parametrize(
    "tensor",
    [torch.nn.Parameter(torch.eye(24)), torch._neg_view(-torch.eye(24)), torch.eye(24, requires_grad=True)],
    ids=["parameter", "negative", "grad"],
)
def test_tensors_in_odd_clothes_are_read(folder: Path, tensor: torch.Tensor) -> None:
    pickled(folder, lambda weights: weights.update({MATRIX: tensor}))
    assert main(["convert-ckpt", str(folder), str(folder.parent / "converted")]) == 0
    assert torch.equal(load_file(folder.parent / "converted" / "model.safetensors")[MATRIX], torch.eye(24))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers(folder: Path, capsys: pytest.CaptureFixture[str], value: float) -> None:
    pickled(folder, lambda weights: weights[MATRIX][1].fill_(value))
    with pytest.raises(CheckpointError, match=r"self_attn\.q_proj\.weight \(24 of 576\)"):
        from_checkpoint(folder)
    assert main(["convert-ckpt", str(folder), str(folder.parent / "converted")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "values that are NaN or infinite" in shown
    assert "(24 of 576)" in shown


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_counting_what_is_not_finite(dtype: torch.dtype) -> None:
    values = torch.randn(7, 5).to(dtype)
    assert count_nonfinite(values) == 0 == count_nonfinite(torch.empty(0, dtype=dtype))
    values[2, 3], values[6, 0], values[0, 1] = float("nan"), float("inf"), float("-inf")
    assert count_nonfinite(values) == 3


def test_a_header_of_too_many_tensors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = b'"n%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
    header = b"{" + b"".join(entry % number for number in range(250_000))[:-1] + b"}"
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "holds 250000 tensors; 200000 are read at most" in refused(folder, capsys)
    header += b" " * 2**24
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert f"take {len(header)} bytes; {2**24} are read at most" in refused(folder, capsys)


@pytest.mark.parametrize(
    "name", ["../m.safetensors", "/dev/zero", "..", "", "x" * 5000, "a\0b", "\udfff", "\x1b]0;x\x07"]
)
def test_an_index_that_names_odd_files(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "\x1b" not in refused(folder, capsys)


def test_an_index_of_too_many_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").unlink()
    places = {f"n{number}": f"m{number}.safetensors" for number in range(20_000)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert "names 20000 files of weights; 10000 are read at most" in refused(folder, capsys)


def test_a_thousand_unknown_tensors_are_a_short_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled(folder, lambda weights: weights.update({f"n{i}q": torch.eye(2) for i in range(1000)}))
    error = refused(folder, capsys)
    assert "unknown to the model (1000)" in error
    assert "... and 960 more" in error
