"""Phi-4: sizes, builders, tokenizer. Its checkpoints are of the Phi-3 family."""

from __future__ import annotations

from tune.models.builders import LoRABuilder, ModelBuilder
from tune.models.hf_config import longrope_magnitude
from tune.models.phi3 import PHI3
from tune.modules import DecoderConfig, LongRopeScaling
from tune.tokenizers import (
    BaseTokenizer,
    from_checkpoint,
    vocab_merges_tokenizer,
    with_family_format,
    with_new_tokens,
)
from tune.utils.paths import expand_path

# fmt: off
# config.json of microsoft/Phi-4-mini-instruct
MINI_LONG_FACTORS = (
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649,
    2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533,
    5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651,
    14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03,
    32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
)
# fmt: on

# arXiv:2503.01743, 2.1
_MINI = DecoderConfig(
    vocab_size=200_064,
    num_layers=32,
    num_heads=24,
    num_kv_heads=8,
    embed_dim=3072,
    head_dim=128,
    intermediate_dim=8192,
    max_seq_len=131_072,
    tie_word_embeddings=True,
    rotary_dim=96,
    rope_scaling=LongRopeScaling(
        short_factors=(1.0,) * 48,
        long_factors=MINI_LONG_FACTORS,
        original_max_seq_len=4096,
        magnitude=longrope_magnitude(131_072 / 4096, 4096),
    ),
    sliding_window=262_144,
    sliding_layers=tuple(range(32)),
)
# arXiv:2412.08905, 3
_14B = DecoderConfig(
    vocab_size=100_352,
    num_layers=40,
    num_heads=40,
    num_kv_heads=10,
    embed_dim=5120,
    head_dim=128,
    intermediate_dim=17_920,
    max_seq_len=16_384,
    rope_base=250_000.0,
)

phi4_mini = ModelBuilder(PHI3, _MINI)
phi4_14b = ModelBuilder(PHI3, _14B)

lora_phi4_14b = LoRABuilder(phi4_14b)
qlora_phi4_14b = LoRABuilder(phi4_14b, quantize_base=True)


def phi4_tokenizer(
    vocab_path: str,
    merges_path: str | None = None,
    special_tokens_path: str | None = None,
    max_seq_len: int | None = None,
    prompt_template: str | dict[str, list[str]] | None = None,
    add_tokens: list[str] | None = None,
    add_special_tokens: list[str] | None = None,
) -> BaseTokenizer:
    """Return the tokenizer of a Phi-4 checkpoint; its datasets are written in its turns (`phi4`).

    Args:
        vocab_path: its vocab.json or tokenizer.json, or the directory that holds one.
        merges_path: its merges.txt; None: the one beside the vocab.json.
        special_tokens_path: its tokenizer.json; it holds the vocabulary, too, so it is read in place of the others.
        max_seq_len: tokens after which an example is cut; None: what the model was made for.
        prompt_template: texts around messages, inside of the turns; see `tune.data.get_prompt_template`.
        add_tokens: texts that become one token each, with ids after the last one (`tune.tokenizers.with_new_tokens`).
        add_special_tokens: the same for control tokens, which templates write and a text never becomes.

    Raises:
        TokenizerError: there is no such file, or it cannot be read.
    """
    tokenizer = _read_tokenizer(vocab_path, merges_path, special_tokens_path, max_seq_len, prompt_template)
    return with_family_format(with_new_tokens(tokenizer, add_tokens, add_special_tokens), "phi4")


def phi4_mini_tokenizer(
    path: str,
    max_seq_len: int | None = None,
    prompt_template: str | dict[str, list[str]] | None = None,
    add_tokens: list[str] | None = None,
    add_special_tokens: list[str] | None = None,
) -> BaseTokenizer:
    """Return the tokenizer of a Phi-4-mini checkpoint; arguments as of `phi4_tokenizer`, path its `vocab_path`."""
    # Its turns are not Phi-4's.
    tokenizer = _read_tokenizer(path, None, None, max_seq_len, prompt_template)
    return with_new_tokens(tokenizer, add_tokens, add_special_tokens)


def _read_tokenizer(
    vocab_path: str,
    merges_path: str | None,
    special_tokens_path: str | None,
    max_seq_len: int | None,
    prompt_template: str | dict[str, list[str]] | None,
) -> BaseTokenizer:
    whole = special_tokens_path or _whole(vocab_path)
    if whole:
        return from_checkpoint(whole, max_seq_len, prompt_template)
    return vocab_merges_tokenizer(vocab_path, merges_path or "", max_seq_len, prompt_template, family="phi4")


def _whole(vocab_path: str) -> str:
    """Return the tokenizer.json at or beside a path, "" where there is none."""
    path = expand_path(vocab_path)
    folder = path if path.is_dir() else path.parent
    return str(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else ""
