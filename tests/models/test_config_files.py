"""What config.json says and leaves out, as the hub's files of Llama, Mistral, Qwen, SmolLM3 and Granite have it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from published_llamas import GRANITE, LLAMA, LONG, MISTRAL, QWEN2, QWEN2_7B, QWEN3, SMOLLM3

import tune.models
from tune.errors import CheckpointError
from tune.models.llama2 import LLAMA as LLAMA_FAMILY
from tune.models.loading import read_model_config
from tune.models.mistral import MISTRAL as MISTRAL_FAMILY
from tune.modules import DecoderConfig, Llama3Scaling, YarnScaling


def described(tmp_path: Path, content: dict[str, Any]) -> DecoderConfig:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with torch.device("meta"):
        return tune.models.auto(str(tmp_path)).config


def test_older_and_newer_files_say_the_same(tmp_path: Path) -> None:
    older = described(tmp_path, LLAMA | LONG)
    scaling = {**LONG["rope_scaling"], "rope_theta": 500000.0}
    newer = {
        name: value for name, value in (LLAMA | LONG).items() if not name.startswith(("rope_", "torch_"))
    }
    newer |= {"rope_parameters": scaling, "dtype": "bfloat16", "head_dim": 128}
    assert described(tmp_path, newer) == older
    assert older.rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)
    both = LLAMA | LONG | {"rope_parameters": scaling}
    assert described(tmp_path, both) == older
    for change in ({"factor": 9.0}, {"rope_theta": 1e4}):
        with pytest.raises(CheckpointError, match="`rope_scaling` and `rope_parameters` say different"):
            described(tmp_path, both | {"rope_parameters": scaling | change})
    beside = LLAMA | LONG | {"original_max_position_embeddings": 8192}
    assert described(tmp_path, beside) == older
    with pytest.raises(CheckpointError, match="`original_max_position_embeddings` is 4096, and 8192 inside"):
        described(tmp_path, beside | {"original_max_position_embeddings": 4096})
    # The first files with scaled positions called its kind `type`.
    spelt = LONG["rope_scaling"] | {"type": "llama3"}
    del spelt["rope_type"]
    assert described(tmp_path, LLAMA | LONG | {"rope_scaling": spelt}) == older


@pytest.mark.parametrize("name", CASES)
def test_any_family_s_older_files_say_the_same(name: str, tmp_path: Path) -> None:
    """Before transformers 5 the rotary positions of all layers stood in `rope_theta` and `rope_scaling`."""
    newer = {"architectures": None, **json.loads(CASES[name]().to_json_string())}
    rope = dict(newer.get("rope_parameters") or {})
    if "rope_theta" not in rope:
        pytest.skip("rotary positions by kind of layer, which has no older form")
    older = {key: value for key, value in newer.items() if key not in ("rope_parameters", "dtype")}
    older["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        older["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    older["rope_scaling"] = None if rope == {"rope_type": "default"} else rope
    assert described(tmp_path, older | {"torch_dtype": "bfloat16"}) == described(tmp_path, newer)


def test_the_scaling_that_qwens_card_tells_people_to_add(tmp_path: Path) -> None:
    yarn = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    found = described(tmp_path, QWEN2 | QWEN2_7B | {"rope_scaling": yarn})
    assert found.rope_scaling == YarnScaling(factor=4.0, original_max_seq_len=32768)


def test_an_absent_field_means_what_it_means_to_transformers(tmp_path: Path) -> None:
    without = {"sliding_window", "num_key_value_heads", "max_position_embeddings"}
    mistral = {name: value for name, value in MISTRAL.items() if name not in without}
    found = described(tmp_path, mistral)
    assert (found.sliding_window, found.num_kv_heads, found.max_seq_len) == (4096, 8, 131072)
    assert found.sliding_layers == tuple(range(32))
    null = described(tmp_path, mistral | {"sliding_window": None, "num_key_value_heads": None})
    assert (null.sliding_window, null.num_kv_heads) == (None, 32)
    windows = {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 20}
    assert described(tmp_path, QWEN2 | windows).sliding_layers == (20, 21, 22, 23)
    smollm3 = {name: value for name, value in SMOLLM3.items() if name not in ("no_rope_layers", "rope_theta")}
    found = described(tmp_path, smollm3)
    assert (found.nope_layers, found.rope_base) == (tuple(range(3, 36, 4)), 2_000_000.0)
    found = described(tmp_path, smollm3 | {"no_rope_layer_interval": 12})
    assert found.nope_layers == (11, 23, 35)
    multipliers = {name for name in GRANITE if name.endswith(("multiplier", "_scaling"))}
    plain = {name: value for name, value in GRANITE.items() if name not in multipliers}
    found = described(tmp_path, plain)
    assert (found.attn_scale, found.embed_scale, found.residual_scale, found.logit_divisor) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (MISTRAL | {"layer_types": ["full_attention"] * 32}, "`layer_types`"),
        (MISTRAL | {"attention_bias": True}, "`attention_bias`"),
        (QWEN2 | {"layer_types": ["sliding_attention"] * 24}, "`layer_types` asks for windows"),
        (QWEN2 | {"layer_types": ["full_attention"] * 23}, "`layer_types`"),
        (QWEN2 | {"layer_types": ["chunked_attention"] * 24}, "`layer_types`"),
        (QWEN2 | {"use_mrope": True}, "`use_mrope` is true"),
        (
            QWEN2 | {"use_sliding_window": True, "sliding_window": 0, "max_window_layers": 2},
            "sliding_window is 0",
        ),
        (QWEN2 | {"num_hidden_layers": 10**12, "use_sliding_window": True}, "more than 1000"),
        (QWEN3 | {"quantization_config": {"quant_method": "awq"}}, "weights are quantised (awq)"),
        (QWEN3 | {"head_dim": 127}, "head_dim is 127"),
        (SMOLLM3 | {"no_rope_layers": [2] * 36}, "`no_rope_layers`"),
        (SMOLLM3 | {"no_rope_layers": [1, 0]}, "`no_rope_layers`"),
        (SMOLLM3 | {"no_rope_layers": None, "no_rope_layer_interval": 0}, "`no_rope_layer_interval` is 0"),
        (SMOLLM3 | {"layer_types": ["sliding_attention"] * 36}, "`layer_types` asks for windows"),
        (GRANITE | {"logits_scaling": 0}, "logit_divisor is 0"),
        (GRANITE | {"attention_multiplier": "small"}, "`attention_multiplier`"),
        (GRANITE | {"position_embedding_type": "nope"}, "`position_embedding_type`"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path: Path, content: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        described(tmp_path, content)
    assert named in str(caught.value)


def test_sizes_by_argument_are_of_their_kind() -> None:
    sizes = {
        "vocab_size": 61,
        "num_layers": 3,
        "num_heads": 6,
        "num_kv_heads": 2,
        "embed_dim": 48,
        "max_seq_len": 40,
    }
    with torch.device("meta"):
        wide = {name: tune.models.get_model(name, **sizes) for name in ("llama3", "llama3_1", "llama3_2")}
        wide |= {
            name: tune.models.get_model(name, intermediate_dim=50, **sizes)
            for name in ("mistral", "qwen2", "qwen3")
        }
        narrow = tune.models.get_model("mistral", intermediate_dim=50, sliding_window=7, head_dim=10, **sizes)
    assert {model.family.name for model in wide.values()} == {"llama", "mistral", "qwen2", "qwen3"}
    assert wide["llama3"].config.rope_scaling is None
    assert wide["llama3_1"].config.rope_scaling == Llama3Scaling(factor=8.0)
    assert wide["llama3_2"].config == replace(
        wide["llama3_1"].config, rope_scaling=Llama3Scaling(factor=32.0), tie_word_embeddings=True
    )
    assert wide["qwen2"].config.attn_bias == "qkv"
    assert wide["qwen3"].config.head_dim == 128
    assert narrow.config.sliding_layers == (0, 1, 2)
    assert narrow.config.head_dim == 10


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "yarn", "sliding_attention"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta", "quant_method"]), inner)
    ),
    max_leaves=4,
)
NO_CONSTANTS = st.sampled_from(
    ["rope_parameters", "quantization_config", "layer_types", "head_dim", "max_window_layers"]
)


@pytest.mark.parametrize(
    "content", [MISTRAL, QWEN2, QWEN3, SMOLLM3, GRANITE], ids=lambda content: content["model_type"]
)
@settings(max_examples=100)
@given(data=st.data())
def test_any_value_gives_sizes_or_a_checkpoint_error(
    content: dict[str, Any], data: st.DataObject, tmp_path: Path
) -> None:
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(content)) | NO_CONSTANTS, VALUES, max_size=4))
    (tmp_path / "config.json").write_text(json.dumps(content | changes))
    try:
        family, config = read_model_config(tmp_path)
    except CheckpointError:
        return
    assert family.read_hf_config(json.loads(json.dumps(family.write_hf_config(config)))) == config


PARAMS = {
    "dim": 48,
    "n_layers": 2,
    "n_heads": 6,
    "n_kv_heads": 2,
    "norm_eps": 1e-5,
    "rope_theta": 5e5,
    "vocab_size": 61,
    "multiple_of": 2,
    "use_scaled_rope": True,
}


@pytest.mark.parametrize("extra", [{}, {"hidden_dim": 50, "head_dim": 8}], ids=["llama", "mistral"])
@settings(max_examples=100)
@given(data=st.data())
def test_no_value_of_params_json_does_either(
    extra: dict[str, Any], data: st.DataObject, tmp_path: Path
) -> None:
    content = PARAMS | extra
    if extra:
        content = {name: content[name] for name in content if name not in ("use_scaled_rope", "multiple_of")}
    names = sorted({*content, "sliding_window", "max_seq_len", "rope_scaling_factor", "tied_embeddings"})
    content |= data.draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=4))
    shapes = {
        "tok_embeddings.weight": (61, 48),
        "output.weight": (61, 48),
        "layers.0.feed_forward.w1.weight": (50, 48),
    }
    family = MISTRAL_FAMILY if extra else LLAMA_FAMILY
    assert family.read_meta_config is not None
    assert family.write_meta_config is not None
    try:
        config = family.read_meta_config(content, shapes)
        again = family.write_meta_config(config)
    except CheckpointError:
        return
    widths = {**shapes, "layers.0.feed_forward.w1.weight": (config.intermediate_dim, 48)}
    assert family.read_meta_config(json.loads(json.dumps(again)), widths) == config
