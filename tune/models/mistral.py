"""Mistral: sizes, builders and tokenizer; how its checkpoints name their weights and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tune.checkpoints import ConfigFields
from tune.errors import CheckpointError
from tune.models.builders import LoRABuilder, ModelBuilder, sizes_by_argument, tokenizer_at
from tune.models.hf_config import finish, read_rope, read_sizes, windows_everywhere, write_rope, write_sizes
from tune.models.layouts import META_LAYOUT, hf_layout, torchtune_layout
from tune.models.meta_params import check_written, rows_of
from tune.models.outer import LLAVA_NAMES, part_of
from tune.modules import DecoderConfig, Family, OuterModel, TransformerDecoder
from tune.tokenizers import BaseTokenizer, with_family_format

# Where params.json is silent: 7B's positions, and those of the tokenizer of 131072 entries, which came with Nemo.
_MAX_SEQ_LEN = 32_768
_LONG_MAX_SEQ_LEN = 131_072
_LARGE_VOCAB_SIZE = 131_072


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=4096 * 32, norm_eps=1e-6, num_kv_heads=8)
    arguments = {**sizes, **read_rope(fields, sizes)}
    arguments.update(windows_everywhere(fields.optional_integer("sliding_window", 4096), sizes["num_layers"]))
    fields.expect("hidden_act", "silu")
    fields.expect("layer_types")
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_sizes(config),
        **write_rope(config),
        "hidden_act": "silu",
        "sliding_window": one_window(config, "config.json"),
    }


def _read_params(content: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> DecoderConfig:
    fields = ConfigFields(content, "params.json")
    vocab_size = rows_of("tok_embeddings.weight", shapes)
    window = fields.optional_integer("sliding_window", None)
    arguments: dict[str, Any] = {
        "vocab_size": vocab_size,
        "num_layers": fields.integer("n_layers"),
        "num_heads": fields.integer("n_heads"),
        "num_kv_heads": fields.integer("n_kv_heads"),
        "embed_dim": fields.integer("dim"),
        "head_dim": fields.integer("head_dim"),
        "intermediate_dim": fields.integer("hidden_dim"),
        "norm_eps": fields.number("norm_eps"),
        # mistral-inference, transformer.py: models without windows were trained with the larger base.
        "rope_base": fields.number("rope_theta", 1e6 if window is None else 1e4),
        "max_seq_len": fields.integer("max_seq_len", _usual_length(vocab_size)),
    }
    arguments.update(windows_everywhere(window, arguments["num_layers"]))
    # The name is that of Mistral's later files; loading finds out if the output matrix is another after all.
    arguments["tie_word_embeddings"] = fields.flag("tied_embeddings", "output.weight" not in shapes)
    fields.expect("model_type", "transformer")
    fields.ignore(("vocab_size", "max_batch_size"))
    return finish(fields, arguments, "params.json")


def _write_params(config: DecoderConfig) -> dict[str, Any]:
    content: dict[str, Any] = {
        "dim": config.embed_dim,
        "n_layers": config.num_layers,
        "head_dim": config.head_dim,
        "hidden_dim": config.intermediate_dim,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "vocab_size": config.vocab_size,
    }
    if config.sliding_layers:
        content["sliding_window"] = one_window(config, "params.json")
    if config.tie_word_embeddings:
        content["tied_embeddings"] = True
    if config.max_seq_len != _usual_length(config.vocab_size):
        content["max_seq_len"] = config.max_seq_len
    check_written(content, config, _read_params)
    return content


def one_window(config: DecoderConfig, where: str) -> int | None:
    """Return the window that all layers have, None where none has one, or raise CheckpointError."""
    if config.sliding_layers and len(config.sliding_layers) != config.num_layers:
        raise CheckpointError(
            f"Mistral's {where} cannot express windows in {len(config.sliding_layers)} of {config.num_layers} layers: "
            "it has them in all or in none"
        )
    return config.sliding_window if config.sliding_layers else None


def _usual_length(vocab_size: int) -> int:
    return _LONG_MAX_SEQ_LEN if vocab_size == _LARGE_VOCAB_SIZE else _MAX_SEQ_LEN


_HF = hf_layout()

# Mistral Small from 3.1 on, and Ministral 3.
MISTRAL3 = OuterModel(
    architecture="Mistral3ForConditionalGeneration",
    model_type="mistral3",
    carried=(
        *("model.vision_tower.*", "model.multi_modal_projector.*"),
        *("vision_tower.*", "multi_modal_projector.*"),
    ),
    fields=(
        *("vision_config", "image_token_index", "image_token_id", "processor_class"),
        *("projector_hidden_act", "vision_feature_layer", "multimodal_projector_bias", "spatial_merge_size"),
    ),
    older=LLAVA_NAMES,
    # What a text_config leaves out.  # transformers, MistralConfig
    defaults={
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
)

MISTRAL = part_of(
    Family(
        name="mistral",
        architectures=("MistralForCausalLM",),
        classifier="MistralForSequenceClassification",
        hf=_HF,
        # Mistral's own downloads go by Meta's names, queries and keys in pairs as well.
        meta=META_LAYOUT,
        # torchtune converts them as it does Llama's.  # torchtune, models/convert_weights.py
        torchtune=torchtune_layout(_HF, paired=True),
        read_hf_config=_read_hf_config,
        write_hf_config=_write_hf_config,
        read_meta_config=_read_params,
        write_meta_config=_write_params,
    ),
    MISTRAL3,
)


def mistral(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int,
    attn_dropout: float = 0.0,
    norm_eps: float = 1e-5,
    rope_base: float = 10_000.0,
    sliding_window: int | None = None,
    head_dim: int | None = None,
    tie_word_embeddings: bool = False,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Mistral's kind in the sizes given.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        embed_dim: width.
        intermediate_dim: width of the feed-forward.
        max_seq_len: positions it is trained for.
        attn_dropout: dropout on attention weights while training.
        norm_eps: added to the mean square in norms.
        rope_base: base of the rotary frequencies.
        sliding_window: keys a query sees; None: all before it.
        head_dim: width of a head; None: `embed_dim` over `num_heads`.
        tie_word_embeddings: use the embedding as output matrix.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    config = sizes_by_argument(
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        embed_dim=embed_dim,
        head_dim=head_dim,
        intermediate_dim=intermediate_dim,
        max_seq_len=max_seq_len,
        norm_eps=norm_eps,
        rope_base=rope_base,
        attn_dropout=attn_dropout,
        tie_word_embeddings=tie_word_embeddings,
        **windows_everywhere(sliding_window, num_layers),
    )
    return TransformerDecoder(config, MISTRAL)


# arXiv:2310.06825, table 1; mistralai/Mistral-7B-v0.1, -Instruct-v0.2, -v0.3 and Mistral-Nemo-Base-2407, config.json
# (Nemo's first one says 128000 positions, later ones 131072).
_7B = DecoderConfig(
    vocab_size=32_000,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    embed_dim=4096,
    head_dim=128,
    intermediate_dim=14_336,
    max_seq_len=32_768,
    sliding_window=4096,
    sliding_layers=tuple(range(32)),
)
_7B_V0_2 = replace(_7B, rope_base=1_000_000.0, sliding_window=None, sliding_layers=())
_7B_V0_3 = replace(_7B_V0_2, vocab_size=32_768)
# mistralai/Mistral-Small-24B-Base-2501, config.json; of 3.1 and 3.2 the text model, as transformers' Mistral3Config.
_SMALL_3 = replace(
    _7B_V0_2, vocab_size=131_072, num_layers=40, embed_dim=5120, intermediate_dim=32_768, rope_base=1e8
)
_SMALL_3_1 = replace(_SMALL_3, rope_base=1e9, max_seq_len=131_072)
_NEMO = replace(_7B_V0_2, vocab_size=131_072, num_layers=40, embed_dim=5120, max_seq_len=131_072)

mistral_7b = ModelBuilder(MISTRAL, _7B)
mistral_7b_v0_2 = ModelBuilder(MISTRAL, _7B_V0_2)
mistral_7b_v0_3 = ModelBuilder(MISTRAL, _7B_V0_3)
mistral_nemo_12b = ModelBuilder(MISTRAL, _NEMO)
mistral_small_3_24b = ModelBuilder(MISTRAL, _SMALL_3)
mistral_small_3_1_24b = ModelBuilder(MISTRAL, _SMALL_3_1)

lora_mistral = LoRABuilder(mistral)
lora_mistral_7b = LoRABuilder(mistral_7b)
qlora_mistral_7b = LoRABuilder(mistral_7b, quantize_base=True)
lora_mistral_small_3_1_24b = LoRABuilder(mistral_small_3_1_24b)
qlora_mistral_small_3_1_24b = LoRABuilder(mistral_small_3_1_24b, quantize_base=True)


def mistral_tokenizer(
    path: str,
    max_seq_len: int | None = None,
    prompt_template: str | dict[str, list[str]] | None = None,
    add_tokens: list[str] | None = None,
    add_special_tokens: list[str] | None = None,
) -> BaseTokenizer:
    """Return the tokenizer of a Mistral checkpoint; its datasets are written in `[INST]` and `[/INST]`.

    Args:
        path: its tokenizer.model or tokenizer.json, or the directory that holds one.
        max_seq_len: tokens after which an example is cut; None: what the model was made for.
        prompt_template: how conversations are written as text, see `tune.data.get_prompt_template`.
        add_tokens: texts that become one token each, with ids after the last one (`tune.tokenizers.with_new_tokens`).
        add_special_tokens: the same for control tokens, which templates write and a text never becomes.

    Raises:
        TokenizerError: there is no such file, or it cannot be read.
    """
    tokenizer = tokenizer_at(path, max_seq_len, prompt_template, add_tokens, add_special_tokens)
    return with_family_format(tokenizer, "mistral")


MistralTokenizer = mistral_tokenizer
