"""How checkpoints of Qwen3 name their weights, and what their config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.hf_config import finish, read_rope, read_sizes, write_rope, write_sizes
from tune.models.hf_layout import hf_layout
from tune.models.qwen2.family import read_windows, write_windows
from tune.models.torchtune_layout import torchtune_layout
from tune.modules import DecoderConfig, Family


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=32_768, norm_eps=1e-6, head_dim=128, num_kv_heads=32)
    arguments = {**sizes, **read_rope(fields, sizes), **read_windows(fields, sizes), "qk_norm": "head"}
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
    hf=_HF,
    # torchtune, models/qwen3/_convert_weights.py
    torchtune=torchtune_layout(_HF, paired=False),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)
