"""What config.json of published Qwen3.5 and Qwen3-Next says, and how many numbers their text models have."""

from __future__ import annotations

from typing import Any

_TEXT = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_output_gate": True,
    "dtype": "bfloat16",
    "eos_token_id": 248044,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_value_head_dim": 128,
    "mamba_ssm_dtype": "float32",
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "model_type": "qwen3_5_text",
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
    "use_cache": True,
    "vocab_size": 248320,
}


def _whole(
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    heads: tuple[int, int],
    num_states: int,
    *,
    tied: bool,
    **others: Any,
) -> dict[str, Any]:
    """Return a config.json: heads are of queries and of keys."""
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
    text = {
        **_TEXT,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "layer_types": kinds * (num_layers // 4),
        "linear_num_value_heads": num_states,
        "num_attention_heads": heads[0],
        "num_hidden_layers": num_layers,
        "num_key_value_heads": heads[1],
        "tie_word_embeddings": tied,
        **others,
    }
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "image_token_id": 248056,
        "model_type": "qwen3_5",
        "text_config": text,
        "tie_word_embeddings": tied,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": 248057,
        "vision_config": {"depth": 27, "hidden_size": 1152, "model_type": "qwen3_5", "patch_size": 16},
        "vision_end_token_id": 248054,
        "vision_start_token_id": 248053,
    }


PUBLISHED = {
    "qwen3_5_0_8b": _whole(1024, 3584, 24, (8, 2), 16, tied=True),
    "qwen3_5_2b": _whole(2048, 6144, 24, (8, 2), 16, tied=True),
    "qwen3_5_4b": _whole(2560, 9216, 32, (16, 4), 32, tied=True),
    "qwen3_5_9b": _whole(4096, 12288, 32, (16, 4), 32, tied=False),
    "qwen3_5_27b": _whole(5120, 17408, 64, (24, 4), 48, tied=False, output_gate_type="swish"),
}
_EXPERTS = _whole(2048, 0, 40, (16, 2), 32, tied=False)
_EXPERTS |= {"architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe"}
_EXPERTS["text_config"] |= {
    "model_type": "qwen3_5_moe_text",
    "moe_intermediate_size": 512,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512,
}
del _EXPERTS["text_config"]["intermediate_size"], _EXPERTS["text_config"]["mlp_only_layers"]
PUBLISHED["qwen3_5_35b_a3b"] = _EXPERTS
PUBLISHED["qwen3_next_80b_a3b"] = {
    "architectures": ["Qwen3NextForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5120,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "model_type": "qwen3_next",
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# Of the text model alone, as tools count that convert it: without what sees pictures and what guesses further tokens.
COUNTS = {
    "qwen3_5_0_8b": 752_393_024,
    "qwen3_5_2b": 1_881_825_088,
    "qwen3_5_4b": 4_205_751_296,
    "qwen3_5_9b": 8_953_803_264,
    "qwen3_5_27b": 26_895_998_464,
    "qwen3_5_35b_a3b": 34_660_610_688,
    "qwen3_next_80b_a3b": 79_674_391_296,
}
