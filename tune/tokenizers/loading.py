"""Finding the tokenizer that belongs to a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tune.errors import TokenizerError
from tune.tokenizers.spm import SentencePieceTokenizer
from tune.tokenizers.templates import PromptTemplateSpec
from tune.utils.paths import expand_path

# Hugging Face writes 1e30 where no length is known.
_LARGEST_LENGTH = 100_000_000


def from_checkpoint(
    directory: str | Path, max_seq_len: int | None = None, prompt_template: PromptTemplateSpec | None = None
) -> SentencePieceTokenizer:
    """Returns the tokenizer that stands in a model's directory.

    What `tokenizer_config.json`, `generation_config.json` and `config.json` say beside it is honoured:
    special tokens, whether a BOS is used, what ends a generation, and the longest sequence.

    Args:
        directory: holds `tokenizer.model` (or, as Meta ships it, its parent directory does); or the file itself.
        max_seq_len: tokens after which examples are truncated; by default what the model was made for.
        prompt_template: how conversations are written, see `tune.tokenizers.get_prompt_template`.

    Raises:
        TokenizerError: no tokenizer there, or only kinds that cannot be read yet.
    """
    folder = expand_path(str(directory))
    if folder.name == "tokenizer.model" and folder.is_file():
        folder = folder.parent
    elif folder.is_file():
        # Under another name it need not belong to the files beside it.
        return SentencePieceTokenizer(folder, max_seq_len, prompt_template)
    if not folder.is_dir():
        raise TokenizerError(f"there is no file or directory {folder} to read a tokenizer from")
    file = folder / "tokenizer.model"
    # Meta's download keeps one tokenizer.model beside the directories of its models.
    if not file.is_file() and (folder / "params.json").is_file():
        file = folder.parent / "tokenizer.model"
    if not file.is_file():
        raise TokenizerError(_what_is_missing(folder))
    limit = max_seq_len if max_seq_len is not None else _longest_sequence(folder)
    return SentencePieceTokenizer(file, limit, prompt_template, **_settings(folder))


def auto(
    path: str = "",
    checkpoint_dir: str = "",
    max_seq_len: int | None = None,
    prompt_template: str | dict[str, list[str]] | None = None,
) -> SentencePieceTokenizer:
    """Returns the tokenizer at `path`, or else the one that stands beside the model's weights.

    Args:
        path: a tokenizer file or a directory that holds one.
        checkpoint_dir: the model's directory, used where `path` is not given.
        max_seq_len: tokens after which examples are truncated; by default what the model was made for.
        prompt_template: how conversations are written, see `tune.tokenizers.get_prompt_template`.

    Raises:
        TokenizerError: neither is given, or nothing readable is there.
    """
    if path:
        return from_checkpoint(path, max_seq_len, prompt_template)
    if checkpoint_dir:
        return from_checkpoint(checkpoint_dir, max_seq_len, prompt_template)
    raise TokenizerError(
        "no tokenizer: set tokenizer.path to a tokenizer.model, or checkpointer.checkpoint_dir to a directory "
        "that holds one beside the weights"
    )


def _what_is_missing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if "tokenizer.json" in names:
        return (
            f"{folder} holds a tokenizer.json but no tokenizer.model. tokenizer.json cannot be read yet; "
            "Llama 2 and its kin ship a tokenizer.model, which can be copied in from the original model"
        )
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return (
        f"no tokenizer.model in {folder}, which holds {shown or 'nothing'}; "
        "set tokenizer.path to the file that belongs to this model"
    )


def _settings(folder: Path) -> dict[str, Any]:
    """Returns the arguments of the tokenizer that the JSON files beside it decide."""
    config = _read_json(folder / "tokenizer_config.json")
    added = {
        _token_text(entry) or "": int(token_id)
        for token_id, entry in _mapping(config, "added_tokens_decoder").items()
        if str(token_id).isdigit()
    }
    added |= {str(text): int(token_id) for text, token_id in _read_json(folder / "added_tokens.json").items()}
    # Tokens that were added without a row in the model's embedding cannot be used with this model.
    num_rows = _read_json(folder / "config.json").get("vocab_size")
    if isinstance(num_rows, int):
        added = {text: token_id for text, token_id in added.items() if token_id < num_rows}
    settings: dict[str, Any] = {"added_tokens": added}
    for name in ("bos_token", "eos_token", "pad_token"):
        settings[name] = _token_text(config[name]) if config.get(name) else None
    if config.get("add_bos_token") is False:
        settings["add_bos"] = False
    stops = _read_json(folder / "generation_config.json").get("eos_token_id")
    if isinstance(stops, int):
        stops = [stops]
    if isinstance(stops, list):
        settings["stop_ids"] = tuple(stop for stop in stops if isinstance(stop, int))
    return settings


def _longest_sequence(folder: Path) -> int | None:
    lengths = [
        _read_json(folder / "tokenizer_config.json").get("model_max_length"),
        _read_json(folder / "config.json").get("max_position_embeddings"),
    ]
    known = [int(n) for n in lengths if isinstance(n, int | float) and 2 <= n <= _LARGEST_LENGTH]
    return min(known) if known else None


def _token_text(entry: Any) -> str | None:
    """Returns the text of a token that is written as text or as a mapping with `content`."""
    content = entry.get("content") if isinstance(entry, Mapping) else entry
    return content if isinstance(content, str) else None


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}


def _read_json(file: Path) -> dict[str, Any]:
    """Returns the object in a JSON file, {} where there is no such file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TokenizerError(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{file} holds a {type(content).__name__}, expected an object of settings")
    return content
