"""Qwen3 with experts: sizes, builders and tokenizer; how its checkpoints name their weights and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import LoRABuilder, ModelBuilder, sizes_by_argument
from tune.models.hf_config import finish, layer_range, read_rope, read_sizes, write_rope, write_sizes
from tune.models.layouts import STACKED_EXPERTS, hf_layout
from tune.models.mixtral import ROUTER_TRAINING
from tune.models.qwen2 import qwen2_tokenizer
from tune.modules import DecoderConfig, Family, MoEConfig, TransformerDecoder


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
        dense_layers=dense_layers(fields, sizes["num_layers"]),
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


def dense_layers(fields: ConfigFields, num_layers: int) -> tuple[int, ...]:
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
    classifier="Qwen3MoeForSequenceClassification",
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
    hf_variants=(hf_layout({"mlp.router.weight": "mlp.gate.weight", **STACKED_EXPERTS}),),
)


def qwen3_moe(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    moe_intermediate_size: int,
    num_experts: int,
    num_experts_per_tok: int,
    max_seq_len: int,
    head_dim: int = 128,
    attn_dropout: float = 0.0,
    norm_eps: float = 1e-6,
    rope_base: float = 1_000_000.0,
    tie_word_embeddings: bool = False,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Qwen3's kind with experts in the sizes given.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks, all with experts.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        embed_dim: width.
        intermediate_dim: width of a feed-forward without experts, which no block has; the files state it.
        moe_intermediate_size: width of an expert.
        num_experts: experts of a block.
        num_experts_per_tok: experts that a token goes to.
        max_seq_len: positions it is trained for.
        head_dim: width of a head.
        attn_dropout: dropout on attention weights while training.
        norm_eps: added to the mean square in norms.
        rope_base: base of the rotary frequencies.
        tie_word_embeddings: use the embedding as output matrix.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    config = sizes_by_argument(
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        embed_dim=embed_dim,
        head_dim=head_dim,
        intermediate_dim=intermediate_dim,
        max_seq_len=max_seq_len,
        norm_eps=norm_eps,
        rope_base=rope_base,
        tie_word_embeddings=tie_word_embeddings,
        attn_dropout=attn_dropout,
        qk_norm="head",
        moe=MoEConfig(num_experts, num_experts_per_tok, moe_intermediate_size),
    )
    return TransformerDecoder(config, QWEN3_MOE)


# arXiv:2505.09388, table 2, with widths and positions from config.json of the published checkpoints.
_30B = DecoderConfig(
    vocab_size=151_936,
    num_layers=48,
    num_heads=32,
    num_kv_heads=4,
    embed_dim=2048,
    head_dim=128,
    intermediate_dim=6144,
    max_seq_len=40_960,
    norm_eps=1e-6,
    rope_base=1_000_000.0,
    qk_norm="head",
    moe=MoEConfig(num_experts=128, experts_per_token=8, intermediate_dim=768),
)
_235B = replace(
    _30B,
    num_layers=94,
    num_heads=64,
    embed_dim=4096,
    intermediate_dim=12_288,
    moe=MoEConfig(num_experts=128, experts_per_token=8, intermediate_dim=1536),
)

qwen3_30b_a3b = ModelBuilder(QWEN3_MOE, _30B)
qwen3_235b_a22b = ModelBuilder(QWEN3_MOE, _235B)

# torchtune's names, which stand in its module of Qwen3.
qwen3_moe_30b_a3b_base = ModelBuilder(QWEN3_MOE, replace(_30B, max_seq_len=32_768))
qwen3_moe_30b_a3b_instruct = qwen3_30b_a3b
qwen3_moe_235b_a22b = qwen3_235b_a22b

lora_qwen3_moe = LoRABuilder(qwen3_moe)
lora_qwen3_moe_30b_a3b_base = LoRABuilder(qwen3_moe_30b_a3b_base)
lora_qwen3_moe_30b_a3b_instruct = LoRABuilder(qwen3_moe_30b_a3b_instruct)
lora_qwen3_moe_235b_a22b = LoRABuilder(qwen3_moe_235b_a22b)

qwen3_moe_tokenizer = qwen2_tokenizer
