"""Settings that let other tools load a tokenizer saved beside a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tune.tokenizers.spm import SentencePieceTokenizer

_UNLIMITED = 1_000_000_000_000_000_019_884_624_838_656  # int(1e30), as Hugging Face writes it


def write_hf_tokenizer_config(tokenizer: SentencePieceTokenizer, directory: str | Path) -> list[Path]:
    """Writes the settings that `transformers.AutoTokenizer` needs beside a bare `tokenizer.model`.

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
        # The behaviour that equals sentencepiece's own encode.
        "legacy": True,
        "model_max_length": tokenizer.max_seq_len or _UNLIMITED,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    written = []
    for file_name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
        file = Path(directory) / file_name
        if not file.exists():
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            written.append(file)
    return written
