"""Qwen3, the dense models: sizes, builders and tokenizer; how its checkpoints name their weights and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import LoRABuilder, ModelBuilder, sizes_by_argument
from tune.models.hf_config import finish, read_rope, read_sizes, write_rope, write_sizes
from tune.models.layouts import hf_layout, torchtune_layout
from tune.models.qwen2 import qwen2_tokenizer, read_late_windows, write_windows
from tune.models.qwen3_moe import lora_qwen3_moe as lora_qwen3_moe
from tune.models.qwen3_moe import lora_qwen3_moe_30b_a3b_base as lora_qwen3_moe_30b_a3b_base
from tune.models.qwen3_moe import lora_qwen3_moe_30b_a3b_instruct as lora_qwen3_moe_30b_a3b_instruct
from tune.models.qwen3_moe import lora_qwen3_moe_235b_a22b as lora_qwen3_moe_235b_a22b
from tune.models.qwen3_moe import qwen3_moe as qwen3_moe
from tune.models.qwen3_moe import qwen3_moe_30b_a3b_base as qwen3_moe_30b_a3b_base
from tune.models.qwen3_moe import qwen3_moe_30b_a3b_instruct as qwen3_moe_30b_a3b_instruct
from tune.models.qwen3_moe import qwen3_moe_235b_a22b as qwen3_moe_235b_a22b
from tune.modules import DecoderConfig, Family, TransformerDecoder


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=32_768, norm_eps=1e-6, head_dim=128, num_kv_heads=32)
    arguments = {
        **sizes,
        **read_rope(fields, sizes),
        **read_late_windows(fields, sizes["num_layers"]),
        "qk_norm": "head",
    }
    arguments["attn_bias"] = "all" if fields.flag("attention_bias", False) else "none"
    fields.expect("hidden_act", "silu")
    fields.expect("use_mrope", False)
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_sizes(config),
        **write_rope(config),
        **write_windows(config),
        "hidden_act": "silu",
        "attention_bias": config.attn_bias == "all",
    }


_HF = hf_layout()

QWEN3 = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    classifier="Qwen3ForSequenceClassification",
    hf=_HF,
    # torchtune, models/qwen3/_convert_weights.py
    torchtune=torchtune_layout(_HF, paired=False),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)


def qwen3(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int,
    head_dim: int = 128,
    attn_dropout: float = 0.0,
    norm_eps: float = 1e-6,
    rope_base: float = 1_000_000.0,
    tie_word_embeddings: bool = False,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Qwen3's dense kind in the sizes given.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        embed_dim: width.
        intermediate_dim: width of the feed-forward.
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
    )
    return TransformerDecoder(config, QWEN3)


# arXiv:2505.09388, table 1; widths and positions as in Qwen/Qwen3-0.6B to -32B and their base versions, config.json.
_8B = DecoderConfig(
    vocab_size=151_936,
    num_layers=36,
    num_heads=32,
    num_kv_heads=8,
    embed_dim=4096,
    head_dim=128,
    intermediate_dim=12_288,
    max_seq_len=40_960,
    norm_eps=1e-6,
    rope_base=1_000_000.0,
    qk_norm="head",
)
_4B = replace(_8B, embed_dim=2560, intermediate_dim=9728, tie_word_embeddings=True)
_1_7B = replace(
    _8B, num_layers=28, num_heads=16, embed_dim=2048, intermediate_dim=6144, tie_word_embeddings=True
)
_0_6B = replace(_1_7B, embed_dim=1024, intermediate_dim=3072)
_14B = replace(_8B, num_layers=40, num_heads=40, embed_dim=5120, intermediate_dim=17_408)
_32B = replace(_8B, num_layers=64, num_heads=64, embed_dim=5120, intermediate_dim=25_600)

qwen3_0_6b_base = ModelBuilder(QWEN3, replace(_0_6B, max_seq_len=32_768))
qwen3_0_6b_instruct = ModelBuilder(QWEN3, _0_6B)
qwen3_1_7b_base = ModelBuilder(QWEN3, replace(_1_7B, max_seq_len=32_768))
qwen3_1_7b_instruct = ModelBuilder(QWEN3, _1_7B)
qwen3_4b_base = ModelBuilder(QWEN3, replace(_4B, max_seq_len=32_768))
qwen3_4b_instruct = ModelBuilder(QWEN3, _4B)
qwen3_8b_base = ModelBuilder(QWEN3, replace(_8B, max_seq_len=32_768))
qwen3_8b_instruct = ModelBuilder(QWEN3, _8B)
qwen3_14b_base = ModelBuilder(QWEN3, replace(_14B, max_seq_len=32_768))
qwen3_14b_instruct = ModelBuilder(QWEN3, _14B)
qwen3_32b = ModelBuilder(QWEN3, _32B)

# The hub's names have no suffix.
qwen3_0_6b = qwen3_0_6b_instruct
qwen3_1_7b = qwen3_1_7b_instruct
qwen3_4b = qwen3_4b_instruct
qwen3_8b = qwen3_8b_instruct
qwen3_14b = qwen3_14b_instruct

lora_qwen3 = LoRABuilder(qwen3)
lora_qwen3_0_6b_base = LoRABuilder(qwen3_0_6b_base)
lora_qwen3_0_6b_instruct = LoRABuilder(qwen3_0_6b_instruct)
lora_qwen3_1_7b_base = LoRABuilder(qwen3_1_7b_base)
lora_qwen3_1_7b_instruct = LoRABuilder(qwen3_1_7b_instruct)
lora_qwen3_4b_base = LoRABuilder(qwen3_4b_base)
lora_qwen3_4b_instruct = LoRABuilder(qwen3_4b_instruct)
lora_qwen3_8b_base = LoRABuilder(qwen3_8b_base)
lora_qwen3_8b_instruct = LoRABuilder(qwen3_8b_instruct)
lora_qwen3_14b_base = LoRABuilder(qwen3_14b_base)
lora_qwen3_14b_instruct = LoRABuilder(qwen3_14b_instruct)
lora_qwen3_32b = LoRABuilder(qwen3_32b)
qlora_qwen3_0_6b_base = LoRABuilder(qwen3_0_6b_base, quantize_base=True)
qlora_qwen3_0_6b_instruct = LoRABuilder(qwen3_0_6b_instruct, quantize_base=True)
qlora_qwen3_1_7b_base = LoRABuilder(qwen3_1_7b_base, quantize_base=True)
qlora_qwen3_1_7b_instruct = LoRABuilder(qwen3_1_7b_instruct, quantize_base=True)
qlora_qwen3_4b_base = LoRABuilder(qwen3_4b_base, quantize_base=True)
qlora_qwen3_4b_instruct = LoRABuilder(qwen3_4b_instruct, quantize_base=True)
qlora_qwen3_8b_base = LoRABuilder(qwen3_8b_base, quantize_base=True)
qlora_qwen3_8b_instruct = LoRABuilder(qwen3_8b_instruct, quantize_base=True)
qlora_qwen3_14b_base = LoRABuilder(qwen3_14b_base, quantize_base=True)
qlora_qwen3_14b_instruct = LoRABuilder(qwen3_14b_instruct, quantize_base=True)
qlora_qwen3_32b = LoRABuilder(qwen3_32b, quantize_base=True)

qwen3_tokenizer = qwen2_tokenizer
