"""What config.json of the published Gemma 4 checkpoints says, and how many numbers their text models have.

The 31B's is its own, as tools print it; of the others as public code that reads them has it.
"""

from __future__ import annotations

from typing import Any

_TOKENS = {
    "audio_token_id": 258881,
    "boa_token_id": 256000,
    "boi_token_id": 255999,
    "eoa_token_id": 258883,
    "eoa_token_index": 258883,
    "eoi_token_id": 258882,
    "eos_token_id": [1, 106],
    "image_token_id": 258880,
    "initializer_range": 0.02,
    "video_token_id": 258884,
    "vision_soft_tokens_per_image": 280,
}


def _whole(
    hidden_size: int, intermediate_size: int, kinds: tuple[int, int], heads: tuple[int, int], **text: Any
) -> dict[str, Any]:
    """Return a config.json: `kinds` are the layers and every which has no window, `heads` those of queries and keys."""
    num_layers, interval = kinds
    full = {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"}
    content = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attention_k_eq_v": True,
        "bos_token_id": 2,
        "dtype": "bfloat16",
        "enable_moe_block": False,
        "eos_token_id": 1,
        "expert_intermediate_size": None,
        "final_logit_softcapping": 30.0,
        "global_head_dim": 512,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": hidden_size,
        "hidden_size_per_layer_input": 0,
        "initializer_range": 0.02,
        "intermediate_size": intermediate_size,
        "layer_types": [
            "sliding_attention" if (layer + 1) % interval else "full_attention" for layer in range(num_layers)
        ],
        "max_position_embeddings": 262144,
        "model_type": "gemma4_text",
        "moe_intermediate_size": None,
        "num_attention_heads": heads[0],
        "num_experts": None,
        "num_global_key_value_heads": None,
        "num_hidden_layers": num_layers,
        "num_key_value_heads": heads[1],
        "num_kv_shared_layers": 0,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": 1024,
        "tie_word_embeddings": True,
        "top_k_experts": None,
        "use_bidirectional_attention": "vision",
        "use_cache": True,
        "use_double_wide_mlp": False,
        "vocab_size": 262144,
        "vocab_size_per_layer_input": 262144,
        **text,
    }
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "audio_config": None,
        "dtype": "bfloat16",
        "model_type": "gemma4",
        "text_config": content,
        "tie_word_embeddings": True,
        "transformers_version": "5.5.0.dev0",
        "vision_config": {"hidden_size": 1152, "model_type": "gemma4_vision", "num_hidden_layers": 27},
        **_TOKENS,
    }


_SMALL = {
    "attention_k_eq_v": False,
    "hidden_size_per_layer_input": 256,
    "max_position_embeddings": 131072,
    "sliding_window": 512,
    "use_bidirectional_attention": None,
}
_EXPERTS = {
    "enable_moe_block": True,
    "moe_intermediate_size": 704,
    "num_experts": 128,
    "num_global_key_value_heads": 2,
    "top_k_experts": 8,
}
_12B = _whole(3840, 15360, (48, 6), (16, 8), num_global_key_value_heads=1, model_type="gemma4_unified_text")
_12B |= {"architectures": ["Gemma4UnifiedForConditionalGeneration"], "model_type": "gemma4_unified"}

PUBLISHED = {
    "gemma4_e2b": _whole(
        1536, 6144, (35, 5), (8, 1), **_SMALL, num_kv_shared_layers=20, use_double_wide_mlp=True
    ),
    "gemma4_e4b": _whole(2560, 10240, (42, 6), (8, 2), **_SMALL, num_kv_shared_layers=18),
    "gemma4_12b": _12B,
    "gemma4_31b": _whole(5376, 21504, (60, 6), (32, 16), num_global_key_value_heads=4),
    "gemma4_26b_a4b": _whole(2816, 2112, (30, 6), (16, 8), **_EXPERTS),
}
# Of the whole checkpoints, as the hub counts them in bf16; what sees and hears in them, by the classes of transformers;
# keys and values of layers that share others', which nobody reads; and a number for each layer that is not trained.
_NUMBERS = {
    "gemma4_e2b": (5_123_178_051, 475_728_160, 18_880_512, 35),
    "gemma4_e4b": (7_996_156_490, 478_087_456, 55_055_616, 42),
    "gemma4_12b": (11_959_730_224, 52_379_904, 0, 48),
    "gemma4_31b": (31_273_088_876, 575_743_536, 0, 60),
    "gemma4_26b_a4b": (25_805_936_206, 572_794_416, 0, 30),
}
COUNTS = {name: whole - sum(others) for name, (whole, *others) in _NUMBERS.items()}
