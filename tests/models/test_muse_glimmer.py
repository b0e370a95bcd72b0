"""Muse-Glimmer beyond the table: the larger model's head, layers by their place, adapters of gates, configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, MUSE_GLIMMER, SIZES, rope, stir
from larger_models import random_larger
from muse_glimmer_alone import MuseGlimmerForCausalLM
from peft import PeftModel
from published_muse_glimmer import PUBLISHED
from torch import Tensor
from transformers import MuseGlimmerTextConfig, PreTrainedModel

import tune.models
from tune.checkpoints import load_adapter, save_adapter, save_model
from tune.errors import CheckpointError, ConfigError
from tune.generation import generate
from tune.models.loading import read_model_config
from tune.modules import DecoderConfig, TransformerDecoder
from tune.modules.peft import LoRAConfig, adapted_modules, adapter_parameters, apply_lora

TOKENS = torch.randint(0, 59, (2, 23), generator=torch.Generator().manual_seed(1))
TOLERANCE = {"rtol": 1e-5, "atol": 5e-5}


def alone(directory: Path, **changes: Any) -> PreTrainedModel:
    """A text model with its head, saved."""
    torch.manual_seed(4)
    config = MuseGlimmerTextConfig(**SIZES | MUSE_GLIMMER | {"rope_theta": 300.0} | changes)
    model = MuseGlimmerForCausalLM._from_config(config, attn_implementation="eager").eval()
    stir(model)
    model.save_pretrained(directory)
    return model


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        found = model.eval()(TOKENS)
    return found if isinstance(found, Tensor) else found.logits


def test_the_tables_reference_is_the_larger_models_text_part() -> None:
    larger = random_larger("muse_glimmer")
    model = MuseGlimmerForCausalLM._from_config(larger.config.text_config, attn_implementation="eager")
    model.model.load_state_dict(larger.model.language_model.state_dict())
    model.lm_head.load_state_dict(larger.lm_head.state_dict())
    with torch.no_grad():
        assert torch.equal(logits_of(model), larger(input_ids=TOKENS).logits)


def test_200_tokens_are_those_of_the_reference(tmp_path: Path) -> None:
    reference = alone(tmp_path, num_hidden_layers=5, max_position_embeddings=300)
    model = tune.models.from_checkpoint(tmp_path)
    prompt = torch.randint(0, 61, (1, 70), generator=torch.Generator().manual_seed(2))
    reference.generation_config.eos_token_id = None
    theirs = reference.generate(prompt, max_new_tokens=200, do_sample=False, pad_token_id=0)[0, 70:]
    assert generate(model, prompt[0].tolist(), max_new_tokens=200) == theirs.tolist()
    assert len(set(theirs.tolist())) > 8


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 5, 9])
def test_layers_are_told_by_their_place_from_the_last(num_layers: int, tmp_path: Path) -> None:
    theirs = MuseGlimmerTextConfig(**SIZES | MUSE_GLIMMER | {"num_hidden_layers": num_layers})
    content = {"model_type": "muse_glimmer_text", **SIZES, **MUSE_GLIMMER, "num_hidden_layers": num_layers}
    config = read(content, tmp_path)
    assert config.sliding_layers == tuple(
        layer for layer, kind in enumerate(theirs.layer_types) if kind == "sliding_attention"
    )
    assert config.nope_layers == tuple(
        layer for layer, base in enumerate(theirs.layer_rope_theta) if base == 0
    )
    # Of kinds that are listed, the positions do not follow.
    listed = read({**content, "layer_types": ["sliding_attention"] * num_layers}, tmp_path)
    assert listed.sliding_layers == tuple(range(num_layers))
    assert listed.nope_layers == config.nope_layers


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1},
        {"sliding_window": 100},
        {"sliding_window": 1, "head_dim": 2, "num_key_value_heads": 3},
        {"layer_types": ["sliding_attention"] * 3, "layer_rope_theta": [0, 0, 0]},
        {"layer_types": ["full_attention"] * 3, "layer_rope_theta": [300.0] * 3, "output_multiplier": 7.3},
        {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 22, "tie_word_embeddings": True},
        {"rope_parameters": rope("dynamic", 700.0, factor=3.0)},
    ],
    ids=str,
)
def test_other_sizes_are_followed(changes: dict[str, Any], tmp_path: Path) -> None:
    reference = alone(tmp_path / "made", **changes)
    model = tune.models.from_checkpoint(tmp_path / "made")
    expected = logits_of(reference)
    torch.testing.assert_close(logits_of(model), expected, **TOLERANCE)
    save_model(model, tmp_path / "saved")
    again = MuseGlimmerForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="eager")
    assert torch.equal(logits_of(again), expected)


@pytest.mark.parametrize(
    ("modules", "apply_to_mlp"),
    [(("gate_proj",), False), (("q_proj",), True), (("v_proj", "gate_proj"), True)],
    ids=["gate", "feed-forward", "both"],
)
def test_a_gate_of_attention_is_not_one_of_the_feed_forward(
    modules: Any, apply_to_mlp: bool, tmp_path: Path
) -> None:
    """Both are called gate_proj there: what is adapted is named so that peft adapts it alone."""
    alone(tmp_path / "base")
    model = tune.models.from_checkpoint(tmp_path / "base")
    apply_lora(model, LoRAConfig(rank=3, alpha=7, attn_modules=modules, apply_to_mlp=apply_to_mlp))
    torch.manual_seed(3)
    for parameter in adapter_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.2)
    save_adapter(model, tmp_path / "adapter", base="")
    base = MuseGlimmerForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter")
    adapted = {name.rpartition(".lora_A")[0] for name, _ in theirs.named_modules() if name.endswith("lora_A")}
    assert len(adapted) == len(adapted_modules(model))
    torch.testing.assert_close(logits_of(model), logits_of(theirs), **TOLERANCE)
    again = tune.models.from_checkpoint(tmp_path / "base")
    load_adapter(again, tmp_path / "adapter")
    assert adapted_modules(again).keys() == adapted_modules(model).keys()
    assert torch.equal(logits_of(again), logits_of(model))


def read(content: dict[str, Any], directory: Path) -> DecoderConfig:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(content))
    return read_model_config(directory)[1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_activation": "gelu"}, '`hidden_activation` is "gelu"'),
        ({"layer_types": ["full_attention"] * 51}, "`layer_types` is .* a list of 52 entries"),
        ({"layer_types": ["chunked_attention"] * 52}, "`layer_types` is"),
        ({"layer_rope_theta": [500000.0] * 51}, "`layer_rope_theta` has 51 entries, and there are 52 layers"),
        ({"layer_rope_theta": []}, "`layer_rope_theta` has 0 entries"),
        ({"layer_rope_theta": [1e4, *[500000.0] * 51]}, "has 10000, which is neither 0 nor .* of 500000"),
        ({"layer_rope_theta": [-1.0, *[500000.0] * 51]}, "has -1, which is neither 0 nor"),
        ({"layer_rope_theta": [None] * 52}, "`layer_rope_theta` is .* a list of numbers"),
        ({"layer_rope_theta": 500000.0}, "`layer_rope_theta` is .* a list of numbers"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "has 500000, which is neither 0 nor .* of 10000"),
        ({"sliding_window": None}, "sliding_layers needs a sliding_window"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"sliding_window": "wide"}, "`sliding_window` is .* a whole number"),
        ({"final_logit_softcapping": None}, "`final_logit_softcapping` is null"),
        ({"final_logit_softcapping": 0}, "final_softcap is 0.0; it must be above 0"),
        ({"final_logit_softcapping": "20"}, "`final_logit_softcapping` is .* a number"),
        ({"qk_scale_factor": 0}, "`qk_scale_factor` is 0; it must be above 0"),
        ({"qk_scale_factor": [3.87]}, "`qk_scale_factor` is .* a number"),
        ({"output_multiplier": -0.2}, "`output_multiplier` is -0.2; it must be above 0"),
        ({"output_multiplier": 1e-320}, "logit_divisor is inf; it must be above 0 and finite"),
        ({"post_norm_eps": 1}, "post_norm_eps is 1.0; it must be at least 0 and below 1"),
        ({"attention_bias": 1}, "`attention_bias` is 1; it must be true or false"),
        ({"head_dim": 127}, "head_dim is 127"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"num_key_value_heads": 5}, "not a multiple of num_kv_heads 5"),
        ({"num_hidden_layers": 0}, "num_layers is 0"),
        ({"num_hidden_layers": -3}, "num_layers is -3"),
        ({"num_hidden_layers": 10**12}, "there are 1000000000000 layers"),
        ({"attn_logit_softcapping": 50.0}, "`attn_logit_softcapping` is 50.0"),
        ({"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5}}, "`partial_rotary_factor`"),
    ],
)
def test_what_is_not_understood_is_named(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    content = json.loads(json.dumps(PUBLISHED["muse_glimmer_30b"]))
    content["text_config"].update(changes)
    with pytest.raises(CheckpointError, match=says):
        read(content, tmp_path)


def test_what_a_configuration_leaves_out_is_as_in_the_reference(tmp_path: Path) -> None:
    found = read({"model_type": "muse_glimmer_text"}, tmp_path)
    published = read(PUBLISHED["muse_glimmer_30b"], tmp_path)
    assert {name for name, value in vars(published).items() if getattr(found, name) != value} == {"rope_base"}
    assert found.rope_base == 10_000.0  # the published one stands in its file alone


def test_settings_that_belong_together_are_checked() -> None:
    with pytest.raises(ConfigError, match="attn_gate_apart needs attn_gate"):
        DecoderConfig(31, 2, 3, 3, 12, 4, 20, 40, attn_gate_apart=True)
    with pytest.raises(ConfigError, match="post_norm_eps is nan"):
        DecoderConfig(31, 2, 3, 3, 12, 4, 20, 40, post_norm_eps=float("nan"))


def test_a_model_of_the_table_has_every_trait() -> None:
    """So that the tests of the table see each of them."""
    config = CASES["muse_glimmer"]()
    with torch.device("meta"):
        model = TransformerDecoder(
            tune.models.muse_glimmer.MUSE_GLIMMER.read_hf_config(config.to_dict()),
            tune.models.muse_glimmer.MUSE_GLIMMER,
        )
    block = model.layers[1]
    assert (model.norm.offset, block.sa_norm.offset, block.mlp_post_norm.offset) == (0.0, 1.0, 1.0)
    assert (block.sa_norm.eps, block.sa_post_norm.eps, block.mlp_post_norm.eps) == (1e-4, 1e-3, 1e-3)
    assert (model.layers[0].has_rope, block.has_rope, model.layers[4].has_rope) == (False, True, False)
