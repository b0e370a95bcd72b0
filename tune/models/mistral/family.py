"""How checkpoints of Mistral name their weights, and what their configuration files say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.errors import CheckpointError
from tune.models.hf_config import finish, layer_range, read_rope, read_sizes, write_rope, write_sizes
from tune.models.hf_layout import hf_layout
from tune.models.llama2.family import META_LAYOUT
from tune.models.meta_config import check_written, rows_of
from tune.models.torchtune_layout import torchtune_layout
from tune.modules import DecoderConfig, Family

# Where params.json is silent: 7B's positions, and those of the tokenizer of 131072 entries, which came with Nemo.
_MAX_SEQ_LEN = 32_768
_LONG_MAX_SEQ_LEN = 131_072
_LARGE_VOCAB_SIZE = 131_072


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(content, "config.json")
    sizes = read_sizes(fields, max_seq_len=4096 * 32, norm_eps=1e-6, num_kv_heads=8)
    arguments = {**sizes, **read_rope(fields, sizes)}
    arguments.update(_windows(fields.optional_integer("sliding_window", 4096), sizes["num_layers"]))
    fields.expect("hidden_act", "silu")
    fields.expect("layer_types")
    return finish(fields, arguments)


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_sizes(config),
        **write_rope(config),
        "hidden_act": "silu",
        "sliding_window": _one_window(config, "config.json"),
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
    arguments.update(_windows(window, arguments["num_layers"]))
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
        content["sliding_window"] = _one_window(config, "params.json")
    if config.tie_word_embeddings:
        content["tied_embeddings"] = True
    if config.max_seq_len != _usual_length(config.vocab_size):
        content["max_seq_len"] = config.max_seq_len
    check_written(content, config, _read_params)
    return content


def _windows(window: int | None, num_layers: int) -> dict[str, Any]:
    return {
        "sliding_window": window,
        "sliding_layers": () if window is None else tuple(layer_range(num_layers)),
    }


def _one_window(config: DecoderConfig, where: str) -> int | None:
    if config.sliding_layers and len(config.sliding_layers) != config.num_layers:
        raise CheckpointError(
            f"Mistral's {where} cannot express windows in {len(config.sliding_layers)} of {config.num_layers} layers: "
            "it has them in all or in none"
        )
    return config.sliding_window if config.sliding_layers else None


def _usual_length(vocab_size: int) -> int:
    return _LONG_MAX_SEQ_LEN if vocab_size == _LARGE_VOCAB_SIZE else _MAX_SEQ_LEN


_HF = hf_layout()

MISTRAL = Family(
    name="mistral",
    architectures=("MistralForCausalLM",),
    hf=_HF,
    # Mistral's own downloads go by Meta's names, queries and keys in pairs as well.
    meta=META_LAYOUT,
    # torchtune converts them as it does Llama's.  # torchtune, models/convert_weights.py
    torchtune=torchtune_layout(_HF, paired=True),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
    read_meta_config=_read_params,
    write_meta_config=_write_params,
)
