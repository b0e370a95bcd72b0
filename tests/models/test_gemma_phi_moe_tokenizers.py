"""Tokenizer builders by family: the files that torchtune's configs name, and whole directories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import tune.models
from tune.errors import TokenizerError
from tune.models.gemma import gemma_tokenizer
from tune.models.gemma2 import gemma2_tokenizer
from tune.models.gemma3 import gemma3_tokenizer
from tune.models.mixtral import mixtral_tokenizer
from tune.models.olmo2 import olmo2_tokenizer
from tune.models.phi3 import phi3_mini_tokenizer
from tune.models.phi4 import phi4_mini_tokenizer, phi4_tokenizer
from tune.models.qwen3_moe import qwen3_moe_tokenizer
from tune.tokenizers import BaseTokenizer

Builder = Callable[..., BaseTokenizer]
OF_ONE_PATH = (
    gemma_tokenizer,
    gemma2_tokenizer,
    gemma3_tokenizer,
    mixtral_tokenizer,
    olmo2_tokenizer,
    phi3_mini_tokenizer,
    phi4_tokenizer,
    phi4_mini_tokenizer,
    qwen3_moe_tokenizer,
)
TEXT = "the answer is 42"


@pytest.fixture
def json_folder(tmp_path: Path, chat_definition: str) -> Path:
    (tmp_path / "tokenizer.json").write_text(chat_definition, encoding="utf-8")
    added = {str(token["id"]): token for token in json.loads(chat_definition)["added_tokens"]}
    settings = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("builder", OF_ONE_PATH)
def test_a_tokenizer_json_and_its_directory_are_the_same(builder: Builder, json_folder: Path) -> None:
    whole, file = builder(str(json_folder), max_seq_len=7), builder(str(json_folder / "tokenizer.json"))
    assert whole.encode(TEXT, add_bos=False, add_eos=False) == file.encode(TEXT, add_bos=False, add_eos=False)
    assert whole.decode(whole.encode(TEXT)) == TEXT
    assert whole.max_seq_len == 7


@pytest.mark.parametrize(
    "builder", [gemma_tokenizer, gemma2_tokenizer, phi3_mini_tokenizer, mixtral_tokenizer]
)
def test_a_sentencepiece_model_is_read(builder: Builder, spm_file: Path, tmp_path: Path) -> None:
    shutil.copyfile(spm_file, tmp_path / "tokenizer.model")
    tokenizer = builder(str(tmp_path / "tokenizer.model"), max_seq_len=5)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.max_seq_len == 5


def test_phi3s_special_tokens_come_with_the_whole_tokenizer(json_folder: Path, spm_file: Path) -> None:
    model = json_folder / "phi3.model"
    shutil.copyfile(spm_file, model)
    tokenizer = phi3_mini_tokenizer(str(model), str(json_folder / "tokenizer.json"))
    assert tokenizer.encode(TEXT) == phi3_mini_tokenizer(str(json_folder)).encode(TEXT)


def test_phi4_reads_vocab_and_merges_without_tokenizer_json(json_folder: Path, chat_definition: str) -> None:
    whole = phi4_tokenizer(str(json_folder / "vocab.json"))
    model = json.loads(chat_definition)["model"]
    (json_folder / "tokenizer.json").unlink()
    (json_folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (json_folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    parts = phi4_tokenizer(str(json_folder / "vocab.json"), str(json_folder / "merges.txt"), max_seq_len=9)
    assert parts.max_seq_len == 9
    assert parts.decode(parts.encode(TEXT, add_bos=False, add_eos=False)) == TEXT
    assert whole.vocab_size >= parts.vocab_size > 0


@pytest.mark.parametrize("builder", OF_ONE_PATH)
def test_a_missing_tokenizer_is_named(builder: Builder, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="nowhere"):
        builder(str(tmp_path / "nowhere"))


def test_tokenizers_go_by_their_short_names(json_folder: Path) -> None:
    for name in ("gemma", "gemma2", "phi3_mini", "olmo2"):
        assert tune.models.get_tokenizer(name, path=str(json_folder)).vocab_size > 0
