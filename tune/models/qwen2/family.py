"""How checkpoints of Qwen2 and Qwen2.5 name their weights, and what their config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.hf_config import finish, layer_range, read_rope, read_sizes, write_rope, write_sizes
from tune.models.hf_layout import hf_layout
from tune.models.torchtune_layout import torchtune_layout
from tune.modules import DecoderConfig, Family

_KINDS = ("full_attention", "sliding_attention")


def read_windows(fields: ConfigFields, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `sliding_window` and `sliding_layers`: windows from one layer on, or as `layer_types` lists them.

    Args:
        fields: of config.json.
        sizes: from `read_sizes`.
    """
    is_used = fields.flag("use_sliding_window", False)
    window = fields.optional_integer("sliding_window", 4096)
    first = fields.integer("max_window_layers", 28)
    kinds = fields.choices("layer_types", sizes["num_layers"], *_KINDS)
    has_window = is_used and window is not None
    if kinds is not None:
        layers = tuple(index for index, kind in enumerate(kinds) if kind == "sliding_attention")
        if layers and not has_window:
            fields.problem(
                "`layer_types` asks for windows, and `use_sliding_window` or `sliding_window` says there are none"
            )
    else:
        layers = tuple(index for index in layer_range(sizes["num_layers"]) if has_window and index >= first)
    return {"sliding_window": window if has_window and layers else None, "sliding_layers": layers}


def write_windows(config: DecoderConfig) -> dict[str, Any]:
    """Return the fields of windows as Qwen's config.json has them."""
    if not config.sliding_layers:
        return {"use_sliding_window": False, "sliding_window": None}
    return {
        "use_sliding_window": True,
        "sliding_window": config.sliding_window,
        "max_window_layers": config.sliding_layers[0],
        "layer_types": [_KINDS[layer in config.sliding_layers] for layer in range(config.num_layers)],
    }


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=32_768, norm_eps=1e-6, num_kv_heads=32)
    arguments = {**sizes, **read_rope(fields, sizes), **read_windows(fields, sizes), "attn_bias": "qkv"}
    fields.expect("hidden_act", "silu")
    fields.expect("use_mrope", False)
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_sizes(config, has_head_dim=False),
        **write_rope(config),
        **write_windows(config),
        "hidden_act": "silu",
    }


_HF = hf_layout()

QWEN2 = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    hf=_HF,
    # torchtune turns halves here, as Hugging Face does.  # torchtune, models/qwen2/_convert_weights.py
    torchtune=torchtune_layout(_HF, paired=False),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)
