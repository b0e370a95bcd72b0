"""config.json of the hub's Llamas, Mistrals, Qwens, SmolLMs and Granites, and how many parameters they have."""

from __future__ import annotations

from typing import Any

# The published files, without fields that say nothing about the numbers.
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
LLAMA2 = {
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_key_value_heads": 32,
    "rope_theta": 10000.0,
    "vocab_size": 32000,
}
THIRTEEN = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 40,
}
SEVENTY = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
}
LONG = {
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
SMALL = {
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_hidden_layers": 16,
    "rope_scaling": {**LONG["rope_scaling"], "factor": 32.0},
    "tie_word_embeddings": True,
}
CODE = {
    "intermediate_size": 11008,
    "max_position_embeddings": 16384,
    "num_key_value_heads": 32,
    "rope_theta": 1000000,
    "vocab_size": 32016,
}
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rope_interleaved": False,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "vocab_size": 49152,
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
NEWER_MISTRAL = {"rope_theta": 1000000.0, "sliding_window": None}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN2_1_5B = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
}
QWEN2_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
}
QWEN2_72B = {
    **SEVENTY,
    "intermediate_size": 29568,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
}
QWEN2_14B = {
    **QWEN2_72B,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_hidden_layers": 48,
}
QWEN2_32B = {**QWEN2_14B, "intermediate_size": 27648, "num_hidden_layers": 64}
BASE = {"max_position_embeddings": 131072, "sliding_window": 131072}
LARGE_BASE = {**BASE, "rms_norm_eps": 1e-05}
QWEN3 = {
    **QWEN2,
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
}
QWEN3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "tie_word_embeddings": False,
}
SMOLLM3 = {
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "model_type": "smollm3",
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "pad_token_id": 128004,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 128256,
}
GRANITE = {
    **{name: LLAMA[name] for name in ("attention_bias", "attention_dropout", "hidden_act", "mlp_bias")},
    "architectures": ["GraniteForCausalLM"],
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12.0,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "logits_scaling": 8.0,
    "max_position_embeddings": 4096,
    "model_type": "granite",
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "vocab_size": 49155,
}
GRANITE_8B = {
    "attention_multiplier": 0.0078125,
    "hidden_size": 4096,
    "intermediate_size": 12800,
    "logits_scaling": 16.0,
}
LONG_2B = {"max_position_embeddings": 131072, "rope_theta": 5000000.0}
LONG_8B = {"max_position_embeddings": 131072, "rope_theta": 10000000.0, **GRANITE_8B}

# Builder -> what is published: config.json, and the parameters, a tied matrix counted once.
BUILDERS: dict[str, tuple[dict[str, Any], int]] = {
    "llama2_7b": (LLAMA | LLAMA2, 6_738_415_616),
    "llama2_13b": (LLAMA | LLAMA2 | THIRTEEN, 13_015_864_320),
    "llama2_70b": (LLAMA | LLAMA2 | SEVENTY | {"num_key_value_heads": 8}, 68_976_648_192),
    "llama3_8b": (LLAMA, 8_030_261_248),
    "llama3_70b": (LLAMA | SEVENTY, 70_553_706_496),
    "llama3_1_8b": (LLAMA | LONG, 8_030_261_248),
    "llama3_1_70b": (LLAMA | LONG | SEVENTY, 70_553_706_496),
    "llama3_1_405b": (
        LLAMA
        | LONG
        | {
            "hidden_size": 16384,
            "intermediate_size": 53248,
            "num_attention_heads": 128,
            "num_hidden_layers": 126,
        },
        405_853_388_800,
    ),
    "llama3_2_1b": (LLAMA | SMALL, 1_235_814_400),
    "llama3_2_3b": (
        LLAMA
        | SMALL
        | {"head_dim": 128, "hidden_size": 3072, "num_attention_heads": 24, "num_hidden_layers": 28},
        3_212_749_824,
    ),
    "llama3_3_70b": (LLAMA | LONG | SEVENTY, 70_553_706_496),
    "code_llama2_7b": (LLAMA | CODE, 6_738_546_688),
    "code_llama2_13b": (LLAMA | CODE | THIRTEEN, 13_016_028_160),
    "code_llama2_34b": (
        LLAMA
        | CODE
        | SEVENTY
        | {
            "intermediate_size": 22016,
            "num_hidden_layers": 48,
            "num_key_value_heads": 8,
            "vocab_size": 32000,
        },
        33_743_970_304,
    ),
    "code_llama2_70b": (LLAMA | CODE | SEVENTY | {"num_key_value_heads": 8}, 68_976_910_336),
    "smollm2_135m": (LLAMA | SMOLLM2, 134_515_008),
    "smollm2_360m": (
        LLAMA
        | SMOLLM2
        | {
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_attention_heads": 15,
            "num_hidden_layers": 32,
            "num_key_value_heads": 5,
        },
        361_821_120,
    ),
    "smollm2_1_7b": (
        LLAMA
        | SMOLLM2
        | {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_hidden_layers": 24,
            "num_key_value_heads": 32,
            "rope_theta": 130000,
        },
        1_711_376_384,
    ),
    "mistral_7b": (MISTRAL, 7_241_732_096),
    "mistral_7b_v0_2": (MISTRAL | NEWER_MISTRAL, 7_241_732_096),
    "mistral_7b_v0_3": (MISTRAL | NEWER_MISTRAL | {"vocab_size": 32768}, 7_248_023_552),
    "mistral_nemo_12b": (
        MISTRAL
        | NEWER_MISTRAL
        | {
            "head_dim": 128,
            "hidden_size": 5120,
            "max_position_embeddings": 131072,
            "num_hidden_layers": 40,
            "vocab_size": 131072,
        },
        12_247_782_400,
    ),
    "mistral_small_3_24b": (
        MISTRAL
        | NEWER_MISTRAL
        | {
            "head_dim": 128,
            "hidden_size": 5120,
            "intermediate_size": 32768,
            "num_hidden_layers": 40,
            "rope_theta": 100000000.0,
            "vocab_size": 131072,
        },
        23_572_403_200,
    ),
    "qwen2_0_5b": (QWEN2, 494_032_768),
    "qwen2_1_5b": (QWEN2 | QWEN2_1_5B, 1_543_714_304),
    "qwen2_7b": (QWEN2 | QWEN2_7B, 7_615_616_512),
    "qwen2_72b": (QWEN2 | QWEN2_72B | {"rms_norm_eps": 1e-05}, 72_706_203_648),
    "qwen2_72b_instruct": (QWEN2 | QWEN2_72B, 72_706_203_648),
    "qwen2_5_0_5b": (QWEN2, 494_032_768),
    "qwen2_5_3b": (
        QWEN2
        | {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "max_window_layers": 36,
            "num_attention_heads": 16,
            "num_hidden_layers": 36,
        },
        3_085_938_688,
    ),
    **{
        f"qwen2_5_{size}{kind}": (QWEN2 | sizes | changes, count)
        for size, sizes, base, count in (
            ("1_5b", QWEN2_1_5B, BASE, 1_543_714_304),
            ("7b", QWEN2_7B, BASE, 7_615_616_512),
            ("14b", QWEN2_14B, LARGE_BASE, 14_770_033_664),
            ("32b", QWEN2_32B, LARGE_BASE, 32_763_876_352),
            ("72b", QWEN2_72B, LARGE_BASE, 72_706_203_648),
        )
        for kind, changes in (("", base), ("_base", base), ("_instruct", {}))
    },
    **{
        f"qwen3_{size}{kind}": (QWEN3 | sizes | positions, count)
        for size, sizes, count in (
            ("0_6b", {}, 596_049_920),
            ("1_7b", {"hidden_size": 2048, "intermediate_size": 6144}, 1_720_574_976),
            (
                "4b",
                QWEN3_8B | {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True},
                4_022_468_096,
            ),
            ("8b", QWEN3_8B, 8_190_735_360),
            (
                "14b",
                QWEN3_8B
                | {
                    "hidden_size": 5120,
                    "intermediate_size": 17408,
                    "num_attention_heads": 40,
                    "num_hidden_layers": 40,
                },
                14_768_307_200,
            ),
        )
        for kind, positions in (("", {}), ("_instruct", {}), ("_base", {"max_position_embeddings": 32768}))
    },
    "qwen3_32b": (
        QWEN3
        | QWEN3_8B
        | {
            "hidden_size": 5120,
            "intermediate_size": 25600,
            "num_attention_heads": 64,
            "num_hidden_layers": 64,
        },
        32_762_123_264,
    ),
    "smollm3_3b": (SMOLLM3, 3_075_098_624),
    "granite_3_0_2b": (GRANITE, 2_533_531_648),
    "granite_3_0_8b": (GRANITE | GRANITE_8B, 8_170_848_256),
    "granite_3_1_2b": (GRANITE | LONG_2B, 2_533_531_648),
    "granite_3_1_8b": (GRANITE | LONG_8B, 8_170_848_256),
    "granite_3_2_2b": (GRANITE | LONG_2B, 2_533_531_648),
    "granite_3_2_8b": (GRANITE | LONG_8B, 8_170_848_256),
    "granite_3_3_2b": (GRANITE | LONG_2B | {"vocab_size": 49159}, 2_533_539_840),
    "granite_3_3_8b": (GRANITE | LONG_8B | {"vocab_size": 49159}, 8_170_864_640),
}

PUBLISHED = {name: content for name, (content, _) in BUILDERS.items()}
COUNTS = {name: count for name, (_, count) in BUILDERS.items()}
