"""What config.json of the published Muse-Glimmer says, as far as it matters: builder -> content."""

from __future__ import annotations

from typing import Any

PUBLISHED: dict[str, dict[str, Any]] = {
    "muse_glimmer_30b": {
        "architectures": ["MuseGlimmerForConditionalGeneration"],
        "dtype": "bfloat16",
        "eos_token_id": [200001, 200008],
        "image_token_id": 200092,
        "model_type": "muse_glimmer",
        "out_hidden_size": 6144,
        "projector_hidden_act": "gelu",
        "projector_hidden_size": 4096,
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 200000,
            "eos_token_id": 200001,
            "final_logit_softcapping": 20.0,
            "head_dim": 128,
            "hidden_activation": "silu",
            "hidden_size": 6656,
            "initializer_range": 0.02,
            "intermediate_size": 19968,
            "layer_rope_theta": [500000.0, 500000.0, 500000.0, 0.0] * 13,
            "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 13,
            "max_position_embeddings": 131072,
            "model_type": "muse_glimmer_text",
            "num_attention_heads": 32,
            "num_hidden_layers": 52,
            "num_key_value_heads": 2,
            "output_multiplier": 0.19611613513818404,
            "pad_token_id": None,
            "post_norm_eps": 1e-08,
            "qk_scale_factor": 3.87,
            "rms_norm_eps": 1e-05,
            "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
            "sliding_window": 2048,
            "tie_word_embeddings": False,
            "use_cache": True,
            "vocab_size": 202048,
        },
        "transformers_version": "5.15.0.dev0",
        "video_token_id": 200091,
        "vision_config": {"hidden_size": 1536, "model_type": "muse_glimmer_vision", "num_hidden_layers": 50},
    }
}

# Of transformers' model in these sizes, without what sees.
COUNTS = {"muse_glimmer_30b": 27_854_780_928}
