"""The table of families, in small awkward sizes: name of the case -> transformers' configuration.

Every test of a family runs on every case, so one line here puts a family under all of them.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NamedTuple

import muse_glimmer_alone  # noqa: F401  # of which transformers has no class
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    Gemma4UnifiedTextConfig,
    GemmaConfig,
    Glm4Config,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeHybridConfig,
    Lfm2Config,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    MixtralConfig,
    MuseGlimmerTextConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    SeedOssConfig,
    SmolLM3Config,
)

# Vocabulary, width, feed-forward, layers, heads, key heads: all different, the vocabulary odd.
SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "rms_norm_eps": 1e-4,
}


class Case(NamedTuple):
    """What transformers builds the reference from; called, it makes the configuration anew.

    Args:
        config_class: transformers' class.
        arguments: of that class, beside and before those of `SIZES`.
        shipped: the config of ours that trains it end to end, of one case of each family.
    """

    config_class: type[PreTrainedConfig]
    arguments: dict[str, Any]
    shipped: str

    def __call__(self) -> PreTrainedConfig:
        return self.config_class(**SIZES | deepcopy(self.arguments))


def case(config_class: type[PreTrainedConfig], shipped: str = "", **arguments: Any) -> Case:
    return Case(config_class, arguments, shipped)


@torch.no_grad()
def stir(model: nn.Module) -> None:
    """Give a model norms that are not one, and logits that are not flat, in place."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    # Where scores are divided by nothing, queries of full length would attend to one key alone: rounding would decide.
    is_bare = [getattr(module, "scaling", 0.0) == 1.0 for module in model.modules()]
    for name, tensor in model.state_dict().items():
        if name.endswith("q_norm.weight") and any(is_bare):
            tensor.mul_(0.3)
        elif name.endswith("layer_scalar"):
            tensor.mul_(1.0 + torch.randn_like(tensor) * 0.2)


def rope(kind: str, base: float, **others: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": base, **others}


def longrope(num_frequencies: int) -> dict[str, Any]:
    short = [1.0 + 0.1 * index for index in range(num_frequencies)]
    long = [1.5 + 0.7 * index for index in range(num_frequencies)]
    return rope("longrope", 300.0, short_factor=short, long_factor=long)


YARN = rope("yarn", 1e4, factor=4.0, original_max_position_embeddings=16)
LLAMA3_ROPE = rope(
    "llama3",
    500.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
GRANITE = {
    "embedding_multiplier": 1.75,
    "attention_multiplier": 0.21,
    "residual_multiplier": 0.6,
    "logits_scaling": 0.7,
}
# A padding id's row of the reference's embedding would get no gradient.
UNPADDED = {"pad_token_id": None}
ATTENTION_ALONE = {
    "num_local_experts": 0,
    "layer_types": ["attention"] * 3,
    "intermediate_size": 54,
    "shared_intermediate_size": 54,
    "position_embedding_type": "rope",
    # Of what there is none of.
    "num_experts_per_tok": 0,
    "mamba_n_heads": 1,
}
GEMMA = {**UNPADDED, "head_dim": 10}
# Five layers, of which the third sees everything.
MIXED = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
SCALED = {"full_attention": rope("linear", 900.0, factor=2.5), "sliding_attention": rope("default", 300.0)}
SLIDING = rope("default", 300.0)
PHI = {**UNPADDED, "eos_token_id": None}
LONG_PHI = {**PHI, "max_position_embeddings": 90, "original_max_position_embeddings": 29}
# Experts' widths are multiples of 8, which the reference's kernel for them needs.
EXPERTS = {**UNPADDED, "intermediate_size": 56}
QWEN3_EXPERTS = {**EXPERTS, "num_experts": 7, "moe_intermediate_size": 24}

LFM2 = {
    **UNPADDED,
    "norm_eps": 1e-4,
    "block_auto_adjust_ff_dim": False,
    "rope_theta": 600.0,
}
# Heads of two widths, a share of the wider ones' channels turns; where nothing else is said, no table of inputs.
GEMMA4 = {
    **UNPADDED,
    "num_hidden_layers": 5,
    "layer_types": [*MIXED[:4], "full_attention"],
    "head_dim": 10,
    "global_head_dim": 14,
    "hidden_size_per_layer_input": 0,
    "sliding_window": 7,
    "final_logit_softcapping": 3.0,
    "rope_parameters": {
        "full_attention": rope("proportional", 900.0, partial_rotary_factor=0.5),
        "sliding_attention": SLIDING,
    },
}
# Of six layers the last three share the keys of the third and the second. Six channels of a layer's input may all be
# near zero, and are normed after that: rounding would be all that is left.
GEMMA4_SHARING = {
    **GEMMA4,
    "rms_norm_eps": 5e-2,
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"] * 2,
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
    "vocab_size_per_layer_input": 67,
    "hidden_size_per_layer_input": 6,
}

MUSE_GLIMMER = {
    **UNPADDED,
    "head_dim": 10,
    "sliding_window": 7,
    "post_norm_eps": 1e-3,
    # Queries and keys have unit length: with the published 3.87 so narrow heads would grow rounding.
    "qk_scale_factor": 1.3,
    "output_multiplier": 0.3,
    "final_logit_softcapping": 3.0,
}
QWEN3_5 = {
    **UNPADDED,
    # A head that forgets within a token reads q k v, which is normed however small it is: with random weights its
    # rounding would be all that is left.
    "rms_norm_eps": 1e-2,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "rope_parameters": rope("default", 1e4, partial_rotary_factor=0.25),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 9,
    "linear_value_head_dim": 7,
}

# Windows are shorter than every text of the tests.
CASES: dict[str, Case] = {
    "llama": case(LlamaConfig, "llama2/7B_full", rope_theta=500.0),
    "llama-tied": case(LlamaConfig, "smollm2/135M_full", tie_word_embeddings=True),
    "llama-wide-heads": case(LlamaConfig, head_dim=14),
    "llama-biases": case(LlamaConfig, attention_bias=True, mlp_bias=True),
    "llama-linear-rope": case(LlamaConfig, rope_parameters=rope("linear", 1e4, factor=2.5)),
    "llama-yarn-rope": case(LlamaConfig, "code_llama2/7B_full", rope_parameters=YARN),
    "llama-yarn-fractional": case(
        LlamaConfig,
        rope_parameters={
            **YARN,
            "beta_fast": 3.0,
            "beta_slow": 0.3,
            "attention_factor": 1.3,
            "truncate": False,
        },
    ),
    "llama-dynamic-rope": case(LlamaConfig, rope_parameters=rope("dynamic", 700.0, factor=3.0)),
    "llama-yarn-scales": case(
        LlamaConfig, rope_parameters={**YARN, "mscale": 0.6, "mscale_all_dim": 1.7, "factor": 6.0}
    ),
    "llama3.1": case(LlamaConfig, "llama3_1/8B_full", rope_parameters=LLAMA3_ROPE),
    "llama3.2-tied": case(
        LlamaConfig,
        "llama3_2/1B_full",
        rope_parameters={**LLAMA3_ROPE, "factor": 32.0},
        tie_word_embeddings=True,
    ),
    "gemma": case(GemmaConfig, "gemma/2B_full", **GEMMA),
    "gemma-untied": case(
        GemmaConfig,
        **UNPADDED,
        head_dim=8,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        attention_bias=True,
    ),
    "gemma2": case(
        Gemma2Config,
        "gemma2/9B_full",
        **GEMMA,
        sliding_window=7,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma2-one-cap": case(
        Gemma2Config,
        **GEMMA,
        num_hidden_layers=5,
        layer_types=MIXED,
        sliding_window=5,
        attn_logit_softcapping=None,
        final_logit_softcapping=3.0,
        tie_word_embeddings=False,
    ),
    "gemma3": case(
        Gemma3TextConfig,
        "gemma3/1B_full",
        **GEMMA,
        num_hidden_layers=7,
        sliding_window=7,
        query_pre_attn_scalar=12,
        rope_parameters=SCALED,
    ),
    "gemma3-capped": case(
        Gemma3TextConfig,
        **GEMMA,
        num_hidden_layers=5,
        layer_types=MIXED,
        sliding_window=3,
        final_logit_softcapping=3.0,
        attention_bias=True,
        tie_word_embeddings=False,
    ),
    "gemma4": case(
        Gemma4TextConfig,
        "gemma4/31B_full",
        **GEMMA4,
        attention_k_eq_v=True,
        num_global_key_value_heads=3,
    ),
    "gemma4-sharing": case(Gemma4TextConfig, "gemma4/E2B_full", **GEMMA4_SHARING),
    "gemma4-sharing-biases-untied": case(
        Gemma4TextConfig,
        **GEMMA4_SHARING
        | {
            "num_kv_shared_layers": 1,
            "use_double_wide_mlp": False,
            "final_logit_softcapping": None,
            "global_head_dim": GEMMA4["head_dim"],
        },
        attention_bias=True,
        tie_word_embeddings=False,
    ),
    "gemma4-experts": case(
        Gemma4TextConfig,
        **GEMMA4 | {"num_hidden_layers": 3, "layer_types": MIXED[:3], "rms_norm_eps": 1e-2},
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        enable_moe_block=True,
        num_experts=7,
        top_k_experts=3,
        moe_intermediate_size=24,
    ),
    "gemma4-unified": case(
        Gemma4UnifiedTextConfig,
        **{name: value for name, value in GEMMA4.items() if name != "hidden_size_per_layer_input"},
    ),
    "phi3-window": case(Phi3Config, "phi3/mini_full", **PHI, sliding_window=7),
    # The original length lies between the harness's shorter texts and its positions from 30 on.
    "phi3-longrope-short": case(Phi3Config, **LONG_PHI, rope_parameters=longrope(4), sliding_window=262_144),
    # Nearly every text of the harness is a long one.
    "phi3-longrope-long": case(
        Phi3Config,
        **PHI,
        num_key_value_heads=6,
        max_position_embeddings=3,
        original_max_position_embeddings=2,
        rope_parameters=longrope(4),
    ),
    "phi4": case(Phi3Config, "phi4/14B_full", **PHI, rope_theta=250.0, num_key_value_heads=3),
    "phi4-mini": case(
        Phi3Config,
        **LONG_PHI,
        rope_scaling=longrope(3),
        partial_rotary_factor=0.75,
        tie_word_embeddings=True,
    ),
    "olmo2": case(Olmo2Config, "olmo2/7B_full", **UNPADDED, rope_theta=500.0),
    "olmo2-tied-biases": case(
        Olmo2Config, **UNPADDED, num_key_value_heads=6, tie_word_embeddings=True, attention_bias=True
    ),
    "olmo3": case(
        Olmo3Config,
        "olmo3/7B_full",
        **UNPADDED,
        num_hidden_layers=5,
        sliding_window=7,
        rope_parameters={"full_attention": {**YARN, "attention_factor": 1.2}, "sliding_attention": SLIDING},
    ),
    "olmo3-stretched": case(
        Olmo3Config,
        **UNPADDED,
        num_hidden_layers=5,
        layer_types=MIXED,
        sliding_window=3,
        attention_bias=True,
        tie_word_embeddings=True,
        rope_parameters={
            "full_attention": rope("dynamic", 700.0, factor=3.0),
            "sliding_attention": rope("linear", 300.0, factor=1.5),
        },
    ),
    "ministral3": case(
        Ministral3Config,
        "ministral3/3B_full",
        **UNPADDED,
        head_dim=10,
        rope_parameters={**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.4},
    ),
    "ministral3-window-tied": case(
        Ministral3Config,
        **UNPADDED,
        head_dim=8,
        sliding_window=7,
        tie_word_embeddings=True,
        rope_parameters={**YARN, "original_max_position_embeddings": 5, "llama_4_scaling_beta": 0.2},
    ),
    "mixtral": case(
        MixtralConfig, "llama2/7B_full", **EXPERTS, num_local_experts=5, num_experts_per_tok=2, head_dim=14
    ),
    "mixtral-window": case(
        MixtralConfig,
        **EXPERTS,
        num_local_experts=4,
        num_experts_per_tok=1,
        sliding_window=7,
        head_dim=8,
        tie_word_embeddings=True,
    ),
    "qwen3-moe": case(
        Qwen3MoeConfig,
        "qwen3/8B_full",
        **QWEN3_EXPERTS,
        head_dim=14,
        num_experts_per_tok=3,
        norm_topk_prob=True,
    ),
    # Weights as the router gives them.
    "qwen3-moe-dense-layers": case(
        Qwen3MoeConfig,
        **QWEN3_EXPERTS,
        num_hidden_layers=5,
        num_experts_per_tok=2,
        mlp_only_layers=[0, 3],
        attention_bias=True,
        tie_word_embeddings=True,
    ),
    "mistral": case(MistralConfig, "mistral/7B_full", sliding_window=7),
    "mistral-no-window": case(MistralConfig, sliding_window=None),
    "mistral-nemo": case(
        MistralConfig,
        "mistral/nemo_12B_full",
        sliding_window=None,
        head_dim=10,
        rope_parameters=rope("default", 1e6),
    ),
    "mistral-tied": case(MistralConfig, sliding_window=9, tie_word_embeddings=True),
    "qwen2": case(Qwen2Config),
    "qwen2-tied": case(Qwen2Config, "qwen2/0.5B_full", tie_word_embeddings=True),
    "qwen2-late-windows": case(Qwen2Config, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen2-listed-windows": case(
        Qwen2Config,
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=0,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "qwen2.5-yarn": case(Qwen2Config, "qwen2_5/7B_full", rope_parameters=YARN),
    "qwen3": case(Qwen3Config, "qwen3/8B_full", head_dim=14),
    "qwen3-tied": case(Qwen3Config, head_dim=12, tie_word_embeddings=True),
    "qwen3-biases-windows": case(
        Qwen3Config,
        head_dim=8,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=2,
    ),
    "qwen3.5": case(Qwen3_5TextConfig, "qwen3_5/9B_full", **QWEN3_5),
    "qwen3.5-moe": case(
        Qwen3_5MoeTextConfig,
        "qwen3_5/9B_full",
        **{**QWEN3_5, "num_hidden_layers": 3, "rms_norm_eps": 5e-2},
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        num_experts=7,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
    ),
    # Layers in another order, heads of all widths, more states than one for each key, a share of channels that is odd.
    "qwen3.5-listed": case(
        Qwen3_5TextConfig,
        **{
            **QWEN3_5,
            "num_hidden_layers": 3,
            "head_dim": 22,
            "linear_num_value_heads": 2,
            "rope_parameters": rope("default", 500.0, partial_rotary_factor=8 / 22),
        },
        layer_types=["full_attention", "linear_attention", "linear_attention"],
        linear_conv_kernel_dim=2,
        tie_word_embeddings=True,
        attention_bias=True,
    ),
    # Three heads of values for each of keys, whose rows stand together in files.
    "qwen3_next": case(
        Qwen3NextConfig,
        "qwen3_5/9B_full",
        **{**QWEN3_5, "num_hidden_layers": 3, "rms_norm_eps": 5e-2},
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        num_experts=7,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
    ),
    "qwen3_next-dense-layers": case(
        Qwen3NextConfig,
        **{**QWEN3_5, "num_hidden_layers": 3, "rms_norm_eps": 5e-2, "linear_num_value_heads": 2},
        layer_types=["linear_attention", "linear_attention", "full_attention"],
        num_experts=5,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
        mlp_only_layers=[1],
        norm_topk_prob=False,
        attention_bias=True,
        tie_word_embeddings=True,
    ),
    # Bounds within which some of the gates and of what they open lie, and others not.
    "gpt_oss": case(
        GptOssConfig,
        "gpt_oss/20B_full",
        **{**EXPERTS, "intermediate_size": 24},
        head_dim=10,
        num_local_experts=7,
        num_experts_per_tok=3,
        sliding_window=7,
        swiglu_alpha=1.3,
        swiglu_limit=0.9,
        rope_parameters={**YARN, "truncate": False},
    ),
    "gpt_oss-listed": case(
        GptOssConfig,
        **{**EXPERTS, "intermediate_size": 40},
        num_hidden_layers=5,
        layer_types=MIXED,
        head_dim=8,
        num_local_experts=5,
        num_experts_per_tok=1,
        sliding_window=3,
        attention_bias=False,
        tie_word_embeddings=True,
        rope_parameters=rope("linear", 700.0, factor=2.0),
    ),
    "smollm3": case(
        SmolLM3Config, "smollm3/3B_full", **UNPADDED, num_hidden_layers=4, tie_word_embeddings=True
    ),
    "smollm3-listed": case(
        SmolLM3Config,
        **UNPADDED,
        no_rope_layers=[0, 1, 0],
        use_sliding_window=True,
        sliding_window=6,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
        rope_parameters=YARN,
    ),
    "glm4": case(Glm4Config, "qwen3/8B_full", **UNPADDED, head_dim=12, rope_theta=300.0),
    "glm4-yarn-tied": case(
        Glm4Config,
        **UNPADDED,
        head_dim=10,
        num_key_value_heads=3,
        attention_bias=False,
        tie_word_embeddings=True,
        rope_parameters={**YARN, "partial_rotary_factor": 0.8},
    ),
    "seed-oss": case(
        SeedOssConfig,
        "seed_oss/36B_full",
        **UNPADDED,
        head_dim=10,
        attention_dropout=0.0,
        residual_dropout=0.0,
        rope_theta=900.0,
    ),
    "seed-oss-other-biases": case(
        SeedOssConfig, **UNPADDED, head_dim=8, attention_bias=False, attention_out_bias=True
    ),
    "seed-oss-all-biases-tied": case(
        SeedOssConfig,
        **UNPADDED,
        head_dim=8,
        attention_out_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    ),
    "lfm2": case(
        Lfm2Config,
        "lfm2/1.2B_full",
        **LFM2,
        num_hidden_layers=4,
        layer_types=["conv", "full_attention", "conv", "conv"],
    ),
    "lfm2-attention-first-untied": case(
        Lfm2Config,
        **LFM2,
        num_hidden_layers=3,
        layer_types=["full_attention", "conv", "full_attention"],
        num_key_value_heads=3,
        conv_L_cache=5,
        conv_bias=True,
        tie_word_embeddings=False,
        rope_parameters=YARN,
    ),
    # Of five layers the first and the last have neither window nor positions.
    "muse_glimmer": case(
        MuseGlimmerTextConfig,
        "muse_glimmer/30B_full",
        **MUSE_GLIMMER,
        num_hidden_layers=5,
        rope_theta=300.0,
    ),
    # Windows and positions in other layers than by their place, each apart.
    "muse_glimmer-listed": case(
        MuseGlimmerTextConfig,
        **MUSE_GLIMMER,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        layer_rope_theta=[1e4, 0, 1e4],
        num_attention_heads=3,
        num_key_value_heads=1,
        attention_bias=True,
        tie_word_embeddings=True,
        rope_parameters=YARN,
    ),
    "granite4": case(GraniteMoeHybridConfig, "granite/2B_full", **GRANITE, **ATTENTION_ALONE),
    "granite4-no-positions-tied": case(
        GraniteMoeHybridConfig,
        **GRANITE,
        **ATTENTION_ALONE | {"position_embedding_type": None},
        attention_bias=True,
        tie_word_embeddings=True,
    ),
    "granite": case(GraniteConfig, "granite/2B_full", **GRANITE),
    "granite-tied-biases": case(
        GraniteConfig, **GRANITE, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
}
