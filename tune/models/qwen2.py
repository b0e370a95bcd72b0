"""Qwen2: sizes, builders and tokenizer; how checkpoints of Qwen2 and Qwen2.5 name their weights and sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.builders import LoRABuilder, ModelBuilder, sizes_by_argument
from tune.models.hf_config import finish, layer_range, read_rope, read_sizes, write_rope, write_sizes
from tune.models.layouts import hf_layout, torchtune_layout
from tune.modules import DecoderConfig, Family, TransformerDecoder
from tune.tokenizers import (
    BaseTokenizer,
    from_checkpoint,
    vocab_merges_tokenizer,
    with_family_format,
    with_new_tokens,
)
from tune.tokenizers.chat_template import ChatTemplate
from tune.utils.paths import expand_path

LAYER_KINDS = ("full_attention", "sliding_attention")


def read_windows(
    fields: ConfigFields, num_layers: int, *, window: int | None, layers: Iterable[int]
) -> dict[str, Any]:
    """Return `sliding_window` and `sliding_layers`, where a file has to say that windows are used.

    Args:
        fields: of config.json.
        num_layers: blocks.
        window: what holds where the file is silent.
        layers: those with a window where `layer_types` does not list them.
    """
    is_used = fields.flag("use_sliding_window", False)
    window = fields.optional_integer("sliding_window", window)
    has_window = is_used and window is not None
    kinds = fields.choices("layer_types", num_layers, *LAYER_KINDS)
    if kinds is None:
        sliding = tuple(layers) if has_window else ()
    else:
        sliding = tuple(index for index, kind in enumerate(kinds) if kind == "sliding_attention")
        if sliding and not has_window:
            fields.problem(
                "`layer_types` asks for windows, and `use_sliding_window` or `sliding_window` says there are none"
            )
    return {"sliding_window": window if has_window and sliding else None, "sliding_layers": sliding}


def read_late_windows(fields: ConfigFields, num_layers: int) -> dict[str, Any]:
    """Return what `read_windows` does for Qwen's files, whose windows begin at one layer."""
    first = fields.integer("max_window_layers", 28)
    layers = (layer for layer in layer_range(num_layers) if layer >= first)
    return read_windows(fields, num_layers, window=4096, layers=layers)


def write_windows(config: DecoderConfig) -> dict[str, Any]:
    """Return the fields of windows as Qwen's config.json has them."""
    if not config.sliding_layers:
        return {"use_sliding_window": False, "sliding_window": None}
    return {
        "use_sliding_window": True,
        "sliding_window": config.sliding_window,
        "max_window_layers": config.sliding_layers[0],
        "layer_types": [LAYER_KINDS[layer in config.sliding_layers] for layer in range(config.num_layers)],
    }


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=32_768, norm_eps=1e-6, num_kv_heads=32)
    arguments = {
        **sizes,
        **read_rope(fields, sizes),
        **read_late_windows(fields, sizes["num_layers"]),
        "attn_bias": "qkv",
    }
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
    classifier="Qwen2ForSequenceClassification",
    hf=_HF,
    # torchtune turns halves here, as Hugging Face does.  # torchtune, models/qwen2/_convert_weights.py
    torchtune=torchtune_layout(_HF, paired=False),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)


def qwen2(
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int,
    attn_dropout: float = 0.0,
    norm_eps: float = 1e-5,
    rope_base: float = 1_000_000.0,
    tie_word_embeddings: bool = False,
) -> TransformerDecoder:
    """Return a randomly initialised decoder of Qwen2's kind in the sizes given.

    Args:
        vocab_size: entries of the tokenizer's vocabulary.
        num_layers: blocks.
        num_heads: query heads; a divisor of `embed_dim`.
        num_kv_heads: key and value heads.
        embed_dim: width.
        intermediate_dim: width of the feed-forward.
        max_seq_len: positions it is trained for.
        attn_dropout: dropout on attention weights while training.
        norm_eps: added to the mean square in norms.
        rope_base: base of the rotary frequencies.
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
        max_seq_len=max_seq_len,
        intermediate_dim=intermediate_dim,
        attn_dropout=attn_dropout,
        norm_eps=norm_eps,
        rope_base=rope_base,
        tie_word_embeddings=tie_word_embeddings,
        attn_bias="qkv",
    )
    return TransformerDecoder(config, QWEN2)


_0_5B = DecoderConfig(
    vocab_size=151_936,
    num_layers=24,
    num_heads=14,
    num_kv_heads=2,
    embed_dim=896,
    head_dim=64,
    intermediate_dim=4864,
    max_seq_len=32_768,
    norm_eps=1e-6,
    rope_base=1_000_000.0,
    attn_bias="qkv",
    tie_word_embeddings=True,
)
# arXiv:2407.10671, table 1; vocabularies (padded) and ties as in Qwen/Qwen2-0.5B to -72B, config.json. The positions
# are those of the instruct versions; the base versions' files say 131072. Only base 72B's norm_eps is 1e-5.
QWEN2_SIZES = {
    "0_5b": _0_5B,
    "1_5b": replace(_0_5B, num_layers=28, num_heads=12, embed_dim=1536, head_dim=128, intermediate_dim=8960),
    "7b": replace(
        _0_5B,
        vocab_size=152_064,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        embed_dim=3584,
        head_dim=128,
        intermediate_dim=18_944,
        tie_word_embeddings=False,
    ),
    "72b": replace(
        _0_5B,
        vocab_size=152_064,
        num_layers=80,
        num_heads=64,
        num_kv_heads=8,
        embed_dim=8192,
        head_dim=128,
        intermediate_dim=29_568,
        tie_word_embeddings=False,
    ),
}

qwen2_0_5b = ModelBuilder(QWEN2, QWEN2_SIZES["0_5b"])
qwen2_1_5b = ModelBuilder(QWEN2, QWEN2_SIZES["1_5b"])
qwen2_7b = ModelBuilder(QWEN2, QWEN2_SIZES["7b"])
qwen2_72b = ModelBuilder(QWEN2, replace(QWEN2_SIZES["72b"], norm_eps=1e-5))
qwen2_72b_instruct = ModelBuilder(QWEN2, QWEN2_SIZES["72b"])

lora_qwen2 = LoRABuilder(qwen2)
lora_qwen2_0_5b = LoRABuilder(qwen2_0_5b)
lora_qwen2_1_5b = LoRABuilder(qwen2_1_5b)
lora_qwen2_7b = LoRABuilder(qwen2_7b)
qlora_qwen2_0_5b = LoRABuilder(qwen2_0_5b, quantize_base=True)
qlora_qwen2_1_5b = LoRABuilder(qwen2_1_5b, quantize_base=True)
qlora_qwen2_7b = LoRABuilder(qwen2_7b, quantize_base=True)


def qwen2_tokenizer(
    path: str,
    merges_file: str | None = None,
    special_tokens_path: str | None = None,
    max_seq_len: int | None = None,
    prompt_template: str | dict[str, list[str]] | None = None,
    add_tokens: list[str] | None = None,
    add_special_tokens: list[str] | None = None,
) -> BaseTokenizer:
    """Return the tokenizer of a checkpoint of Qwen2 or a later Qwen; its datasets are written in ChatML's turns.

    Args:
        path: its vocab.json or tokenizer.json, or the directory that holds one.
        merges_file: its merges.txt; None: the one beside the vocab.json.
        special_tokens_path: its tokenizer.json; it holds the vocabulary, too, so it is read in place of the others.
        max_seq_len: tokens after which an example is cut; None: what the model was made for.
        prompt_template: texts around messages, inside of the turns; see `tune.data.get_prompt_template`.
        add_tokens: texts that become one token each, with ids after the last one (`tune.tokenizers.with_new_tokens`).
        add_special_tokens: the same for control tokens, which templates write and a text never becomes.

    Raises:
        TokenizerError: there is no such file, or it cannot be read.
    """
    tokenizer = _read_tokenizer(path, merges_file, special_tokens_path, max_seq_len, prompt_template)
    return with_family_format(with_new_tokens(tokenizer, add_tokens, add_special_tokens), "chatml")


def _read_tokenizer(
    path: str,
    merges_file: str | None,
    special_tokens_path: str | None,
    max_seq_len: int | None,
    prompt_template: str | dict[str, list[str]] | None,
) -> BaseTokenizer:
    if special_tokens_path:
        return from_checkpoint(special_tokens_path, max_seq_len, prompt_template)
    place = expand_path(path)
    folder = place if place.is_dir() else place.parent
    has_usual_name = place.is_dir() or place.name == "vocab.json"
    if has_usual_name and (folder / "tokenizer.json").is_file():
        # It says more than the two files: how words are cut, and which tokens are special.
        return from_checkpoint(folder / "tokenizer.json", max_seq_len, prompt_template)
    if not merges_file and not (has_usual_name and (folder / "vocab.json").is_file()):
        return from_checkpoint(path, max_seq_len, prompt_template)
    # The files do not say how words are cut, and config.json need not stand beside them.
    tokenizer = vocab_merges_tokenizer(path, merges_file or "", max_seq_len, prompt_template, family="qwen2")
    tokenizer.chat_template = ChatTemplate.from_directory(folder)
    return tokenizer


Qwen2Tokenizer = qwen2_tokenizer
