"""How checkpoints of Gemma 3 name their weights, and what their config.json says.

The larger ones also see pictures. Of those the text model is read, and saved as a text model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from tune.checkpoints import ConfigFields
from tune.errors import CheckpointError
from tune.models.gemma2.family import FOUR_NORMS, read_gemma2, write_gemma2
from tune.models.hf_config import finish, read_scaling, read_sizes, refuse_quantized, write_rope
from tune.models.hf_fields import HARMLESS_FIELDS
from tune.models.hf_layout import hf_layout
from tune.modules import DecoderConfig, Family, Layout
from tune.utils import get_logger

# What a text_config leaves out, since it writes only what differs.  # transformers, Gemma3TextConfig
_DEFAULT_SIZES = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
}
_GLOBAL_BASE, _LOCAL_BASE = 1_000_000.0, 10_000.0
_OF_PICTURES = (
    "vision_config",
    "mm_tokens_per_image",
    "boi_token_index",
    "eoi_token_index",
    "image_token_index",
    "boi_token_id",
    "eoi_token_id",
    "image_token_id",
    "processor_class",
)
_PICTURE_TENSORS = ("vision_tower.*", "multi_modal_projector.*")


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    if "text_config" in content:
        return _read_text_part(content)
    return _read_text(content, "config.json")


def _read_text_part(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    text = fields.mapping("text_config")
    fields.expect("tie_word_embeddings", True)
    refuse_quantized(fields)
    fields.ignore((*_OF_PICTURES, *HARMLESS_FIELDS))
    fields.finish()
    say_pictures_are_left_out()
    if text.get("tie_word_embeddings") is False:
        raise CheckpointError(
            "config.json: `text_config.tie_word_embeddings` is false, which is not supported"
        )
    return _read_text({**_DEFAULT_SIZES, **text}, "text_config of config.json")


@cache
def say_pictures_are_left_out() -> None:
    """Say so the first time, however often the file is looked at."""
    get_logger().info("Gemma 3: the text model is used, the parts that see pictures are left out")


def _read_text(content: Mapping[str, Any], where: str) -> DecoderConfig:
    fields = ConfigFields(content, where)
    sizes = read_sizes(fields, max_seq_len=131_072, norm_eps=1e-6, head_dim=256, num_kv_heads=4, tied=True)
    pattern = fields.integer("sliding_window_pattern", fields.integer("_sliding_window_pattern", 6))
    if pattern < 1:
        fields.problem(f"`sliding_window_pattern` is {pattern}; it must be at least 1")
    arguments = {**read_gemma2(fields, sizes, pattern=max(pattern, 1)), **_read_rope(fields, sizes)}
    arguments["qk_norm"] = "head"
    # transformers knows the field and does not apply it, so its meaning is not settled.
    fields.expect("attn_logit_softcapping")
    arguments["final_softcap"] = fields.optional_number("final_logit_softcapping", None)
    return finish(fields, arguments, where)


def _read_rope(fields: ConfigFields, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the bases of full and sliding layers, and the scaling of the full ones."""
    by_kind = ConfigFields(fields.mapping("rope_parameters"), "rope_parameters")
    full = ConfigFields(
        {**by_kind.mapping("full_attention"), **fields.mapping("rope_scaling")},
        "rope_parameters.full_attention",
    )
    local = ConfigFields(by_kind.mapping("sliding_attention"), "rope_parameters.sliding_attention")
    local.expect("rope_type", "default")
    rope = {
        "rope_base": full.number("rope_theta", fields.number("rope_theta", _GLOBAL_BASE)),
        "rope_scaling": read_scaling(full, fields, sizes["max_seq_len"]),
        "local_rope_base": local.number("rope_theta", fields.number("rope_local_base_freq", _LOCAL_BASE)),
    }
    for inner in (by_kind, full, local):
        try:
            inner.finish()
        except CheckpointError as error:
            fields.problem(str(error).replace("\n  ", "\n    "))
    return rope


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {**write_gemma2(config), **write_rope(config), "rope_local_base_freq": config.local_rope_base}


def _text_part(layout: Layout, trunk: str, output: str) -> Layout:
    """Return the layout with the text model under other names, and pictures' tensors left out."""

    def rename(name: str) -> str:
        return output if name == layout.tied_output else name.replace("model.", trunk, 1)

    return replace(
        layout,
        rules=tuple(replace(rule, theirs=rename(rule.theirs)) for rule in layout.rules),
        ignored=(*_PICTURE_TENSORS, *(f"model.{pattern}" for pattern in _PICTURE_TENSORS)),
        tied_output=output,
    )


_HF = hf_layout(FOUR_NORMS)

GEMMA3 = Family(
    name="gemma3_text",
    architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    hf=_HF,
    hf_variants=(
        _text_part(_HF, "language_model.model.", "language_model.lm_head.weight"),
        _text_part(_HF, "model.language_model.", "lm_head.weight"),
    ),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)
