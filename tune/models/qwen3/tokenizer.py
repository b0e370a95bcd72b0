"""Qwen3's tokenizer."""

from __future__ import annotations

from tune.models.qwen2.tokenizer import qwen2_tokenizer
from tune.tokenizers import BaseTokenizer


def qwen3_tokenizer(
    path: str,
    merges_file: str | None = None,
    special_tokens_path: str | None = None,
    max_seq_len: int | None = None,
    prompt_template: str | dict[str, list[str]] | None = None,
) -> BaseTokenizer:
    """Return the tokenizer of a Qwen3 checkpoint.

    Args:
        path: its vocab.json or tokenizer.json, or the directory that holds one.
        merges_file: its merges.txt; None: the one beside the vocab.json.
        special_tokens_path: its tokenizer.json; it holds the vocabulary, too, so it is read in place of the others.
        max_seq_len: tokens after which an example is cut; None: what the model was made for.
        prompt_template: how conversations are written as text, see `tune.data.get_prompt_template`; None: as the
            checkpoint's own template says.

    Raises:
        TokenizerError: there is no such file, or it cannot be read.
    """
    return qwen2_tokenizer(path, merges_file, special_tokens_path, max_seq_len, prompt_template)
