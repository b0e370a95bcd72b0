"""Qwen2's tokenizer, which Qwen2.5 and Qwen3 keep with more special tokens."""

from __future__ import annotations

from tune.tokenizers import BaseTokenizer, from_checkpoint, vocab_merges_tokenizer
from tune.tokenizers.chat_template import ChatTemplate
from tune.utils.paths import expand_path


def qwen2_tokenizer(
    path: str,
    merges_file: str | None = None,
    special_tokens_path: str | None = None,
    max_seq_len: int | None = None,
    prompt_template: str | dict[str, list[str]] | None = None,
) -> BaseTokenizer:
    """Return the tokenizer of a Qwen2 checkpoint.

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
