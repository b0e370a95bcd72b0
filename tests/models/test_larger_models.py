"""Checkpoints of larger models: the text model is read out of them, and what is saved is the larger model again."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from larger_models import LARGER, NEWER, OLDER, PREFIXES, is_text, random_larger, rename
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import tune.models
from tune.checkpoints import load_adapter, load_into, open_weights, save_adapter, save_model
from tune.cli.main import main
from tune.errors import CheckpointError
from tune.hub.upload_files import task_of, upload_files
from tune.models.conversion import convert_checkpoint
from tune.models.llama2 import LLAMA
from tune.models.outer import say_once
from tune.modules import TransformerDecoder
from tune.modules.peft import LoRAConfig, apply_lora, reset_adapters

TOKENS = torch.randint(0, 59, (2, 23), generator=torch.Generator().manual_seed(1))
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


@pytest.fixture(params=LARGER, scope="module")
def reference(request: pytest.FixtureRequest) -> PreTrainedModel:
    return random_larger(request.param)


@pytest.fixture
def whole(reference: PreTrainedModel, tmp_path: Path) -> Path:
    """A checkpoint of the larger model, some of whose other tensors are in types that nothing is trained in."""
    directory = tmp_path / "whole"
    reference.save_pretrained(directory)
    tensors = load_file(directory / "model.safetensors")
    others = [name for name in tensors if not is_text(name)]
    for name, dtype in zip(others, (torch.bfloat16, torch.float64, torch.float16)):
        tensors[name] = tensors[name].to(dtype)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    return directory


def prefixes_of(reference: PreTrainedModel) -> tuple[tuple[str, str], ...]:
    """Return how files of a larger model have named its text model and head, the oldest first."""
    return PREFIXES.get(reference.config.model_type, (OLDER, NEWER))


def raw_tensors(directory: Path) -> dict[str, tuple[torch.dtype, bytes]]:
    """Type and bytes of every tensor in all files of a checkpoint."""
    found = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor: Tensor = file.get_tensor(name)
                found[name] = (tensor.dtype, tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found


def others_of(directory: Path) -> dict[str, tuple[torch.dtype, bytes]]:
    return {name: held for name, held in raw_tensors(directory).items() if not is_text(name)}


def logits_of(kind: type[PreTrainedModel], directory: Path) -> Tensor:
    model, info = kind.from_pretrained(
        directory, attn_implementation="eager", output_loading_info=True, dtype=torch.float32
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=TOKENS).logits
    return logits


@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize("prefixes", [OLDER, NEWER], ids=["older", "newer"])
def test_the_larger_model_is_saved_again(
    reference: PreTrainedModel, whole: Path, tmp_path: Path, prefixes: tuple[str, str], with_head: bool
) -> None:
    if prefixes not in prefixes_of(reference):
        pytest.skip("its files have never been named so")
    rename(whole, prefixes, with_head=with_head)
    model = tune.models.from_checkpoint(whole)
    with torch.no_grad():
        expected = reference(input_ids=TOKENS).logits
        torch.testing.assert_close(model(TOKENS), expected, **TOLERANCE)
        next(model.layers[1].mlp.parameters()).mul_(-1.5)  # as if trained
        trained = model(TOKENS)
    assert not torch.allclose(trained, expected, atol=1e-2)
    save_model(model, tmp_path / "saved", max_shard_bytes=30_000)
    torch.testing.assert_close(logits_of(type(reference), tmp_path / "saved"), trained, **TOLERANCE)
    assert torch.equal(tune.models.from_checkpoint(tmp_path / "saved")(TOKENS), trained)
    assert others_of(whole)
    assert others_of(tmp_path / "saved") == others_of(whole)
    index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())
    held = raw_tensors(tmp_path / "saved")
    assert index["weight_map"].keys() == held.keys()
    assert index["metadata"]["total_size"] == sum(len(content) for _, content in held.values())
    # A tied output matrix that was stored twice is stored once.
    dropped = {prefixes[1] + "weight"} if model.output is None else set()
    assert held.keys() == raw_tensors(whole).keys() - dropped
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (whole, tmp_path / "saved")
    )
    assert after.pop("tie_word_embeddings", None) in (None, model.output is None)
    before.pop("tie_word_embeddings", None)
    assert after == before
    assert (tmp_path / "saved" / "preprocessor_config.json").read_text() == '{"image_mean": [0.5]}'


def test_a_model_from_pickled_files_is_saved_whole(reference: PreTrainedModel, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path / "whole")
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    expected = others_of(tmp_path / "whole")
    torch.save(tensors, tmp_path / "whole" / "pytorch_model.bin")
    (tmp_path / "whole" / "model.safetensors").unlink()
    save_model(tune.models.from_checkpoint(tmp_path / "whole"), tmp_path / "saved")
    assert others_of(tmp_path / "saved") == expected


def test_what_becomes_of_the_other_parts_is_said_once(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tune"):
        say_once.cache_clear()
        for _ in range(2):
            tune.models.auto(str(whole))
    assert caplog.text.count("the text model is used") == 1


def test_a_base_that_goes_away_takes_nothing_along(reference: PreTrainedModel, whole: Path) -> None:
    model = copy.deepcopy(tune.models.from_checkpoint(whole))
    expected = others_of(whole)
    shutil.rmtree(whole)
    save_model(model, whole)
    assert others_of(whole) == expected
    assert (whole / "preprocessor_config.json").exists()


def test_a_base_that_is_written_over_is_noticed(whole: Path, tmp_path: Path) -> None:
    model = tune.models.from_checkpoint(whole)
    with (whole / "model.safetensors").open("r+b") as file:
        file.seek(-8, 2)
        file.write(b"\1" * 8)
    with pytest.raises(CheckpointError, match="written to since"):
        save_model(model, tmp_path / "saved")
    with (whole / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(CheckpointError, match=r"shorter than it was|written to since"):
        save_model(model, tmp_path / "again")
    assert not list((tmp_path / "again").glob("*"))


def test_adapters_are_named_as_the_larger_model_s_modules(
    reference: PreTrainedModel, whole: Path, tmp_path: Path
) -> None:
    rename(whole, prefixes_of(reference)[0])
    model = tune.models.from_checkpoint(whole)
    apply_lora(model, LoRAConfig(rank=3, alpha=7, attn_modules=("q_proj", "v_proj"), apply_to_mlp=True))
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_adapter(model, tmp_path / "adapter", str(whole))
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in names)
    base = type(reference).from_pretrained(whole, attn_implementation="eager", dtype=torch.float32).eval()
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    adapted = {name.rpartition(".lora_A")[0] for name, _ in theirs.named_modules() if name.endswith("lora_A")}
    assert adapted == {name.rpartition(".lora_A")[0] for name in names if "lora_A" in name}
    again = tune.models.from_checkpoint(whole)
    load_adapter(again, tmp_path / "adapter")
    with torch.no_grad():
        logits = theirs(input_ids=TOKENS).logits
        # Adapters as large as their matrices carry the rounding of norms on: ten times what it is without them.
        torch.testing.assert_close(model.eval()(TOKENS), logits, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(again.eval()(TOKENS), logits, rtol=1e-5, atol=1e-4)
    # Merged into the weights, they are the larger model.
    save_model(again, tmp_path / "merged")
    torch.testing.assert_close(logits_of(type(reference), tmp_path / "merged"), logits, rtol=1e-4, atol=1e-4)
    assert others_of(tmp_path / "merged") == others_of(whole)


def test_an_adapter_of_peft_is_read_and_merged(
    reference: PreTrainedModel, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = type(reference).from_pretrained(whole, attn_implementation="eager", dtype=torch.float32).eval()
    targets = r".*language_model.*\.(k_proj|o_proj|up_proj)"
    theirs = get_peft_model(base, LoraConfig(r=5, lora_alpha=11, target_modules=targets)).eval()
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        expected = theirs(input_ids=TOKENS).logits
    theirs.save_pretrained(tmp_path / "adapter")
    model = tune.models.from_checkpoint(whole)
    load_adapter(model, tmp_path / "adapter")
    torch.testing.assert_close(model.eval()(TOKENS), expected, **TOLERANCE)
    to = tmp_path / "merged"
    assert main(["merge", str(tmp_path / "adapter"), "--base", str(whole), "--to", str(to)]) == 0
    torch.testing.assert_close(logits_of(type(reference), to), expected, rtol=1e-4, atol=1e-4)
    assert others_of(to) == others_of(whole)
    assert (to / "preprocessor_config.json").exists()


def test_a_conversion_changes_the_text_alone(reference: PreTrainedModel, whole: Path, tmp_path: Path) -> None:
    rename(whole, prefixes_of(reference)[0])
    report = convert_checkpoint(whole, tmp_path / "half", dtype="bf16", max_shard_bytes=20_000)
    others = others_of(whole)
    assert others_of(tmp_path / "half") == others
    assert report.num_carried == len(others)
    assert not report.left_out
    assert report.num_tensors == len(raw_tensors(tmp_path / "half")) == report.num_exact + report.num_cast
    half = raw_tensors(tmp_path / "half")
    assert {dtype for name, (dtype, _) in half.items() if is_text(name)} == {torch.bfloat16}
    content = json.loads((tmp_path / "half" / "config.json").read_text())
    assert content["architectures"] == [type(reference).__name__]
    assert {content.get("dtype"), content.get("torch_dtype")} - {None} == {"bfloat16"}
    sent = {file.path_in_repo for file in upload_files(tmp_path / "half", None)}
    assert {"config.json", "model.safetensors.index.json", "preprocessor_config.json"} <= sent
    assert task_of(tmp_path / "half") == "image-text-to-text"


@pytest.mark.parametrize(
    ("outer", "inner", "said"),
    [
        ({"touch_config": {"x": 1}}, {}, "`touch_config`"),
        ({"quantization_config": {"quant_method": "gptq"}}, {}, "quantised"),
        ({}, {"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({}, {"model_type": "bert"}, r"`text_config\.model_type` is 'bert'"),
        (
            {},
            {"attention_twist": 3},
            "text_config of config.json cannot be followed:\n.*`attention_twist` is 3",
        ),
        ({"text_config": [1]}, {}, r"`text_config` is \[1\]; it must be an object"),
    ],
)
def test_what_is_not_understood_is_named(
    reference: PreTrainedModel, tmp_path: Path, outer: dict[str, Any], inner: dict[str, Any], said: str
) -> None:
    content = json.loads(reference.config.to_json_string(use_diff=False))
    content["architectures"] = [type(reference).__name__]
    content["text_config"].update(inner)
    (tmp_path / "config.json").write_text(json.dumps({**content, **outer}))
    with pytest.raises(CheckpointError, match=said):
        tune.models.auto(str(tmp_path))


def test_a_text_model_s_configuration_makes_a_text_model(
    reference: PreTrainedModel, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads((whole / "config.json").read_text())
    text = {**content["text_config"], "architectures": None}
    (whole / "config.json").write_text(json.dumps(text))
    with caplog.at_level(logging.WARNING, logger="tune"):
        model = tune.models.from_checkpoint(whole)
    assert "without the" in caplog.text
    save_model(model, tmp_path / "text")
    assert not [
        name for name in raw_tensors(tmp_path / "text") if "vision" in name or "language_model" in name
    ]
    with torch.no_grad():
        expected = reference(input_ids=TOKENS).logits
        torch.testing.assert_close(
            tune.models.from_checkpoint(tmp_path / "text")(TOKENS), expected, **TOLERANCE
        )


def test_tensors_beside_a_text_model_go_along_as_well(tmp_path: Path) -> None:
    family = replace(LLAMA, hf=replace(LLAMA.hf, carried=("mtp.*",)))
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=31, hidden_size=12, intermediate_size=14, num_hidden_layers=2, num_attention_heads=3
        )
    ).save_pretrained(tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    extra = {"mtp.fc.weight": torch.arange(7), "mtp.codes": torch.ones(3, 2).to(torch.float8_e4m3fn)}
    save_file({**tensors, **extra}, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    model = TransformerDecoder(tune.models.auto(str(tmp_path / "base")).config, family)
    load_into(model, open_weights(tmp_path / "base"))
    save_model(model, tmp_path / "saved")
    assert raw_tensors(tmp_path / "saved") == raw_tensors(tmp_path / "base")
    apply_lora(model, LoRAConfig(rank=2, alpha=2))
    reset_adapters(model, torch.float32)
    save_adapter(model, tmp_path / "adapter", "base")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"] == [
        "q_proj",
        "v_proj",
    ]
