"""Things that tests of several folders share."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import random
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hub_server import HubServer
from hypothesis import HealthCheck, settings

# Triton reads it when it is first imported, by torch or by a test. On a GPU its kernels are compiled.
if not Path("/proc/driver/nvidia").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples on every machine: what a change breaks is seen with that change, and no run fails by chance.
# With TUNE_FUZZ_EXAMPLES other examples are drawn each time.
settings.register_profile(
    "tune",
    derandomize="TUNE_FUZZ_EXAMPLES" not in os.environ,
    deadline=None,  # nothing here is a matter of time, drawing examples on a busy machine neither
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("tune")

STEMS = "the answer question of apple river seven twelve green walk Instruction Response INST SYS"


@pytest.fixture(autouse=True)
def library_logger_as_at_first() -> Iterator[None]:
    """Undo what a recipe set up in this process: pytest would capture a logger of its own handlers twice."""
    yield
    logger = logging.getLogger("tune")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture(scope="session")
def spm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model with Llama 2's settings (BPE, byte fallback, spaces kept) and 600 pieces."""
    return train_spm(tmp_path_factory.mktemp("spm") / "tokenizer.model", remove_extra_whitespaces=False)


@pytest.fixture(scope="session")
def folding_spm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that folds runs of spaces, as sentencepiece's default settings do."""
    return train_spm(tmp_path_factory.mktemp("spm") / "folding.model", remove_extra_whitespaces=True)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect ten thousand tests, and what they import, without looking for garbage among them again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


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


CHAT_SPECIAL = ("<|bos|>", "<|eos|>", "<|start|>", "<|sep|>", "<|end|>", "[INST]", "[/INST]", "<|call|>")
CHAT_ADDED = ("<think>", "</think>", "<tool_call>", "</tool_call>")


@pytest.fixture(scope="session")
def chat_definition() -> str:
    """A tokenizer.json as Llama 3 and Qwen have it: byte-level BPE, special tokens, added ones that are not special."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"\s?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    split = pre_tokenizers.Split(words, "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(1)
    texts = [
        " ".join(rng.choices([*STEMS.split(), "user", "assistant\n\n", "](", "<|", "日本"], k=9))
        for _ in range(400)
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in CHAT_SPECIAL],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in CHAT_ADDED])
    return str(tokenizer.to_str())


@pytest.fixture
def chat_folder(tmp_path: Path, chat_definition: str) -> Callable[..., Path]:
    """Write a checkpoint's tokenizer with a chat template, and returns its directory."""

    def write(template: object = None, **config: object) -> Path:
        folder = tmp_path / f"checkpoint{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "tokenizer.json").write_text(chat_definition, encoding="utf-8")
        settings = {
            "bos_token": "<|bos|>",
            "eos_token": "<|eos|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        if template is not None:
            settings["chat_template"] = template
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | config), encoding="utf-8")
        return folder

    return write


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the tests tokenize out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
