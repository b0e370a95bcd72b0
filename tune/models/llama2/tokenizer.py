"""Llama 2's tokenizer."""

from __future__ import annotations

from tune.tokenizers import SentencePieceTokenizer


def llama2_tokenizer(
    path: str, max_seq_len: int | None = None, prompt_template: str | dict[str, list[str]] | None = None
) -> SentencePieceTokenizer:
    """Return the tokenizer of a Llama 2 checkpoint.

    Args:
        path: its tokenizer.model, or the directory that holds it.
        max_seq_len: tokens after which an example is cut; None: never.
        prompt_template: how conversations are written as text, see `tune.data.get_prompt_template`.

    Raises:
        TokenizerError: there is no such file, or it is no SentencePiece model.
    """
    return SentencePieceTokenizer(path, max_seq_len, prompt_template)
