"""How checkpoints of Qwen3 with experts name their weights, and what their config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.hf_config import finish, layer_range, read_rope, read_sizes, write_rope, write_sizes
from tune.models.hf_layout import hf_layout
from tune.models.mixtral.family import ROUTER_TRAINING
from tune.modules import DecoderConfig, Family, MoEConfig


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=32_768, norm_eps=1e-6, num_kv_heads=4)
    arguments = {**sizes, **read_rope(fields, sizes), "qk_norm": "head"}
    arguments["attn_bias"] = "all" if fields.flag("attention_bias", False) else "none"
    arguments["moe"] = MoEConfig(
        num_experts=fields.integer("num_experts", fields.integer("num_local_experts", 128)),
        experts_per_token=fields.integer("num_experts_per_tok", 8),
        intermediate_dim=fields.integer("moe_intermediate_size", 768),
        normalize_weights=fields.flag("norm_topk_prob", False),
        dense_layers=_dense_layers(fields, sizes["num_layers"]),
    )
    fields.expect("hidden_act", "silu")
    for name in ("use_sliding_window", "qkv_bias"):
        fields.expect(name, False)
    fields.expect("use_qk_norm", True)
    fields.expect("shared_expert_intermediate_size", 0)
    fields.expect("layer_types")
    # Where a window would begin, and how wide it would be.
    fields.ignore(("sliding_window", "max_window_layers", *ROUTER_TRAINING))
    return finish(fields, arguments)


def _dense_layers(fields: ConfigFields, num_layers: int) -> tuple[int, ...]:
    """Return the layers without experts: those that are listed, and those between the steps."""
    step = fields.integer("decoder_sparse_step", 1)
    if step < 1:
        fields.problem(f"`decoder_sparse_step` is {step}; it must be at least 1")
        return ()
    listed = set(fields.integers("mlp_only_layers"))
    return tuple(layer for layer in layer_range(num_layers) if layer in listed or (layer + 1) % step)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    content = {
        **write_sizes(config, has_head_dim=False),
        **write_rope(config),
        "hidden_act": "silu",
        "attention_bias": config.attn_bias == "all",
        "use_sliding_window": False,
        "sliding_window": None,
    }
    if config.moe is not None:
        content |= {
            "num_experts": config.moe.num_experts,
            "num_experts_per_tok": config.moe.experts_per_token,
            "moe_intermediate_size": config.moe.intermediate_dim,
            "norm_topk_prob": config.moe.normalize_weights,
            "decoder_sparse_step": 1,
            "mlp_only_layers": list(config.moe.dense_layers),
        }
    return content


_EXPERT_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}

QWEN3_MOE = Family(
    name="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    hf=hf_layout(
        {
            "mlp.router.weight": "mlp.gate.weight",
            **{
                f"mlp.experts.{{}}.{ours}.weight": f"mlp.experts.{{}}.{theirs}.weight"
                for ours, theirs in _EXPERT_NAMES.items()
            },
        }
    ),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)
