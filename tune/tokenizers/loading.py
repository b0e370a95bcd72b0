"""Finding the tokenizer that belongs to a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tune.errors import TokenizerError
from tune.tokenizers.base import BaseTokenizer
from tune.tokenizers.detect_format import describe_mismatch, detect_format, parse_json, read_tokenizer_file
from tune.tokenizers.export import MADE_FROM, MADE_FROM_DIGEST
from tune.tokenizers.hf_json import HFTokenizer
from tune.tokenizers.new_tokens import with_new_tokens
from tune.tokenizers.settings import TokenizerSettings, read_json, read_settings
from tune.tokenizers.spm import SentencePieceTokenizer
from tune.tokenizers.tekken import tekken_tokenizer
from tune.tokenizers.templates import PromptTemplateSpec
from tune.tokenizers.tiktoken_bpe import TiktokenTokenizer
from tune.tokenizers.vocab_merges import vocab_merges_tokenizer
from tune.utils.paths import expand_path

# In this order: tokenizer.json is what other tools read first, too.
_FILE_NAMES = ("tokenizer.json", "tokenizer.model", "qwen.tiktoken", "tekken.json", "vocab.json")
# Under these names a file belongs to the settings that stand beside it.
_OWN_NAMES = (*_FILE_NAMES, "tiktoken.model")


def from_checkpoint(
    directory: str | Path,
    max_seq_len: int | None = None,
    prompt_template: PromptTemplateSpec | None = None,
    add_tokens: Sequence[str] | None = None,
    add_special_tokens: Sequence[str] | None = None,
) -> BaseTokenizer:
    """Return the tokenizer that stands in a model's directory.

    Files are tried in this order: `tokenizer.json`; `tokenizer.model`, which may be SentencePiece's or tiktoken's;
    `qwen.tiktoken`; `tekken.json`; `vocab.json` with `merges.txt`. What `tokenizer_config.json`,
    `generation_config.json` and `config.json` say beside it is honoured: special tokens, whether a BOS is used,
    what ends a generation, the longest sequence, and the chat template.

    Args:
        directory: holds one of these files (or, as Meta ships it, its parent directory does); or the file itself;
            or a saved step or output directory of a run.
        max_seq_len: tokens after which examples are truncated; by default what the model was made for.
        prompt_template: how conversations are written, see `tune.tokenizers.get_prompt_template`; by default
            the model's own chat template.
        add_tokens: texts that become one token each, with ids after the last one (`tune.tokenizers.with_new_tokens`).
        add_special_tokens: the same for control tokens, which templates write and a text never becomes.

    Raises:
        TokenizerError: no tokenizer there, one that cannot be read, or a text that cannot be a token.
    """
    try:
        file, folder = _find(expand_path(directory))
    except OSError as error:
        raise TokenizerError(f"cannot read {error.filename or directory}: {error.strerror}") from error
    settings = TokenizerSettings() if folder is None else _settings(folder)
    limit = max_seq_len if max_seq_len is not None else settings.max_seq_len
    tokenizer = _read(file, limit, prompt_template, settings)
    if folder is not None:
        from tune.tokenizers.chat_template import ChatTemplate

        tokenizer.chat_template = ChatTemplate.from_directory(folder)
    return with_new_tokens(tokenizer, add_tokens, add_special_tokens)


def auto(
    path: str = "",
    checkpoint_dir: str = "",
    max_seq_len: int | None = None,
    prompt_template: str | dict[str, list[str]] | None = None,
    add_tokens: list[str] | None = None,
    add_special_tokens: list[str] | None = None,
) -> BaseTokenizer:
    """Return the tokenizer at `path`, or else the one that stands beside the model's weights.

    Args:
        path: a tokenizer file or a directory that holds one.
        checkpoint_dir: the model's directory, used where `path` is not given.
        max_seq_len: tokens after which examples are truncated; by default what the model was made for.
        prompt_template: how conversations are written, see `tune.tokenizers.get_prompt_template`.
        add_tokens: texts that become one token each, with ids after the last one (`tune.tokenizers.with_new_tokens`).
        add_special_tokens: the same for control tokens, which templates write and a text never becomes.

    Raises:
        TokenizerError: neither is given, or nothing readable is there.
    """
    if path or checkpoint_dir:
        return from_checkpoint(
            path or checkpoint_dir, max_seq_len, prompt_template, add_tokens, add_special_tokens
        )
    raise TokenizerError(
        "no tokenizer: set tokenizer.path to a tokenizer.json or tokenizer.model, or checkpointer.checkpoint_dir "
        "to a directory that holds one beside the weights"
    )


def holds_tokenizer(directory: str | Path) -> bool:
    """Return whether there is a tokenizer's file in a model's directory, readable or not."""
    try:
        _find(expand_path(directory))
    except TokenizerError:
        return False
    return True


def _read(
    file: Path, limit: int | None, prompt_template: PromptTemplateSpec | None, settings: TokenizerSettings
) -> BaseTokenizer:
    if file.name == "tokenizer.json":
        return HFTokenizer(file, limit, prompt_template, settings=settings)
    content = read_tokenizer_file(file)
    kind = detect_format(content)
    if kind == "tiktoken":
        return TiktokenTokenizer(file, limit, prompt_template, settings=settings)
    if kind == "tokenizer.json":
        return HFTokenizer(file, limit, prompt_template, settings=settings)
    if kind == "vocab.json" and (file.parent / "merges.txt").is_file():
        return vocab_merges_tokenizer(str(file), max_seq_len=limit, prompt_template=prompt_template)
    if kind == "tekken":
        return tekken_tokenizer(str(file), limit, prompt_template, settings)
    if file.suffix == ".json":
        raise TokenizerError(describe_mismatch("tokenizer", file, content))
    return SentencePieceTokenizer(file, limit, prompt_template, settings=settings)


def _find(place: Path) -> tuple[Path, Path | None]:
    """Return the tokenizer's file, and the directory whose settings belong to it."""
    if place.is_file():
        # Under another name it need not belong to the files beside it.
        return place, place.parent if place.name in _OWN_NAMES else None
    if not place.is_dir():
        raise TokenizerError(f"there is no file or directory {place} to read a tokenizer from")
    for folder in (place, place / "model", place / "latest" / "model"):
        for name in (_original(folder), *_FILE_NAMES):
            if (folder / name).is_file() and (name != "vocab.json" or (folder / "merges.txt").is_file()):
                return folder / name, folder
    # Meta's download keeps one tokenizer.model beside the directories of its models.
    if (place / "params.json").is_file() and (place.parent / "tokenizer.model").is_file():
        return place.parent / "tokenizer.model", place
    raise TokenizerError(_what_is_missing(place))


def _original(folder: Path) -> str:
    """Return the name of the file that a tokenizer.json of ours was made of; without one, that of tokenizer.json."""
    note = read_json(folder / "tokenizer_config.json")
    is_ours = note.get(MADE_FROM) == "tokenizer.model" and _is_as_written(folder, note)
    return "tokenizer.model" if is_ours else "tokenizer.json"


def _what_is_missing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    if "vocab.json" in names:
        return f"{folder} holds a vocab.json without its merges.txt; copy in that, or the tokenizer.json"
    return (
        f"no tokenizer.json or tokenizer.model in {folder}, which holds {shown or 'nothing'}; "
        "set tokenizer.path to the file that belongs to this model"
    )


def _settings(folder: Path) -> TokenizerSettings:
    """Return the settings of a model's directory, Meta's layout included."""
    settings = read_settings(folder)
    # Meta writes -1 where the tokenizer decides.
    num_rows = read_json(folder / "params.json").get("vocab_size")
    if settings.num_rows is None and isinstance(num_rows, int) and num_rows > 0:
        settings = replace(settings, num_rows=num_rows)
    return settings


def _is_as_written(folder: Path, note: Mapping[str, Any]) -> bool:
    """Return whether a folder's tokenizer.json is the one that tune made of the tokenizer.model beside it.

    Another tool may have added tokens to it since, and left the note of where it came from.

    Args:
        folder: with tokenizer.model.
        note: content of its tokenizer_config.json.
    """
    file = folder / "tokenizer.json"
    if not file.is_file() or not (folder / "tokenizer.model").is_file():
        return not file.is_file()
    content = read_tokenizer_file(file)
    if MADE_FROM_DIGEST in note:
        return bool(note[MADE_FROM_DIGEST] == hashlib.sha256(content).hexdigest())
    # Of a version of tune that noted no digest: made anew it must be the same.
    try:
        definition = SentencePieceTokenizer(folder / "tokenizer.model").as_tokenizer_json()
        return definition is not None and parse_json(file, content, "tokenizer.json") == json.loads(
            definition
        )
    except TokenizerError:
        return True  # what is wrong is said when it is read
