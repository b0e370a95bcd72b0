"""Settings that let other tools load a tokenizer saved beside a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune.tokenizers.settings import read_json

if TYPE_CHECKING:
    from tune.tokenizers.base import BaseTokenizer

UNLIMITED = 1_000_000_000_000_000_019_884_624_838_656  # int(1e30), as Hugging Face writes it
# In tokenizer_config.json: the file beside it that tune reads, where tokenizer.json was made of that for others.
MADE_FROM = "made_from"
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


def write_templates(tokenizer: BaseTokenizer, folder: Path) -> None:
    """Copy chat templates that stand in a folder of their own beside the tokenizer, and write an adopted one."""
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
