"""gpt-oss beyond the table: experts in MXFP4, what its configurations may say, 4 bits, long answers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from published_gpt_oss import PUBLISHED
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GptOssConfig, PreTrainedModel
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import tune.models
from tune.checkpoints import fp8, open_weights, save_model
from tune.checkpoints.mxfp4 import dequantize_mxfp4
from tune.errors import CheckpointError
from tune.generation import generate
from tune.models.conversion import convert_checkpoint
from tune.models.gpt_oss import GPT_OSS, gpt_oss_20b
from tune.modules.peft import FrozenExperts, LoRAConfig, apply_lora

# A group has 32 numbers.
SIZES = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "sliding_window": 9,
    "max_position_embeddings": 300,
    "pad_token_id": None,
}
TOKENS = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(1))
NAME = "model.layers.1.mlp.experts.gate_up_proj"


def stored(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


def put(directory: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose experts have values that MXFP4 can hold."""
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(GptOssConfig(**SIZES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        for name, parameter in model.named_parameters():
            if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                parameter.copy_(convert_moe_packed_tensors(*random_mxfp4(name, parameter)))
    directory = tmp_path_factory.mktemp("plain")
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def packed(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, as published ones are."""
    directory = tmp_path_factory.mktemp("packed")
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored(plain).items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = random_mxfp4(name, tensor)
        else:
            tensors[name] = tensor.bfloat16()
    put(directory, tensors)
    content = json.loads((plain / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (directory / "config.json").write_text(json.dumps(content))
    return directory


def random_mxfp4(name: str, like: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks and scales of a weight [E, columns, rows], the same for a name."""
    generator = torch.Generator().manual_seed(len(name) + int(name.split(".")[2]))
    num_experts, columns, rows = like.shape
    shape = (num_experts, rows, columns // 32)
    blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
    return blocks, torch.randint(121, 126, shape, generator=generator, dtype=torch.uint8)


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        out = model.eval()(TOKENS)
    return out if isinstance(out, Tensor) else out.logits


def test_every_number_of_mxfp4_is_the_reference_s() -> None:
    scales = torch.arange(256).clamp(max=254).to(torch.uint8).view(2, 64, 2)  # 255 is no number
    blocks = torch.arange(256 * 16).view(2, 64, 2, 16).remainder(251).to(torch.uint8)
    blocks[0, 0, 0] = torch.arange(0, 256, 16)  # all that a half of a byte can be
    blocks[0, 1, 1] = torch.arange(16)
    ours, theirs = dequantize_mxfp4(blocks, scales), convert_moe_packed_tensors(blocks, scales)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert ours.shape == (2, 64, 64)
    assert torch.equal(ours.contiguous().view(torch.int16), theirs.view(torch.int16))


def test_mxfp4_is_read_said_and_saved_as_bf16(
    plain: Path, packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fp8.say_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="tune"):
        model = tune.models.from_checkpoint(packed, dtype=torch.bfloat16)
    assert caplog.text.count("holds weights in MXFP4: they are read as bf16") == 1
    held, source = stored(packed), open_weights(packed)
    assert torch.equal(
        source.read(NAME), convert_moe_packed_tensors(held[f"{NAME}_blocks"], held[f"{NAME}_scales"])
    )
    # As the reference reads the same files, where it has no kernels for them.
    theirs = AutoModelForCausalLM.from_pretrained(packed, dtype=torch.bfloat16)
    known = dict(theirs.named_parameters())
    assert torch.equal(known[NAME], source.read(NAME))

    save_model(model, tmp_path / "saved")
    convert_checkpoint(packed, tmp_path / "converted", dtype="bf16")
    for folder in ("saved", "converted"):
        assert "quantization_config" not in json.loads((tmp_path / folder / "config.json").read_text())
        saved = stored(tmp_path / folder)
        assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
        expected = {name: tensor.bfloat16() for name, tensor in stored(plain).items()}
        assert saved.keys() == expected.keys()
        assert all(torch.equal(saved[name], expected[name]) for name in saved)
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    again = tune.models.from_checkpoint(tmp_path / "saved", dtype=torch.float32)
    torch.testing.assert_close(logits_of(again), logits_of(wide), rtol=1e-5, atol=5e-5)


def test_damaged_mxfp4_is_refused(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((packed / "config.json").read_text())
    tensors = stored(packed)
    blocks, scales = tensors[f"{NAME}_blocks"], tensors[f"{NAME}_scales"]
    no_number = scales.clone()
    no_number[3, 2, 1] = 255
    changes: list[tuple[dict[str, Tensor | None], str]] = [
        (
            {f"{NAME}_scales": scales[:, :, :1].contiguous()},
            r"gate_up_proj_blocks is \[5, 192, 2, 16\] U8 and",
        ),
        ({f"{NAME}_blocks": blocks[..., :15].contiguous()}, r"read as MXFP4 are bytes"),
        ({f"{NAME}_blocks": blocks.flatten(2)}, r"read as MXFP4 are bytes"),
        ({f"{NAME}_scales": scales.float()}, r"torch.float32: read as MXFP4 are bytes \(U8\)"),
        ({NAME: torch.ones(5, 64, 192)}, "a second time as it is"),
        ({f"{NAME}_scales": None}, "missing from the checkpoint"),
        ({f"{NAME}_blocks": blocks[:4], f"{NAME}_scales": scales[:4]}, r"\[4, 64, 192\] in the file"),
        ({f"{NAME}_scales": no_number}, "NaN|infinit"),
    ]
    for change, fact in changes:
        put(tmp_path, {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None})
        with pytest.raises(CheckpointError, match=fact):
            tune.models.from_checkpoint(tmp_path)
    whole = (packed / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        tune.models.from_checkpoint(tmp_path)


def test_200_tokens_are_those_of_the_reference(plain: Path) -> None:
    reference: PreTrainedModel = AutoModelForCausalLM.from_pretrained(plain).eval()
    reference.generation_config.eos_token_id = None
    prompt = torch.randint(0, 61, (1, 40), generator=torch.Generator().manual_seed(2))
    theirs = reference.generate(prompt, max_new_tokens=200, do_sample=False, pad_token_id=0)[0, 40:]
    ours = generate(tune.models.from_checkpoint(plain), prompt[0].tolist(), max_new_tokens=200)
    assert ours == theirs.tolist()


def test_experts_in_4_bits_keep_their_biases(packed: Path) -> None:
    model = tune.models.from_checkpoint(packed, dtype=torch.float32)
    expected = logits_of(model)
    apply_lora(model, LoRAConfig(rank=2, attn_modules=("q_proj",), quantize_base=True))
    experts = model.layers[2].mlp.experts
    assert isinstance(experts.w1, FrozenExperts)
    assert experts.w1.nf4 is not None
    assert type(model.layers[2].mlp.router) is torch.nn.Linear
    found = logits_of(model)
    with torch.no_grad():
        experts.w1.bias[1] += 3.0
    assert 0.01 < (found - expected).std() / expected.std() < 1  # so small a model is rounded coarsely
    assert not torch.allclose(logits_of(model), found, atol=1e-2)
    with torch.device("meta"):
        unfilled = tune.models.auto(str(packed))
        apply_lora(unfilled, LoRAConfig(rank=2, attn_modules=("q_proj",), quantize_base=True))
    tune.checkpoints.load_into(unfilled, open_weights(packed), dtype=torch.float32)
    tune.modules.peft.reset_adapters(unfilled)
    assert torch.equal(logits_of(unfilled), found)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"experts_per_token": 2}, "`experts_per_token` is 2"),
        ({"num_experts": 31}, "`num_experts` is 31"),
        ({"num_local_experts": 10**6}, "num_layers 24 times num_experts 1000000 is more than 100000"),
        ({"rope_scaling": False}, "`rope_scaling` is false; it must be an object"),
        ({"initial_context_length": 8192}, "`initial_context_length` is 8192"),
        ({"swiglu_limit": -1.0}, "the gate's limit is -1.0; it must be above 0"),
        ({"swiglu_alpha": "steep"}, "`swiglu_alpha` is .*steep"),
        ({"hidden_act": "gelu"}, "`hidden_act` is"),
        ({"layer_types": ["full_attention"]}, "`layer_types` is .* a list of 24 entries"),
        ({"sliding_window": None}, "sliding_layers needs a sliding_window"),
        ({"num_local_experts": 3}, "experts_per_token is 4; it must be at least 1 and at most num_experts 3"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised \(awq\)"),
        ({"sink_decay": 3}, "`sink_decay` is 3"),
    ],
)
def test_what_is_not_understood_is_named(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**PUBLISHED["gpt_oss_20b"], **changes}))
    with pytest.raises(CheckpointError, match=says):
        tune.models.auto(str(tmp_path))


def test_what_a_configuration_leaves_out_is_as_in_the_reference(tmp_path: Path) -> None:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    content = {name: SIZES[name] for name in names} | {"num_attention_heads": 24}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_oss", **content}))
    with torch.device("meta"):
        ours = tune.models.auto(str(tmp_path))
        theirs = AutoModelForCausalLM.from_config(GptOssConfig(**content))
    assert ours.config.num_parameters() == sum(parameter.numel() for parameter in theirs.parameters())
    published = gpt_oss_20b.config
    assert ours.config.rope_scaling == published.rope_scaling
    assert ours.config.rope_base == published.rope_base == theirs.config.rope_parameters["rope_theta"]
    assert (ours.config.sliding_window, ours.config.sliding_layers) == (128, (0, 2))
    assert ours.config.moe is not None
    assert ours.config.moe.clamped == published.moe.clamped


@pytest.mark.parametrize("changes", [{"rope_parameters": {}}, {"rope_scaling": {}}, {"rope_theta": 500.0}])
def test_positions_half_left_out_are_as_in_the_reference(changes: dict[str, Any]) -> None:
    ours = GPT_OSS.read_hf_config({**SIZES, **changes})
    theirs = GptOssConfig(**SIZES, **changes).rope_parameters
    assert ours.rope_base == theirs["rope_theta"]
    assert (ours.rope_scaling is None) == (theirs["rope_type"] == "default")
