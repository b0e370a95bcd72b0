"""Directories of models with a small tokenizer of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trained_tokenizers import KINDS, NAMES, train


@pytest.fixture(scope="session")
def trained() -> dict[str, dict[str, Any]]:
    """The content of a tokenizer.json of each kind."""
    return {kind: train(kind) for kind in KINDS}


@pytest.fixture
def make_folder(trained: dict[str, dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the directory of a model with a tokenizer of a kind."""

    def make(kind: str, **config: Any) -> Path:
        folder = tmp_path / kind
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(trained[kind]), encoding="utf-8")
        settings = {**NAMES[kind], "tokenizer_class": "PreTrainedTokenizerFast", **config}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return folder

    return make
