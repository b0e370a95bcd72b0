"""Granite 4, the models of attention alone: tokenizer; how its checkpoints name their weights and sizes.

Its hybrid models (`-h-`), with state-space layers or experts, are refused. No size is built by name: `auto` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import tokenizer_at
from tune.models.granite import read_granite, write_granite
from tune.models.hf_config import finish, layer_range, read_rope, read_sizes
from tune.models.layouts import hf_layout
from tune.modules import DecoderConfig, Family

# Of layers and experts that these models do not have.
_UNUSED = (
    *("num_experts_per_tok", "output_router_logits", "router_aux_loss_coef", "time_step_limit"),
    *(
        f"mamba_{name}"
        for name in (
            *("chunk_size", "conv_bias", "d_conv", "d_head", "d_state", "expand", "n_groups", "n_heads"),
            "proj_bias",
        )
    ),
)


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=2048, norm_eps=1e-6)
    # The width of experts, of which there are none, stands where other families have this one.
    sizes["intermediate_dim"] = fields.integer("shared_intermediate_size", 1024)
    arguments = {**sizes, **read_rope(fields, sizes), **read_granite(fields)}
    fields.expect("mlp_bias", False)
    kinds = ("attention", "full_attention")
    for name in ("layer_types", "layers_block_type"):
        if fields.has(name):
            fields.choices(name, sizes["num_layers"], *kinds)
    if not fields.has("layer_types") and not fields.has("layers_block_type"):
        fields.problem(
            "`layer_types` is missing, which means state-space layers; only attention is supported"
        )
    if (experts := fields.integer("num_local_experts", 8)) != 0:
        fields.problem(f"`num_local_experts` is {experts}; only models without experts (0) are supported")
    if fields.text("position_embedding_type", "nope") != "rope":
        arguments["nope_layers"] = tuple(layer_range(sizes["num_layers"]))
    fields.ignore(_UNUSED)
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_granite(config),
        "shared_intermediate_size": config.intermediate_dim,
        "layer_types": ["attention"] * config.num_layers,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "position_embedding_type": None if config.nope_layers else "rope",
        # What transformers checks of layers that are not there: one head as wide as all of them.
        "mamba_n_heads": 1,
    }


GRANITE4 = Family(
    name="granitemoehybrid",
    architectures=("GraniteMoeHybridForCausalLM",),
    hf=hf_layout(
        {
            "mlp.w1.weight": "shared_mlp.input_linear.weight",
            "mlp.w3.weight": "shared_mlp.input_linear.weight",
            "mlp.w2.weight": "shared_mlp.output_linear.weight",
        }
    ),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)

granite4_tokenizer = tokenizer_at
