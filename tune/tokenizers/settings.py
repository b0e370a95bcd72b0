"""What the JSON files beside a tokenizer say about it: special tokens, BOS, lengths, ends of a generation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from tune.errors import TokenizerError
from tune.utils.json_errors import describe_json_error

# Hugging Face writes 1e30 where no length is known.
_LARGEST_LENGTH = 100_000_000
# Ids beyond this are a broken file: vocabularies have a few hundred thousand.
_LARGEST_ID = 100_000_000
_LARGEST_FILE = 64 * 2**20  # as large as the largest tokenizer; settings repeat no more than its added tokens
# Models of speech add 65,536; the library takes seconds for each hundred thousand, and more where they look alike.
MAX_ADDED_TOKENS = 131_072
_MAX_STOP_IDS = 1_000  # models have a few
_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in text before anything else.

    Args:
        content: its text.
        special: left out of decoded text, and never made from a user's text.
        lstrip, rstrip: takes the white space before, after it along.
        single_word: is only found where no letter stands beside it.
        normalized: is looked for after normalisation.
    """

    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = True

    def flags(self) -> dict[str, bool]:
        """Return everything but the text."""
        return {name: getattr(self, name) for name in _FLAGS}


@dataclass(frozen=True)
class TokenizerSettings:
    """What stands beside a tokenizer's file.

    Args:
        names: `bos_token`, `eos_token`, ... to the text of the token; None where a file says there is none.
        added: added tokens by id.
        lists_all: `added` comes from `added_tokens_decoder`, which is complete.
        extra_special: further special tokens, by text.
        add_bos: whether texts begin with a BOS; None where no file says.
        legacy: the setting of SentencePiece tokenizers by that name: each text between special tokens gets a
            space before it, not the first only.
        clean_up: take the spaces before punctuation away after decoding.
        ids: `bos_token_id`, `eos_token_id`, `pad_token_id` of the model's configuration.
        stop_ids: what ends a generation.
        num_rows: rows of the model's embedding, None where unknown.
        model_type: as config.json names the model's family.
        max_seq_len: tokens the model was made for.
    """

    names: Mapping[str, AddedToken | None] = field(default_factory=dict)
    added: Mapping[int, AddedToken] = field(default_factory=dict)
    lists_all: bool = False
    extra_special: tuple[AddedToken, ...] = ()
    add_bos: bool | None = None
    legacy: bool | None = None
    clean_up: bool = False
    ids: Mapping[str, int] = field(default_factory=dict)
    stop_ids: tuple[int, ...] = ()
    num_rows: int | None = None
    model_type: str = ""
    max_seq_len: int | None = None

    def name(self, role: str) -> str | None:
        """Return the text of the token named `role`, None where none is."""
        token = self.names.get(role)
        return None if token is None else token.content

    def fits(self, token_id: int) -> bool:
        """Return whether the model has a row for an id."""
        return self.num_rows is None or token_id < self.num_rows


def read_settings(folder: Path) -> TokenizerSettings:
    """Return what the files in a model's directory say; files that are not there say nothing.

    Raises:
        TokenizerError: a file cannot be read, or holds values of the wrong kind.
    """
    config_file = folder / "tokenizer_config.json"
    config = read_json(config_file)
    lists_all = "added_tokens_decoder" in config
    settings = TokenizerSettings(
        names=_names(config, config_file),
        added=_added_tokens(config, config_file),
        lists_all=lists_all,
        extra_special=_extra_special(config, config_file),
        add_bos=_flag(config, "add_bos_token", config_file),
        legacy=_flag(config, "legacy", config_file),
        clean_up=bool(_flag(config, "clean_up_tokenization_spaces", config_file)),
    )
    if not lists_all:
        settings = _with_legacy_files(settings, folder)
    named = len(settings.names) + len(settings.extra_special)
    refuse_many_tokens(max(len(settings.added), named), folder)
    return replace(settings, **_of_the_model(folder, config))


def refuse_many_tokens(number: int, place: Path) -> None:
    """Raise TokenizerError where files add more tokens to a vocabulary than are read."""
    if number > MAX_ADDED_TOKENS:
        raise TokenizerError(
            f"{place}: {number} tokens are added to the vocabulary; {MAX_ADDED_TOKENS} are read at most"
        )


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} where there is no such file.

    Raises:
        TokenizerError: it cannot be read, or holds something else.
    """
    if not file.is_file():
        return {}
    try:
        if (size := file.stat().st_size) > _LARGEST_FILE:
            raise TokenizerError(f"{file} has {size} bytes; settings of {_LARGEST_FILE} are read at most")
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise TokenizerError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"cannot read {file}: {describe_json_error(error)}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{file} holds a {type(content).__name__}, expected an object of settings")
    return content


def _with_legacy_files(settings: TokenizerSettings, folder: Path) -> TokenizerSettings:
    """Add what older files say, which are read only where the newer setting is missing."""
    map_file, added_file = folder / "special_tokens_map.json", folder / "added_tokens.json"
    special_map = read_json(map_file)
    names = {**settings.names, **_names(special_map, map_file)}
    extra = tuple(dict.fromkeys((*settings.extra_special, *_extra_special(special_map, map_file))))
    special = {token.content for token in (*names.values(), *extra) if token is not None}
    added = {
        _token_id(token_id, added_file): AddedToken(
            text, special=text in special, normalized=text not in special
        )
        for text, token_id in read_json(added_file).items()
    }
    return replace(settings, names=names, extra_special=extra, added=added)


def _of_the_model(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the model's own configuration files decide."""
    model_file, generation_file = folder / "config.json", folder / "generation_config.json"
    model, generation = read_json(model_file), read_json(generation_file)
    # Models for text and images keep the text model's numbers one level down.
    inner = model.get("text_config")
    if isinstance(inner, dict):
        model = {**model, **{key: value for key, value in inner.items() if value is not None}}
    num_rows = model.get("vocab_size")
    ids: dict[str, int] = {}
    stops: tuple[int, ...] = ()
    for file, content in ((generation_file, generation), (model_file, model)):
        for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = content.get(role)
            if value is None or role in ids:
                continue
            if isinstance(value, list) and len(value) > _MAX_STOP_IDS:
                raise TokenizerError(
                    f"{file}: {role} lists {len(value)} ids; {_MAX_STOP_IDS} are read at most"
                )
            found = tuple(_token_id(item, file) for item in (value if isinstance(value, list) else [value]))
            if found:
                ids[role] = found[0]
                stops = found if role == "eos_token_id" else stops
    longest = config.get("model_max_length")
    if longest is not None and not _is_number(longest):
        raise TokenizerError(
            f"{folder / 'tokenizer_config.json'}: model_max_length is {str(longest)[:40]!r}, expected a number"
        )
    lengths = [longest, model.get("max_position_embeddings")]
    known = [int(n) for n in lengths if _is_number(n) and 2 <= n <= _LARGEST_LENGTH]
    model_type = model.get("model_type")
    return {
        "ids": ids,
        "stop_ids": stops,
        "num_rows": num_rows if _is_number(num_rows) and isinstance(num_rows, int) and num_rows > 0 else None,
        "model_type": model_type if isinstance(model_type, str) else "",
        "max_seq_len": min(known) if known else None,
    }


def _names(config: Mapping[str, Any], file: Path) -> dict[str, AddedToken | None]:
    names: dict[str, AddedToken | None] = {}
    for key, value in config.items():
        if key in TOKEN_NAMES:
            names[key] = None if value is None else _named_token(value, f"{file}: {key}")
        # Names of a model's own, such as `image_token`.
        elif key.endswith("_token") and isinstance(value, str):
            names[key] = _named_token(value, f"{file}: {key}")
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict):
        names |= {key: _named_token(value, f"{file}: {key}") for key, value in extra.items()}
    return names


def _extra_special(config: Mapping[str, Any], file: Path) -> tuple[AddedToken, ...]:
    for key in ("extra_special_tokens", "additional_special_tokens"):
        value = config.get(key)
        if isinstance(value, list) and value:
            return tuple(_named_token(item, f"{file}: {key}") for item in value)
    return ()


def _added_tokens(config: Mapping[str, Any], file: Path) -> dict[int, AddedToken]:
    entries = config.get("added_tokens_decoder", {})
    if not isinstance(entries, dict):
        raise TokenizerError(
            f"{file}: added_tokens_decoder is a {type(entries).__name__}, expected an object"
        )
    return {
        _token_id(token_id, file): added_token(entry, f"{file}: added_tokens_decoder[{token_id[:40]!r}]")
        for token_id, entry in entries.items()
    }


def added_token(entry: Any, where: str) -> AddedToken:
    """Return the added token that an object of a settings file describes.

    Raises:
        TokenizerError: it has no text, or a flag is no boolean.
    """
    content = entry.get("content") if isinstance(entry, Mapping) else None
    if not isinstance(content, str):
        raise TokenizerError(f"{where} is {str(entry)[:60]!r}, expected an object with the token's content")
    flags = {name: entry[name] for name in _FLAGS if name in entry}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TokenizerError(f"{where}: {name} is {str(value)[:40]!r}, expected true or false")
    flags.setdefault("normalized", not flags.get("special", False))
    return AddedToken(content, **flags)


def _named_token(value: Any, where: str) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=True, normalized=False)
    return replace(added_token(value, where), special=True)


def _token_id(value: Any, file: Path) -> int:
    """Return a token's id, which files also write as text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_ID:
        raise TokenizerError(f"{file}: {str(value)[:40]!r} is no token id, which is a whole number from 0 on")
    return value


def _flag(config: Mapping[str, Any], key: str, file: Path) -> bool | None:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise TokenizerError(f"{file}: {key} is {str(value)[:40]!r}, expected true or false")
    return value


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
