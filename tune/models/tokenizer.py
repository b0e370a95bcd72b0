"""How most families' tokenizers are built: from the checkpoint's own files."""

from __future__ import annotations

from tune.tokenizers import BaseTokenizer, from_checkpoint


def tokenizer_at(
    path: str,
    max_seq_len: int | None = None,
    prompt_template: str | dict[str, list[str]] | None = None,
    add_tokens: list[str] | None = None,
    add_special_tokens: list[str] | None = None,
) -> BaseTokenizer:
    """Return the tokenizer that a checkpoint's files describe.

    Args:
        path: its tokenizer.model or tokenizer.json, or the directory that holds one.
        max_seq_len: tokens after which an example is cut; None: what the model was made for.
        prompt_template: how conversations are written as text, see `tune.data.get_prompt_template`; None: as the
            checkpoint's own template says.
        add_tokens: texts that become one token each, with ids after the last one (`tune.tokenizers.with_new_tokens`).
        add_special_tokens: the same for control tokens, which templates write and a text never becomes.

    Raises:
        TokenizerError: there is no such file, or it cannot be read.
    """
    return from_checkpoint(path, max_seq_len, prompt_template, add_tokens, add_special_tokens)
