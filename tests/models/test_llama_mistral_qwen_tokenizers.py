"""Tokenizer builders of Llama 3, Mistral, Qwen, SmolLM and Granite: torchtune's arguments, and whole directories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import tune.models
from tune.errors import TokenizerError
from tune.models.granite import granite_tokenizer
from tune.models.llama3 import llama3_tokenizer
from tune.models.mistral import mistral_tokenizer
from tune.models.qwen2 import qwen2_tokenizer
from tune.models.qwen2_5 import qwen2_5_tokenizer
from tune.models.qwen3 import qwen3_tokenizer
from tune.models.smollm2 import smollm2_tokenizer
from tune.models.smollm3 import smollm3_tokenizer
from tune.tokenizers import BaseTokenizer

Builder = Callable[..., BaseTokenizer]
QWENS = (qwen2_tokenizer, qwen2_5_tokenizer, qwen3_tokenizer)
ALL = (
    *(granite_tokenizer, llama3_tokenizer, mistral_tokenizer, smollm2_tokenizer, smollm3_tokenizer),
    *QWENS,
)
TEXT = "the answer is 42"


@pytest.fixture
def json_folder(tmp_path: Path, chat_definition: str) -> Path:
    """A directory as on the hub: tokenizer.json, and the same vocabulary in two files."""
    definition = json.loads(chat_definition)
    (tmp_path / "tokenizer.json").write_text(chat_definition, encoding="utf-8")
    added = {str(token["id"]): token for token in definition["added_tokens"]}
    settings = {
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
        "added_tokens_decoder": added,
        "chat_template": "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / "vocab.json").write_text(json.dumps(definition["model"]["vocab"]), encoding="utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in definition["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("builder", ALL)
def test_a_directory_and_its_tokenizer_json_are_the_same(builder: Builder, json_folder: Path) -> None:
    whole = builder(str(json_folder), max_seq_len=7, prompt_template="tune.data.ChatMLTemplate")
    file = builder(str(json_folder / "tokenizer.json"))
    assert whole.encode(TEXT) == file.encode(TEXT)
    assert whole.decode(whole.encode(TEXT)) == TEXT
    assert (whole.max_seq_len, file.max_seq_len) == (7, None)
    assert file.chat_template is not None


@pytest.mark.parametrize("builder", ALL)
def test_a_missing_tokenizer_is_named(builder: Builder, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="nowhere"):
        builder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("builder", [llama3_tokenizer, mistral_tokenizer])
def test_a_tokenizer_model_is_read_by_content(builder: Builder, spm_file: Path, tmp_path: Path) -> None:
    shutil.copyfile(spm_file, tmp_path / "tokenizer.model")
    tokenizer = builder(str(tmp_path / "tokenizer.model"), max_seq_len=5)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@pytest.mark.parametrize("builder", [llama3_tokenizer, qwen2_tokenizer, qwen3_tokenizer])
def test_special_tokens_come_with_the_whole_tokenizer(builder: Builder, json_folder: Path) -> None:
    other = json_folder / "other.model"
    other.write_text("never read")
    tokenizer = builder(str(other), special_tokens_path=str(json_folder / "tokenizer.json"))
    assert tokenizer.encode(TEXT) == builder(str(json_folder)).encode(TEXT)


@pytest.mark.parametrize("builder", QWENS)
def test_qwens_vocab_and_merges(builder: Builder, json_folder: Path) -> None:
    vocab, merges = str(json_folder / "vocab.json"), str(json_folder / "merges.txt")
    beside = builder(vocab, merges)
    assert beside.encode(TEXT) == builder(str(json_folder)).encode(TEXT)
    (json_folder / "tokenizer.json").unlink()
    parts = [builder(vocab, merges, max_seq_len=9), builder(vocab), builder(str(json_folder))]
    (json_folder / "elsewhere").mkdir()
    shutil.move(merges, json_folder / "elsewhere" / "my-merges.txt")
    parts.append(builder(vocab, str(json_folder / "elsewhere" / "my-merges.txt")))
    for tokenizer in parts:
        ids = tokenizer.encode(TEXT, add_bos=False, add_eos=False)
        assert ids == parts[0].encode(TEXT, add_bos=False, add_eos=False)
        assert tokenizer.decode(ids) == TEXT
        assert tokenizer.chat_template is not None
    # Qwen composes characters and cuts off digits one by one, whatever stands beside the files.
    assert parts[0].encode("e\u0301", add_bos=False) == parts[0].encode("\u00e9", add_bos=False)
    with pytest.raises(TokenizerError, match=r"merges\.txt"):
        builder(vocab)


def test_tokenizers_go_by_their_short_names(json_folder: Path) -> None:
    for name in ("llama3", "mistral", "qwen2", "qwen2_5", "qwen3", "smollm2", "smollm3", "granite"):
        assert tune.models.get_tokenizer(name, path=str(json_folder)).vocab_size > 0
