"""Phi-4's tokenizer."""

from __future__ import annotations

from tune.tokenizers import BaseTokenizer, from_checkpoint, vocab_merges_tokenizer
from tune.utils.paths import expand_path


def phi4_tokenizer(
    vocab_path: str,
    merges_path: str | None = None,
    special_tokens_path: str | None = None,
    max_seq_len: int | None = None,
    prompt_template: str | dict[str, list[str]] | None = None,
) -> BaseTokenizer:
    """Return the tokenizer of a Phi-4 checkpoint.

    Args:
        vocab_path: its vocab.json or tokenizer.json, or the directory that holds one.
        merges_path: its merges.txt; None: the one beside the vocab.json.
        special_tokens_path: its tokenizer.json; it holds the vocabulary, too, so it is read in place of the others.
        max_seq_len: tokens after which an example is cut; None: what the model was made for.
        prompt_template: how conversations are written as text, see `tune.data.get_prompt_template`; None: as the
            checkpoint's own template says.

    Raises:
        TokenizerError: there is no such file, or it cannot be read.
    """
    whole = special_tokens_path or _whole(vocab_path)
    if whole:
        return from_checkpoint(whole, max_seq_len, prompt_template)
    return vocab_merges_tokenizer(vocab_path, merges_path or "", max_seq_len, prompt_template, family="phi4")


def phi4_mini_tokenizer(
    path: str, max_seq_len: int | None = None, prompt_template: str | dict[str, list[str]] | None = None
) -> BaseTokenizer:
    """Return the tokenizer of a Phi-4-mini checkpoint; arguments as of `phi4_tokenizer`, path its `vocab_path`."""
    return phi4_tokenizer(path, max_seq_len=max_seq_len, prompt_template=prompt_template)


def _whole(vocab_path: str) -> str:
    """Return the tokenizer.json at or beside a path, "" where there is none."""
    path = expand_path(vocab_path)
    folder = path if path.is_dir() else path.parent
    return str(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else ""
