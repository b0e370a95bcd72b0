"""Things that tests of several folders share."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer

STEMS = "the answer question of apple river seven twelve green walk Instruction Response INST SYS"


@pytest.fixture(scope="session")
def spm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model with Llama 2's settings (BPE, byte fallback, spaces kept) and 600 pieces."""
    return train_spm(tmp_path_factory.mktemp("spm") / "tokenizer.model", remove_extra_whitespaces=False)


@pytest.fixture(scope="session")
def folding_spm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that folds runs of spaces, as sentencepiece's default settings do."""
    return train_spm(tmp_path_factory.mktemp("spm") / "folding.model", remove_extra_whitespaces=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def train_spm(file: Path, remove_extra_whitespaces: bool) -> Path:
    import sentencepiece

    rng = random.Random(0)
    stems = STEMS.split()
    words = [*stems, *(stem + end for stem in stems for end in ("s", "ed", "ing")), "naïve", "Zürich", "日本"]
    ends = (".", "?", ":", "!", " [/INST]")
    lines = [" ".join(rng.choices(words, k=9)) + rng.choice(ends) for _ in range(600)]
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=content,
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=remove_extra_whitespaces,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    file.write_bytes(content.getvalue())
    return file


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A hub of its own on loopback, and nobody logged in."""
    from huggingface_hub import constants

    server = HubServer()
    home = tmp_path_factory.mktemp("hub_home")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(home))
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_TOKEN_PATH",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    yield server
    server.close()
