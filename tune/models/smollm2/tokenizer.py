"""SmolLM2's tokenizer."""

from __future__ import annotations

from tune.tokenizers import BaseTokenizer, from_checkpoint


def smollm2_tokenizer(
    path: str, max_seq_len: int | None = None, prompt_template: str | dict[str, list[str]] | None = None
) -> BaseTokenizer:
    """Return the tokenizer of a SmolLM2 checkpoint.

    Args:
        path: its tokenizer.json, or the directory that holds one.
        max_seq_len: tokens after which an example is cut; None: what the model was made for.
        prompt_template: how conversations are written as text, see `tune.data.get_prompt_template`; None: as the
            checkpoint's own template says.

    Raises:
        TokenizerError: there is no such file, or it cannot be read.
    """
    return from_checkpoint(path, max_seq_len, prompt_template)
