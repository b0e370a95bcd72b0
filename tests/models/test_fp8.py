"""Checkpoints with weights in fp8: read as what their scales make of them, and saved without fp8."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from larger_models import OLDER, is_text, random_larger, rename
from safetensors.torch import load_file, save_file
from transformers import Mistral3ForConditionalGeneration
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

import tune.models
from tune.checkpoints import fp8, open_weights, save_model
from tune.errors import CheckpointError
from tune.models.conversion import convert_checkpoint

TOKENS = torch.randint(0, 59, (2, 23), generator=torch.Generator().manual_seed(1))
SCALES = {"one": (), "a list of one": (1,), "a grid": (2, 1)}


def quantize(directory: Path, grid: tuple[int, ...]) -> None:
    """Store the matrices of the text model's blocks in fp8, with a scale of this shape for each."""
    tensors = load_file(directory / "model.safetensors")
    stored = dict(tensors)
    for name, tensor in tensors.items():
        if is_text(name) and ".layers." in name and tensor.dim() == 2:
            scale = torch.rand(grid, generator=torch.Generator().manual_seed(len(name))) * 0.01 + 0.003
            rows, columns = grid if len(grid) == 2 else (1, 1)
            wide = scale.reshape(rows, columns)
            wide = wide.repeat_interleave(tensor.shape[0] // rows, 0)
            wide = wide.repeat_interleave(tensor.shape[1] // columns, 1)
            stored[name] = (tensor / wide).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale.to(torch.bfloat16)
            stored[f"{name.removesuffix('weight')}activation_scale"] = torch.tensor(0.5)
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((directory / "config.json").read_text())
    content["quantization_config"] = {
        "activation_scheme": "static",
        "modules_to_not_convert": ["model.vision_tower", "lm_head"],
        "quant_method": "fp8",
        "weight_block_size": None,
    }
    (directory / "config.json").write_text(json.dumps(content))


@pytest.fixture(params=SCALES)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    directory = tmp_path / "stored"
    random_larger("ministral3").save_pretrained(directory)
    rename(directory, OLDER)
    quantize(directory, SCALES[request.param])
    return directory


def test_values_are_the_reference_s_and_saved_without_fp8(
    stored: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fp8.say_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="tune"):
        model = tune.models.from_checkpoint(stored)
    assert caplog.text.count("holds weights in fp8") == 1
    held = load_file(stored / "model.safetensors")
    source = open_weights(stored)
    for name in [name for name in held if f"{name}_scale_inv" in held]:
        expected = Fp8Dequantize(None)._dequantize_one(held[name], held[f"{name}_scale_inv"])
        assert torch.equal(source.read(name), expected)
    save_model(model, tmp_path / "saved", dtype=torch.bfloat16)
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == {name for name in held if not name.endswith(("_scale_inv", "activation_scale"))}
    assert {saved[name].dtype for name in saved if is_text(name)} == {torch.bfloat16}
    assert all(torch.equal(saved[name], held[name]) for name in saved if not is_text(name))
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    again = Mistral3ForConditionalGeneration.from_pretrained(
        tmp_path / "saved", attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        ours = tune.models.from_checkpoint(tmp_path / "saved")(TOKENS)
        torch.testing.assert_close(ours, again.eval()(input_ids=TOKENS).logits, rtol=1e-5, atol=2e-5)


def test_a_conversion_leaves_no_fp8(tmp_path: Path) -> None:
    directory = tmp_path / "stored"
    random_larger("mistral3").save_pretrained(directory)
    quantize(directory, ())
    report = convert_checkpoint(directory, tmp_path / "plain")
    assert report.num_carried > 0
    assert not report.left_out
    with torch.no_grad():
        before, after = (
            tune.models.from_checkpoint(folder)(TOKENS) for folder in (directory, tmp_path / "plain")
        )
    assert torch.equal(before, after)
    assert {tensor.dtype for tensor in load_file(tmp_path / "plain" / "model.safetensors").values()} <= {
        torch.bfloat16,
        torch.float32,
    }


@pytest.mark.parametrize("grid", [(5, 4), (3, 2, 1), (0, 1)])
def test_scales_that_fit_no_weight_are_named(tmp_path: Path, grid: tuple[int, ...]) -> None:
    weight = torch.ones(6, 8).to(torch.float8_e4m3fn)
    save_file({"a.weight": weight, "a.weight_scale_inv": torch.ones(grid)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.weight_scale_inv is \["):
        open_weights(tmp_path)
