"""Mixtral: sizes, builders and tokenizer; how its checkpoints name their weights and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import ModelBuilder, tokenizer_at
from tune.models.hf_config import finish, read_rope, read_sizes, windows_everywhere, write_rope, write_sizes
from tune.models.layouts import STACKED_EXPERTS, hf_layout
from tune.modules import DecoderConfig, Family, MoEConfig

# No loss that balances the experts is formed, so what weighs it is of no account.
ROUTER_TRAINING = ("output_router_logits", "router_aux_loss_coef")


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=131_072, norm_eps=1e-5, num_kv_heads=8)
    arguments = {**sizes, **read_rope(fields, sizes, base=1_000_000.0)}
    arguments["moe"] = MoEConfig(
        num_experts=fields.integer("num_local_experts", fields.integer("num_experts", 8)),
        experts_per_token=fields.integer("num_experts_per_tok", 2),
        intermediate_dim=sizes["intermediate_dim"],
    )
    arguments.update(windows_everywhere(fields.optional_integer("sliding_window", None), sizes["num_layers"]))
    fields.expect("hidden_act", "silu")
    fields.expect("router_jitter_noise", 0.0, 0)
    fields.expect("layer_types")
    fields.ignore(ROUTER_TRAINING)
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    content = {**write_sizes(config), **write_rope(config), "hidden_act": "silu"}
    content["sliding_window"] = config.sliding_window
    if config.moe is not None:
        content["intermediate_size"] = config.moe.intermediate_dim
        content["num_local_experts"] = config.moe.num_experts
        content["num_experts_per_tok"] = config.moe.experts_per_token
    return content


_EXPERT = "block_sparse_moe.experts.{}"

MIXTRAL = Family(
    name="mixtral",
    architectures=("MixtralForCausalLM",),
    classifier="MixtralForSequenceClassification",
    hf=hf_layout(
        {
            "mlp.router.weight": "block_sparse_moe.gate.weight",
            **{f"mlp.experts.{{}}.{name}.weight": f"{_EXPERT}.{name}.weight" for name in ("w1", "w2", "w3")},
        }
    ),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
    hf_variants=(hf_layout({"mlp.router.weight": "mlp.gate.weight", **STACKED_EXPERTS}),),
)


# arXiv:2401.04088, table 1
_8X7B = DecoderConfig(
    vocab_size=32_000,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    embed_dim=4096,
    head_dim=128,
    intermediate_dim=14_336,
    max_seq_len=32_768,
    rope_base=1_000_000.0,
    moe=MoEConfig(num_experts=8, experts_per_token=2, intermediate_dim=14_336),
)
# config.json of mistralai/Mixtral-8x22B-v0.1; the Instruct checkpoint has a vocabulary of 32768
_8X22B = replace(
    _8X7B,
    num_layers=56,
    num_heads=48,
    embed_dim=6144,
    intermediate_dim=16_384,
    max_seq_len=65_536,
    moe=MoEConfig(num_experts=8, experts_per_token=2, intermediate_dim=16_384),
)

mixtral_8x7b = ModelBuilder(MIXTRAL, _8X7B)
mixtral_8x22b = ModelBuilder(MIXTRAL, _8X22B)

mixtral_tokenizer = tokenizer_at
