"""Settings that let other tools load a tokenizer saved beside a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune.tokenizers.settings import AddedToken, read_json

if TYPE_CHECKING:
    from tune.tokenizers.base import BaseTokenizer
    from tune.tokenizers.spm import SentencePieceTokenizer

_UNLIMITED = 1_000_000_000_000_000_019_884_624_838_656  # int(1e30), as Hugging Face writes it
# In tokenizer_config.json: the file beside it that tune reads, where tokenizer.json was made of that for others.
MADE_FROM = "made_from"
_TEMPLATES = "additional_chat_templates"


def write_hf_tokenizer_config(tokenizer: SentencePieceTokenizer, directory: str | Path) -> list[Path]:
    """Write what `transformers.AutoTokenizer` needs beside a bare `tokenizer.model`.

    That is an equal tokenizer.json where there can be one: of the model file alone, transformers 5 leaves the space
    before the first word out for most families, and with it gives other ids than the model was trained with.

    Files that already stand in `directory` are left alone. The tokenizer's own files are not copied here.

    Args:
        tokenizer: the tokenizer whose `files()` were, or will be, copied into `directory`.
        directory: the saved model's directory.

    Returns:
        The files written.
    """
    names = {
        "bos_token": tokenizer.token(tokenizer.bos_id),
        "eos_token": tokenizer.token(tokenizer.eos_id),
        "unk_token": tokenizer.unk_token,
        "pad_token": tokenizer.token(tokenizer.pad_id),
    }
    config = {
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": False,
        **names,
        "clean_up_tokenization_spaces": False,
        "legacy": tokenizer.prefix_each,
        "model_max_length": tokenizer.max_seq_len or _UNLIMITED,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    folder = Path(directory)
    write_templates(tokenizer, folder)
    written = []
    settings = folder / "tokenizer_config.json"
    # Settings that came with the model name a class, which may make something else of a tokenizer.json.
    is_ours = not settings.exists() or MADE_FROM in read_json(settings)
    definition = (
        tokenizer.as_tokenizer_json() if is_ours and not (folder / "tokenizer.json").exists() else None
    )
    if definition is not None:
        (folder / "tokenizer.json").write_text(definition, encoding="utf-8")
        written.append(folder / "tokenizer.json")
        # The class of Llama would make another tokenizer of the vocabulary in it.
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", MADE_FROM: "tokenizer.model"}
    return written + _write_missing(
        folder, {"tokenizer_config.json": config, "special_tokens_map.json": names}
    )


def write_hf_settings(tokenizer: BaseTokenizer, directory: str | Path, definition: str) -> list[Path]:
    """Write a tokenizer.json and the settings beside it, where they do not stand there yet.

    Args:
        tokenizer: whose special tokens are named.
        directory: the saved model's directory.
        definition: content of the tokenizer.json.

    Returns:
        The files written.
    """
    folder = Path(directory)
    write_templates(tokenizer, folder)
    written = []
    if not (folder / "tokenizer.json").exists():
        (folder / "tokenizer.json").write_text(definition, encoding="utf-8")
        written.append(folder / "tokenizer.json")
    config = {
        "clean_up_tokenization_spaces": False,
        **tokenizer.special_token_names,
        "pad_token": tokenizer.token(tokenizer.pad_id),
        "model_max_length": tokenizer.max_seq_len or _UNLIMITED,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return written + _write_missing(folder, {"tokenizer_config.json": config})


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
    config.pop(MADE_FROM, None)  # no longer equal to it
    if made_here:  # as in `write_hf_tokenizer_config`
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["added_tokens_decoder"] = {
        str(token_id): {"content": token.content, **token.flags()} for token_id, token in entries.items()
    }
    contents = {"tokenizer_config.json": config}
    if (folder / "added_tokens.json").exists():
        contents["added_tokens.json"] = {token.content: token_id for token_id, token in entries.items()}
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_templates(tokenizer: BaseTokenizer, folder: Path) -> None:
    """Copies chat templates that stand in a folder of their own beside the tokenizer, and writes an adopted one."""
    source, target = tokenizer.path.parent / _TEMPLATES, folder / _TEMPLATES
    if source.is_dir() and not target.exists():
        target.mkdir()
        for file in sorted(source.glob("*.jinja")):
            shutil.copyfile(file, target / file.name)
    if tokenizer.adopted_template is not None:
        (folder / "chat_template.jinja").write_text(tokenizer.adopted_template.source, encoding="utf-8")
        generation = folder / "generation_config.json"
        if generation.exists():  # a copy of the base model's, which does not end turns
            content = read_json(generation) | {"eos_token_id": list(tokenizer.stop_ids)}
            generation.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_missing(folder: Path, contents: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    written = []
    for name, content in contents.items():
        file = folder / name
        if not file.exists():
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            written.append(file)
    return written
