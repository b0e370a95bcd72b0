"""What config.json of Liquid AI's published checkpoints says, as far as it matters: builder -> content."""

from __future__ import annotations

from typing import Any

_LFM2: dict[str, Any] = {
    "architectures": ["Lfm2ForCausalLM"],
    "block_auto_adjust_ff_dim": True,
    "block_ffn_dim_multiplier": 1.0,
    "block_mlp_init_scale": 1.0,
    "block_multiple_of": 256,
    "block_norm_eps": 1e-05,
    "block_out_init_scale": 1.0,
    "block_use_swiglu": True,
    "block_use_xavier_init": True,
    "bos_token_id": 1,
    "conv_L_cache": 3,
    "conv_bias": False,
    "conv_use_xavier_init": True,
    "eos_token_id": 7,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    "initializer_range": 0.02,
    "max_position_embeddings": 128000,
    "model_type": "lfm2",
    "norm_eps": 1e-05,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_pos_enc": True,
    "vocab_size": 65536,
}


def _sized(hidden: int, heads: int, width: int, **others: Any) -> dict[str, Any]:
    sizes = dict.fromkeys(("hidden_size", "block_dim", "conv_dim", "conv_dim_out"), hidden)
    return {
        **_LFM2,
        **sizes,
        "num_attention_heads": heads,
        "num_heads": heads,
        "block_ff_dim": width,
        **others,
    }


_ATTENDING = (2, 5, 9, 13, 17, 21, 24, 27)
PUBLISHED: dict[str, dict[str, Any]] = {
    "lfm2_350m": _sized(1024, 16, 6656),
    "lfm2_700m": _sized(1536, 24, 10240),
    "lfm2_1_2b": _sized(2048, 32, 12288),
    "lfm2_2_6b": _sized(
        2048,
        32,
        10752,
        block_auto_adjust_ff_dim=False,
        intermediate_size=10752,
        full_attn_idxs=list(_ATTENDING),
        layer_types=["full_attention" if layer in _ATTENDING else "conv" for layer in range(30)],
        num_hidden_layers=30,
        theta=1000000.0,
    ),
}

COUNTS = {
    "lfm2_350m": 354_483_968,
    "lfm2_700m": 742_489_344,
    "lfm2_1_2b": 1_170_340_608,
    "lfm2_2_6b": 2_569_272_320,
}
