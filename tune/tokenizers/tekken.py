"""Mistral's own form of a tokenizer, tekken.json: a tiktoken vocabulary with its pattern and special tokens."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tune.errors import TokenizerError
from tune.tokenizers.detect_format import parse_json, read_tokenizer_file
from tune.tokenizers.hf_json import HFTokenizer
from tune.tokenizers.settings import AddedToken, TokenizerSettings, read_settings
from tune.tokenizers.templates import PromptTemplateSpec
from tune.tokenizers.tiktoken_export import tokenizer_json
from tune.utils.paths import expand_path

# https://github.com/mistralai/mistral-common, tokens/tokenizers/tekken.py: what files of before version 8, which
# list no special tokens, begin with. Special tokens come first, and the others after all of them.
_UNLISTED = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] "
    "[IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
)
_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def tekken_tokenizer(
    path: str,
    max_seq_len: int | None = None,
    prompt_template: PromptTemplateSpec | None = None,
    settings: TokenizerSettings | None = None,
) -> HFTokenizer:
    """Return the tokenizer of a tekken.json.

    Args:
        path: the file, or the directory that holds it.
        max_seq_len: tokens after which an example is cut; by default what the settings beside it say.
        prompt_template: how conversations are written as text, see `tune.tokenizers.get_prompt_template`.
        settings: what stands beside the file; read from there if not given.

    Raises:
        TokenizerError: the file is missing, damaged or of another kind.
    """
    file = expand_path(path)
    file = file / "tekken.json" if file.is_dir() else file
    settings = settings or read_settings(file.parent)
    content = parse_json(file, read_tokenizer_file(file), "tekken.json")
    definition = _definition(content, file)
    known: dict[str, AddedToken | None] = {
        role: AddedToken(text, special=True, normalized=False)
        for role, text in _NAMES.items()
        if text in definition["model"]["vocab"]
    }
    settings = replace(settings, names={**known, **settings.names})
    return HFTokenizer(file, max_seq_len, prompt_template, settings=settings, definition=definition)


def _definition(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    config, vocab = content.get("config"), content.get("vocab")
    if not isinstance(config, dict) or not isinstance(vocab, list):
        raise TokenizerError(f"{file} is no tekken.json: it has no config with a vocab")
    size, num_special = config.get("default_vocab_size"), config.get("default_num_special_tokens")
    pattern = config.get("pattern")
    if not (isinstance(pattern, str) and isinstance(size, int) and isinstance(num_special, int)):
        raise TokenizerError(
            f"{file} is no tekken.json: its config lacks pattern, default_vocab_size or default_num_special_tokens"
        )
    if not 0 < num_special < size <= len(vocab) + num_special:
        raise TokenizerError(
            f"{file} holds {len(vocab)} tokens, but its config speaks of {size} with {num_special} special ones; "
            "it may be cut short"
        )
    special = _special_tokens(content.get("special_tokens"), num_special, file)
    ranks = {
        _token(entry, file): index + num_special for index, entry in enumerate(vocab[: size - num_special])
    }
    if len(ranks) != size - num_special or any(bytes([byte]) not in ranks for byte in range(256)):
        raise TokenizerError(f"{file} is damaged: tokens come twice, or some byte has none")
    definition: dict[str, Any] = json.loads(tokenizer_json(ranks, special, pattern, False, "<s>"))
    # The library numbers added tokens from the vocabulary's end on, except for those in it.
    definition["model"]["vocab"] = special | definition["model"]["vocab"]
    return definition


def _special_tokens(listed: Any, count: int, file: Path) -> dict[str, int]:
    texts: Sequence[Any] = _UNLISTED.split()
    if listed is not None:
        entries = listed if isinstance(listed, list) else []
        texts = [entry.get("token_str") if isinstance(entry, dict) else None for entry in entries]
    if any(not isinstance(text, str) for text in texts) or len(texts) > count or "<s>" not in texts:
        raise TokenizerError(
            f"{file}: its special tokens are no list of at most {count} objects with a token_str, <s> among them"
        )
    texts = [*texts, *(f"<SPECIAL_{index}>" for index in range(len(texts), count))]
    return {text: index for index, text in enumerate(texts)}


def _token(entry: Any, file: Path) -> bytes:
    text = entry.get("token_bytes") if isinstance(entry, dict) else None
    try:
        return base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise TokenizerError(f"{file} is damaged: {str(entry)[:60]} is no token") from error
