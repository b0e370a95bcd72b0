"""How checkpoints of the Llama family name their weights, and what their configuration files say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.hf_config import finish, read_rope, read_sizes, write_rope, write_sizes
from tune.models.hf_layout import hf_layout
from tune.models.llama2.params import read_llama_params, write_llama_params
from tune.models.rotary_order import paired_rule
from tune.models.torchtune_layout import torchtune_layout
from tune.modules import DecoderConfig, Family, Layout, WeightRule


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=2048, norm_eps=1e-6)
    arguments = {**sizes, **read_rope(fields, sizes)}
    arguments["attn_bias"] = "all" if fields.flag("attention_bias", False) else "none"
    arguments["mlp_bias"] = fields.flag("mlp_bias", False)
    fields.expect("hidden_act", "silu")
    fields.expect("rope_interleaved", False)
    for name in ("sliding_window", "layer_types"):
        fields.expect(name)
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_sizes(config),
        **write_rope(config),
        "hidden_act": "silu",
        "attention_bias": config.attn_bias == "all",
        "mlp_bias": config.mlp_bias,
    }


META_LAYOUT = Layout(
    name="Meta",
    rules=(
        WeightRule("tok_embeddings.weight", "tok_embeddings.weight"),
        WeightRule("layers.{}.sa_norm.scale", "layers.{}.attention_norm.weight"),
        paired_rule("layers.{}.attn.q_proj.weight", "layers.{}.attention.wq.weight"),
        paired_rule("layers.{}.attn.k_proj.weight", "layers.{}.attention.wk.weight"),
        WeightRule("layers.{}.attn.v_proj.weight", "layers.{}.attention.wv.weight"),
        WeightRule("layers.{}.attn.output_proj.weight", "layers.{}.attention.wo.weight"),
        WeightRule("layers.{}.mlp_norm.scale", "layers.{}.ffn_norm.weight"),
        WeightRule("layers.{}.mlp.w1.weight", "layers.{}.feed_forward.w1.weight"),
        WeightRule("layers.{}.mlp.w2.weight", "layers.{}.feed_forward.w2.weight"),
        WeightRule("layers.{}.mlp.w3.weight", "layers.{}.feed_forward.w3.weight"),
        WeightRule("norm.scale", "norm.weight"),
        WeightRule("output.weight", "output.weight"),
    ),
    ignored=("rope.freqs",),
    tied_output="output.weight",
)

_HF = hf_layout()

LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    hf=_HF,
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
    meta=META_LAYOUT,
    # torchtune, models/convert_weights.py: it turns neighbouring channels, as Meta does.
    torchtune=torchtune_layout(_HF, paired=True),
    read_meta_config=read_llama_params,
    write_meta_config=write_llama_params,
)
