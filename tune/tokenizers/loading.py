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
# Ids beyond this are a broken file: vocabularies have a few hundred thousand.
_LARGEST_ID = 100_000_000


def from_checkpoint(
    directory: str | Path, max_seq_len: int | None = None, prompt_template: PromptTemplateSpec | None = None
) -> SentencePieceTokenizer:
    """Returns the tokenizer that stands in a model's directory.

    What `tokenizer_config.json`, `generation_config.json` and `config.json` say beside it is honoured:
    special tokens, whether a BOS is used, what ends a generation, and the longest sequence.

    Args:
        directory: holds `tokenizer.model` (or, as Meta ships it, its parent directory does); or the file itself;
            or a saved step or output directory of a run.
        max_seq_len: tokens after which examples are truncated; by default what the model was made for.
        prompt_template: how conversations are written, see `tune.tokenizers.get_prompt_template`.

    Raises:
        TokenizerError: no tokenizer there, or only kinds that cannot be read yet.
    """
    try:
        file, folder = _find(expand_path(directory))
    except OSError as error:
        raise TokenizerError(f"cannot read {error.filename or directory}: {error.strerror}") from error
    if folder is None:
        return SentencePieceTokenizer(file, max_seq_len, prompt_template)
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


def _find(place: Path) -> tuple[Path, Path | None]:
    """Returns the tokenizer's file, and the directory whose settings belong to it."""
    if place.is_file():
        # Under another name it need not belong to the files beside it.
        return place, place.parent if place.name == "tokenizer.model" else None
    if not place.is_dir():
        raise TokenizerError(f"there is no file or directory {place} to read a tokenizer from")
    for folder in (place, place / "model", place / "latest" / "model"):
        if (folder / "tokenizer.model").is_file():
            return folder / "tokenizer.model", folder
    # Meta's download keeps one tokenizer.model beside the directories of its models.
    if (place / "params.json").is_file() and (place.parent / "tokenizer.model").is_file():
        return place.parent / "tokenizer.model", place
    raise TokenizerError(_what_is_missing(place))


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
    config_file, added_file = folder / "tokenizer_config.json", folder / "added_tokens.json"
    config = _read_json(config_file)
    added = {
        _token_text(entry) or "": _token_id(token_id, config_file)
        for token_id, entry in _mapping(config, "added_tokens_decoder").items()
    }
    added |= {text: _token_id(token_id, added_file) for text, token_id in _read_json(added_file).items()}
    # Tokens that were added without a row in the model's embedding cannot be used with this model.
    num_rows = _read_json(folder / "config.json").get("vocab_size")
    if isinstance(num_rows, int):
        added = {text: token_id for text, token_id in added.items() if token_id < num_rows}
    settings: dict[str, Any] = {"added_tokens": added}
    for name in ("bos_token", "eos_token", "pad_token"):
        settings[name] = _token_text(config[name]) if config.get(name) else None
    add_bos = config.get("add_bos_token")
    if add_bos is not None:
        if not isinstance(add_bos, bool):
            raise TokenizerError(f"{config_file}: add_bos_token is {add_bos!r}, expected true or false")
        settings["add_bos"] = add_bos
    generation_file = folder / "generation_config.json"
    stops = _read_json(generation_file).get("eos_token_id")
    if stops is not None:
        stops = stops if isinstance(stops, list) else [stops]
        settings["stop_ids"] = tuple(_token_id(stop, generation_file) for stop in stops)
    return settings


def _longest_sequence(folder: Path) -> int | None:
    lengths = [
        _read_json(folder / "tokenizer_config.json").get("model_max_length"),
        _read_json(folder / "config.json").get("max_position_embeddings"),
    ]
    known = [int(n) for n in lengths if isinstance(n, int | float) and 2 <= n <= _LARGEST_LENGTH]
    return min(known) if known else None


def _token_id(value: Any, file: Path) -> int:
    """Returns a token's id, which files also write as text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_ID:
        raise TokenizerError(f"{file}: {str(value)[:40]!r} is no token id, which is a whole number from 0 on")
    return value


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
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{file} holds a {type(content).__name__}, expected an object of settings")
    return content
