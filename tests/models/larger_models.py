"""Small random models that hold a decoder of ours as their text part, by the name of the case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from cases import GEMMA, GEMMA4, GEMMA4_SHARING, MIXED, MUSE_GLIMMER, QWEN3_5, SCALED, SIZES, YARN, stir
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Gemma4AudioConfig,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4UnifiedTextConfig,
    Gemma4VisionConfig,
    Ministral3Config,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    MuseGlimmerConfig,
    MuseGlimmerForConditionalGeneration,
    MuseGlimmerTextConfig,
    MuseGlimmerVisionConfig,
    PixtralVisionConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5TextConfig,
    SiglipVisionConfig,
)
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5VisionConfig

# Prefixes of text model and head: as most of the hub has them, and as newer files do.
OLDER, NEWER = ("language_model.model.", "language_model.lm_head."), ("model.language_model.", "lm_head.")


def _gemma3(vocab_size: int) -> PreTrainedModel:
    text = Gemma3TextConfig(
        **SIZES | GEMMA | {"num_hidden_layers": 5, "vocab_size": vocab_size, "max_position_embeddings": 512},
        layer_types=MIXED,
        sliding_window=7,
        rope_parameters=SCALED,
    )
    vision = SiglipVisionConfig(
        hidden_size=12, intermediate_size=10, num_hidden_layers=1, num_attention_heads=2, image_size=28
    )
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=60)
    return Gemma3ForConditionalGeneration._from_config(config, attn_implementation="eager")


def _gemma4(vocab_size: int) -> PreTrainedModel:
    sizes = SIZES | GEMMA4_SHARING | {"vocab_size": vocab_size, "max_position_embeddings": 512}
    text = Gemma4TextConfig(**sizes | {"vocab_size_per_layer_input": vocab_size + 4, "pad_token_id": 0})
    heads = {"hidden_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1}
    vision = Gemma4VisionConfig(
        **heads, intermediate_size=10, num_key_value_heads=2, head_dim=8, position_embedding_size=4
    )
    audio = Gemma4AudioConfig(**heads, output_proj_dims=14, subsampling_conv_channels=[4, 2])
    config = Gemma4Config(text_config=text, vision_config=vision, audio_config=audio)
    return Gemma4ForConditionalGeneration._from_config(config, attn_implementation="eager")


def _gemma4_unified(vocab_size: int) -> PreTrainedModel:
    sizes = SIZES | GEMMA4 | {"vocab_size": vocab_size, "max_position_embeddings": 512}
    del sizes["hidden_size_per_layer_input"]
    heads = {"attention_k_eq_v": True, "num_global_key_value_heads": 3}
    text = Gemma4UnifiedTextConfig(**sizes | heads | {"pad_token_id": 0})
    vision = {"model_type": "gemma4_unified_vision", "patch_size": 2, "mm_embed_dim": 12, "mm_posemb_size": 5}
    audio = {"model_type": "gemma4_unified_audio", "audio_embed_dim": 6}
    config = Gemma4UnifiedConfig(text_config=text, vision_config=vision, audio_config=audio)
    return Gemma4UnifiedForConditionalGeneration._from_config(config, attn_implementation="eager")


def _qwen3_5(vocab_size: int) -> PreTrainedModel:
    text = Qwen3_5TextConfig(
        **SIZES | QWEN3_5 | {"vocab_size": vocab_size, "max_position_embeddings": 512, "rms_norm_eps": 0.1},
        mtp_num_hidden_layers=1,
    )
    vision = Qwen3_5VisionConfig(
        depth=1,
        hidden_size=12,
        intermediate_size=10,
        num_heads=2,
        out_hidden_size=48,
        num_position_embeddings=16,
    )
    tokens = {
        "image_token_id": 59,
        "video_token_id": 60,
        "vision_start_token_id": 57,
        "vision_end_token_id": 58,
    }
    config = Qwen3_5Config(text_config=text, vision_config=vision, **tokens)
    return Qwen3_5ForConditionalGeneration._from_config(config, attn_implementation="eager")


def _mistral3(text: PreTrainedConfig) -> PreTrainedModel:
    vision = PixtralVisionConfig(
        hidden_size=24, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, image_size=28
    )
    config = Mistral3Config(
        text_config=text,
        vision_config=vision,
        image_token_index=60,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    return Mistral3ForConditionalGeneration._from_config(config, attn_implementation="eager")


def _mistral(vocab_size: int) -> PreTrainedModel:
    sizes = SIZES | {"vocab_size": vocab_size, "max_position_embeddings": 512}
    return _mistral3(MistralConfig(**sizes, sliding_window=None, head_dim=10))


def _ministral3(vocab_size: int) -> PreTrainedModel:
    sizes = SIZES | {"vocab_size": vocab_size, "max_position_embeddings": 512}
    growing = {**YARN, "llama_4_scaling_beta": 0.3}
    return _mistral3(
        Ministral3Config(
            **sizes, head_dim=8, pad_token_id=None, tie_word_embeddings=True, rope_parameters=growing
        )
    )


def _muse_glimmer(vocab_size: int) -> PreTrainedModel:
    sizes = SIZES | MUSE_GLIMMER | {"vocab_size": vocab_size, "max_position_embeddings": 512}
    text = MuseGlimmerTextConfig(**sizes, rope_theta=300.0)
    vision = MuseGlimmerVisionConfig(
        hidden_size=12,
        intermediate_size=10,
        num_hidden_layers=1,
        num_attention_heads=2,
        pos_emb_height=4,
        pos_emb_width=4,
    )
    config = MuseGlimmerConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=vocab_size - 2,  # read as token 0, where there is no picture
        video_token_id=vocab_size - 1,
        out_hidden_size=48,
        projector_hidden_size=14,
    )
    return MuseGlimmerForConditionalGeneration._from_config(config, attn_implementation="eager")


def _qwen3_5_moe(vocab_size: int) -> PreTrainedModel:
    dense = _qwen3_5(vocab_size).config.to_dict()
    kept = {name: value for name, value in dense["text_config"].items() if name != "intermediate_size"}
    text = kept | {
        "model_type": "qwen3_5_moe_text",
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
    }
    vision = dense["vision_config"] | {"model_type": "qwen3_5_moe_vision"}
    config = Qwen3_5MoeConfig(
        **{name: value for name, value in dense.items() if name.endswith("token_id")},
        text_config=text,
        vision_config=vision,
    )
    return Qwen3_5MoeForConditionalGeneration._from_config(config, attn_implementation="eager")


# Each makes one with a vocabulary of the size given.
LARGER: dict[str, Callable[[int], PreTrainedModel]] = {
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    "gemma4-unified": _gemma4_unified,
    "mistral3": _mistral,
    "ministral3": _ministral3,
    "muse_glimmer": _muse_glimmer,
    "qwen3.5": _qwen3_5,
    "qwen3.5-moe": _qwen3_5_moe,
}
# How files have named text model and head, the oldest first, by `model_type`; others in both ways.
PREFIXES = dict.fromkeys(("gemma4", "gemma4_unified", "muse_glimmer", "qwen3_5", "qwen3_5_moe"), (NEWER,))


def random_larger(name: str, vocab_size: int = 61) -> PreTrainedModel:
    """Return a larger model with norms that are not one, and logits that are not flat."""
    torch.manual_seed(8)
    model = LARGER[name](vocab_size).eval()
    stir(model)
    return model


def rename(directory: Path, prefixes: tuple[str, str], *, with_head: bool = False) -> None:
    """Give the text model's tensors these prefixes, and the others the place that goes with them."""
    tensors = load_file(directory / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        for trunk, head in (OLDER, NEWER):
            if name.startswith(trunk):
                name = prefixes[0] + name.removeprefix(trunk)
            elif name.startswith(head):
                name = prefixes[1] + name.removeprefix(head)
        if "vision_tower" in name or "multi_modal_projector" in name:
            name = ("model." if prefixes == NEWER else "") + name.removeprefix("model.")
        renamed[name] = tensor
    head = prefixes[1] + "weight"
    if with_head and head not in renamed:
        renamed[head] = renamed[prefixes[0] + "embed_tokens.weight"].clone()
    save_file(renamed, directory / "model.safetensors", metadata={"format": "pt"})


def is_text(name: str) -> bool:
    """Whether a tensor of this name is the decoder's."""
    return any(name.startswith(prefix) for prefixes in (OLDER, NEWER) for prefix in prefixes)
