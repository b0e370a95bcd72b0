"""Files of Gemma, Phi, OLMo 2 and the mixtures in every dress: old and new fields, torchtune's names, refusals."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from published_configs import PUBLISHED
from torch import Tensor
from transformers import AutoConfig

import tune.models
from tune.checkpoints import load_into, open_weights, save_model
from tune.errors import CheckpointError
from tune.models.loading import read_model_config
from tune.modules import DecoderConfig, LongRopeScaling, TransformerDecoder

ONE_OF_EACH = {
    "gemma": "gemma_2b",
    "gemma2": "gemma2_2b",
    "gemma3": "gemma3_1b",
    "phi3": "phi4_mini",
    "olmo2": "olmo2_1b",
    "mixtral": "mixtral_8x7b",
    "qwen3_moe": "qwen3_30b_a3b",
}


def read(tmp_path: Path, content: dict[str, Any]) -> DecoderConfig:
    (tmp_path / "config.json").write_text(json.dumps(content))
    return read_model_config(tmp_path)[1]


def model_of(tmp_path: Path, case: str) -> TransformerDecoder:
    torch.manual_seed(2)
    config = CASES[case]()
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict()}))
    model = tune.models.auto(str(tmp_path))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_older_and_newer_files_say_the_same(name: str, tmp_path: Path) -> None:
    """transformers reads the published file and writes it as its newest version does; we read both alike."""
    config = read(tmp_path, PUBLISHED[name])
    again = AutoConfig.from_pretrained(tmp_path)
    newer = json.loads(again.to_json_string(use_diff=False))
    newer["architectures"] = PUBLISHED[name]["architectures"]
    assert "rope_parameters" in newer.get("text_config", newer)
    assert read(tmp_path, newer) == config


@pytest.mark.parametrize("case", CASES)
def test_a_file_as_transformers_holds_it_in_memory_is_read(case: str, tmp_path: Path) -> None:
    assert model_of(tmp_path, case).config.vocab_size == 61


def in_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Rows 0, h/2, 1, h/2 + 1, ... of each head: what turns together stands together."""
    order = [row for index in range(head_dim // 2) for row in (index, index + head_dim // 2)]
    return torch.cat([head[order] for head in weight.split(head_dim)])


TORCHTUNE_NORMS = {"sa_post_norm": "sa_scale", "mlp_post_norm": "mlp_norm", "mlp_norm": "mlp_scale"}


def torchtune_name(name: str, case: str) -> str:
    if case == "gemma2":
        for ours, theirs in TORCHTUNE_NORMS.items():
            if f".{ours}." in name:
                return name.replace(ours, theirs)
    return "norm.rms_norm.scale" if name == "norm.scale" and case == "gemma2" else name


@pytest.mark.parametrize("case", ["gemma", "gemma2", "phi3-window", "phi4"])
def test_torchtunes_own_files_are_read(case: str, tmp_path: Path) -> None:
    model = model_of(tmp_path, case)
    weights = {}
    for name, parameter in model.named_parameters():
        is_turned = case.startswith("gemma") and name.endswith(("q_proj.weight", "k_proj.weight"))
        tensor = in_pairs(parameter.detach(), model.config.head_dim) if is_turned else parameter.detach()
        weights[torchtune_name(name, case)] = tensor
    torch.save(weights, tmp_path / "model.pt")
    other = TransformerDecoder(model.config, model.family)
    load_into(other, open_weights([tmp_path / "model.pt"]))
    for name, parameter in model.named_parameters():
        assert torch.equal(other.get_parameter(name), parameter), name


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("gemma", {"hidden_act": "relu"}, '`hidden_act` is "relu"'),
        ("gemma", {"hidden_activation": "gelu"}, '`hidden_activation` is "gelu"'),
        ("gemma", {"use_bidirectional_attention": True}, "`use_bidirectional_attention` is true"),
        ("gemma", {"sliding_window": 64}, "`sliding_window` is 64"),
        ("gemma", {"num_key_value_heads": 3}, "not a multiple of num_kv_heads 3"),
        ("gemma2", {"layer_types": ["full_attention"] * 3}, "`layer_types` is"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 26}, "`layer_types` is"),
        ("gemma2", {"attn_logit_softcapping": -1.0}, "attn_softcap is -1.0"),
        ("gemma2", {"final_logit_softcapping": "30"}, "`final_logit_softcapping` is"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "`query_pre_attn_scalar` is 0"),
        ("gemma2", {"rope_parameters": {"rope_type": "twisted", "factor": 2.0}}, '`rope_type` is "twisted"'),
        ("gemma2", {"sliding_window": None}, "sliding_layers needs a sliding_window"),
        ("gemma3", {"sliding_window_pattern": 0}, "`sliding_window_pattern` is 0"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "`attn_logit_softcapping` is 50.0"),
        ("gemma3", {"rope_parameters": {"rope_type": "default"}}, "`rope_type` is"),
        (
            "gemma3",
            {"rope_parameters": {"sliding_attention": {"rope_type": "twisted", "factor": 2.0}}},
            '`rope_type` is "twisted"',
        ),
        ("phi3", {"resid_pdrop": 0.1}, "`resid_pdrop` is 0.1"),
        ("phi3", {"embd_pdrop": 0.1}, "`embd_pdrop` is 0.1"),
        ("phi3", {"attention_bias": True}, "`attention_bias` is true"),
        ("phi3", {"partial_rotary_factor": 0.5}, "short_factors has 48 entries"),
        ("phi3", {"partial_rotary_factor": 1.5}, "`partial_rotary_factor` is 1.5; a share"),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, 'of another type than "longrope"'),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "`long_factor` is missing"),
        ("olmo2", {"clip_qkv": 8.0}, "`clip_qkv` is 8.0"),
        ("olmo2", {"hidden_act": "gelu"}, '`hidden_act` is "gelu"'),
        ("mixtral", {"router_jitter_noise": 0.1}, "`router_jitter_noise` is 0.1"),
        ("mixtral", {"num_experts_per_tok": 9}, "experts_per_token is 9"),
        ("qwen3_moe", {"use_sliding_window": True}, "`use_sliding_window` is true"),
        ("qwen3_moe", {"shared_expert_intermediate_size": 512}, "`shared_expert_intermediate_size` is 512"),
        ("qwen3_moe", {"use_qk_norm": False}, "`use_qk_norm` is false"),
        ("mixtral", {"pruned_heads": {"0": [1]}}, "`pruned_heads` is"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "`decoder_sparse_step` is 0"),
        ("qwen3_moe", {"mlp_only_layers": ["first"]}, "`mlp_only_layers` is"),
        ("qwen3_moe", {"num_hidden_layers": 10**12}, "num_layers is"),
        *((family, {"quantization_config": {"quant_method": "awq"}}, "quantised") for family in ONE_OF_EACH),
        *((family, {"attention_twist": 1}, "`attention_twist` is 1") for family in ONE_OF_EACH),
        *((family, {"num_hidden_layers": 10**12}, "num_layers is") for family in ONE_OF_EACH),
    ],
)
def test_what_would_change_the_numbers_is_named(
    family: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as error:
        read(tmp_path, {**PUBLISHED[ONE_OF_EACH[family]], **change})
    assert said in str(error.value)


def test_layers_without_experts_are_listed_or_between_steps(tmp_path: Path) -> None:
    content = {**PUBLISHED["qwen3_30b_a3b"], "num_hidden_layers": 7}
    config = read(tmp_path, {**content, "decoder_sparse_step": 2, "mlp_only_layers": [3]})
    assert config.moe is not None
    assert config.moe.dense_layers == (0, 2, 3, 4, 6)


def test_fields_that_change_no_numbers_are_passed_over(tmp_path: Path) -> None:
    coder = {"qkv_bias": False, "use_qk_norm": True, "shared_expert_intermediate_size": 0}
    relics = {"pruned_heads": {}, "num_beams": 1, "tie_encoder_decoder": False, "output_router_logits": True}
    content = PUBLISHED["qwen3_30b_a3b"]
    assert read(tmp_path, {**content, **coder, **relics}) == read(tmp_path, content)


def test_null_caps_are_no_caps_and_absent_ones_are_the_familys(tmp_path: Path) -> None:
    content = PUBLISHED["gemma2_2b"]
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    silent = read(tmp_path, {name: value for name, value in content.items() if name not in caps})
    assert (silent.attn_softcap, silent.final_softcap) == (50.0, 30.0)
    none = read(tmp_path, {**content, **dict.fromkeys(caps)})
    assert (none.attn_softcap, none.final_softcap) == (None, None)


@pytest.mark.parametrize("kind", ["su", "longrope"])
def test_long_scaling_of_phi_under_its_names_and_magnitude(kind: str, tmp_path: Path) -> None:
    content = PUBLISHED["phi4_mini"]
    scaling = {**content["rope_scaling"], "type": kind, "attention_factor": 1.25}
    config = read(tmp_path, {**content, "rope_scaling": scaling})
    assert isinstance(config.rope_scaling, LongRopeScaling)
    assert config.rope_scaling.magnitude == 1.25
    family = importlib.import_module("tune.models.phi3").PHI3
    written = family.write_hf_config(config)
    assert set(written["rope_scaling"]) == {"type", "short_factor", "long_factor", "attention_factor"}
    assert family.read_hf_config(written) == config


@pytest.mark.parametrize(
    ("case", "change", "said"),
    [
        ("gemma", {"norm_offset": 0.0}, "norm_offset 0.0, which would be read as 1.0"),
        ("gemma2", {"embed_scale": 1.0}, "embed_scale 1.0"),
        ("gemma3", {"rope_scaling": None, "local_rope_base": None}, "local_rope_base None"),
        ("phi3-window", {"sliding_layers": (0, 2)}, "sliding_layers (0, 2)"),
        ("olmo2", {"norm_placement": "both"}, "norm_placement 'both'"),
        ("mixtral", {"moe": None}, "moe None"),
        ("qwen3-moe", {"nope_layers": (1,)}, "nope_layers (1,)"),
    ],
)
def test_what_a_familys_file_cannot_say_is_not_saved(
    case: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = model_of(tmp_path, case)
    odd = TransformerDecoder(replace(model.config, **change), model.family)
    with pytest.raises(CheckpointError) as error:
        save_model(odd, tmp_path / "saved")
    assert said in str(error.value)
    assert not list((tmp_path / "saved").iterdir())


def test_constants_that_lose_their_last_digits_are_saved(tmp_path: Path) -> None:
    model = model_of(tmp_path, "gemma2")
    for scale in (0.1, 0.123456789, 250.5**-0.5):
        odd = TransformerDecoder(replace(model.config, attn_scale=scale), model.family)
        save_model(odd, tmp_path / f"saved{scale}")
        found = tune.models.from_checkpoint(tmp_path / f"saved{scale}").config.attn_scale
        assert found == pytest.approx(scale, rel=1e-9)


NESTED_NAMES = [
    "rope_type",
    "type",
    "factor",
    "rope_theta",
    "short_factor",
    "long_factor",
    "sliding_attention",
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.just("sliding_attention"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*NESTED_NAMES, "full_attention"]) | st.text(max_size=2), inner)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("name", [*ONE_OF_EACH.values(), "gemma3_4b"])
@settings(max_examples=60)
@given(data=st.data())
def test_any_value_gives_sizes_or_a_checkpoint_error(name: str, data: st.DataObject, tmp_path: Path) -> None:
    content = json.loads(json.dumps(PUBLISHED[name]))
    where = content["text_config"] if "text_config" in content and data.draw(st.booleans()) else content
    fields = sorted({*where, "rope_parameters", "layer_types", "text_config", "sliding_window_pattern"})
    where.update(data.draw(st.dictionaries(st.sampled_from(fields), VALUES, max_size=4)))
    try:
        read(tmp_path, content)
    except CheckpointError:
        return
