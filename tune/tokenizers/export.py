"""Settings that let other tools load a tokenizer saved beside a model."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune.tokenizers.settings import AddedToken, read_json

if TYPE_CHECKING:
    from tune.tokenizers.base import BaseTokenizer

UNLIMITED = 1_000_000_000_000_000_019_884_624_838_656  # int(1e30), as Hugging Face writes it
# In tokenizer_config.json: the file beside it that tune reads, where tokenizer.json was made of that for others.
MADE_FROM = "made_from"
# Beside it: SHA-256 of the tokenizer.json that was made. Other tools keep both notes when they change that file.
MADE_FROM_DIGEST = "made_from_digest"
_TEMPLATES = "additional_chat_templates"


def write_hf_settings(
    tokenizer: BaseTokenizer,
    directory: str | Path,
    definition: str | None,
    contents: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Path]:
    """Write a tokenizer.json and the settings beside it, where they do not stand there yet.

    Args:
        tokenizer: whose special tokens are named.
        directory: the saved model's directory.
        definition: content of the tokenizer.json; None writes none.
        contents: what the settings hold, by the name of the file; None means what fits any tokenizer.json.

    Returns:
        The files written.
    """
    folder = Path(directory)
    write_templates(tokenizer, folder)
    written = []
    if definition is not None and not (folder / "tokenizer.json").exists():
        (folder / "tokenizer.json").write_text(definition, encoding="utf-8")
        written.append(folder / "tokenizer.json")
    config = {
        "clean_up_tokenization_spaces": False,
        **tokenizer.special_token_names,
        "pad_token": tokenizer.token(tokenizer.pad_id),
        "model_max_length": tokenizer.max_seq_len or UNLIMITED,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return written + _write_missing(folder, contents or {"tokenizer_config.json": config})


def write_extended(
    directory: str | Path, definition: str, entries: Mapping[int, AddedToken], made_here: bool
) -> None:
    """Write a tokenizer to which tokens were added over the copies of its files, which do not know them.

    Args:
        directory: the saved model's directory, with all other files of the tokenizer.
        definition: content of the tokenizer.json.
        entries: all added tokens by id.
        made_here: the tokenizer.json was made of a file of another kind.
    """
    folder = Path(directory)
    (folder / "tokenizer.json").write_text(definition, encoding="utf-8")
    config = read_json(folder / "tokenizer_config.json")
    for note in (MADE_FROM, MADE_FROM_DIGEST):
        config.pop(note, None)  # no longer equal to it
    if made_here:  # as in `write_hf_tokenizer_config`
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["added_tokens_decoder"] = {
        str(token_id): {"content": token.content, **token.flags()} for token_id, token in entries.items()
    }
    contents = {"tokenizer_config.json": config}
    if (folder / "added_tokens.json").exists():
        contents["added_tokens.json"] = {token.content: token_id for token_id, token in entries.items()}
    for name, content in contents.items():
        _write_json(folder / name, content)


def note_digest(folder: Path) -> None:
    """Write into the settings of a folder which tokenizer.json it is that was made of another file there."""
    settings = folder / "tokenizer_config.json"
    content = read_json(settings)
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    if MADE_FROM in content and content.get(MADE_FROM_DIGEST) != digest:
        _write_json(settings, content | {MADE_FROM_DIGEST: digest})


def write_templates(tokenizer: BaseTokenizer, folder: Path) -> None:
    """Write the chat template that a model was trained in, and the token that ends its turns, into a model's folder.

    Where none was, templates that stand in a folder of their own beside the tokenizer are copied.
    """
    extra, adopted = folder / _TEMPLATES, tokenizer.adopted_template
    source = tokenizer.path.parent / _TEMPLATES
    if adopted is None and source.is_dir() and not extra.exists():
        extra.mkdir()
        for file in sorted(source.glob("*.jinja")):
            shutil.copyfile(file, extra / file.name)
    if adopted is not None:
        # In place of the base model's, wherever in the files copied here that stands.
        (folder / "chat_template.json").unlink(missing_ok=True)
        (folder / "chat_template.jinja").write_text(adopted.source, encoding="utf-8")
        shutil.rmtree(extra, ignore_errors=True)
        if adopted.for_tools is not None:
            extra.mkdir()
            (extra / "tool_use.jinja").write_text(adopted.for_tools, encoding="utf-8")
        settings = folder / "tokenizer_config.json"
        if "chat_template" in (content := read_json(settings)):
            _write_json(settings, content | {"chat_template": adopted.source})
    generation = folder / "generation_config.json"
    if tokenizer.trained_template is not None and generation.exists():
        # A copy of the base model's, which may not end these turns.
        content = read_json(generation)
        known = content.get("eos_token_id")
        stops = known if isinstance(known, list) else [known] if isinstance(known, int) else []
        if missing := [stop for stop in tokenizer.stop_ids if stop not in stops]:
            _write_json(generation, content | {"eos_token_id": [*stops, *missing]})


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_missing(folder: Path, contents: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    written = []
    for name, content in contents.items():
        file = folder / name
        if not file.exists():
            _write_json(file, content)
            written.append(file)
    return written
