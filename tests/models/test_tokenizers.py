"""Tokenizer builders of every family: the files that torchtune's configs name, and whole directories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import tune.models
from tune.config.component_check import list_components
from tune.config.instantiate import import_component
from tune.config.slots import TOKENIZER
from tune.errors import TokenizerError
from tune.models.llama3 import llama3_tokenizer
from tune.models.mistral import mistral_tokenizer
from tune.models.phi3 import phi3_mini_tokenizer
from tune.models.phi4 import phi4_tokenizer
from tune.models.qwen2 import qwen2_tokenizer
from tune.tokenizers import BaseTokenizer

Builder = Callable[..., BaseTokenizer]
# Short name -> the builder, of every family.
BUILDERS: dict[str, Builder] = {
    name: import_component(path)
    for name, path in list_components(TOKENIZER).items()
    if path.startswith("tune.models.")
}
# Families share builders; Llama 2's reads a SentencePiece model and nothing else.
DIFFERENT = sorted({*BUILDERS.values()} - {BUILDERS["llama2"]}, key=lambda builder: builder.__name__)
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


@pytest.mark.parametrize("builder", DIFFERENT)
def test_a_directory_and_its_tokenizer_json_are_the_same(builder: Builder, json_folder: Path) -> None:
    whole = builder(str(json_folder), max_seq_len=7, prompt_template="tune.data.ChatMLTemplate")
    file = builder(str(json_folder / "tokenizer.json"))
    assert whole.encode(TEXT) == file.encode(TEXT)
    assert whole.decode(whole.encode(TEXT)) == TEXT
    assert (whole.max_seq_len, file.max_seq_len) == (7, None)
    assert file.chat_template is not None


@pytest.mark.parametrize("builder", DIFFERENT)
def test_a_missing_tokenizer_is_named(builder: Builder, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="nowhere"):
        builder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("builder", [llama3_tokenizer, mistral_tokenizer])
def test_a_tokenizer_model_is_read_by_content(builder: Builder, spm_file: Path, tmp_path: Path) -> None:
    shutil.copyfile(spm_file, tmp_path / "tokenizer.model")
    tokenizer = builder(str(tmp_path / "tokenizer.model"), max_seq_len=5)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@pytest.mark.parametrize("builder", [llama3_tokenizer, phi3_mini_tokenizer, qwen2_tokenizer])
def test_special_tokens_come_with_the_whole_tokenizer(builder: Builder, json_folder: Path) -> None:
    other = json_folder / "other.model"
    other.write_text("never read")
    tokenizer = builder(str(other), special_tokens_path=str(json_folder / "tokenizer.json"))
    assert tokenizer.encode(TEXT) == builder(str(json_folder)).encode(TEXT)


def test_qwens_vocab_and_merges(json_folder: Path) -> None:
    builder = qwen2_tokenizer
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


def test_phi4s_vocab_and_merges(json_folder: Path, chat_definition: str) -> None:
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


def test_every_familys_tokenizer_goes_by_its_short_name(json_folder: Path, spm_file: Path) -> None:
    assert {"gemma2", "llama2", "llama3", "phi3_mini", "qwen2_5", "qwen3_moe", "smollm3"} <= set(BUILDERS)
    shutil.copyfile(spm_file, json_folder / "tokenizer.model")
    for name in BUILDERS:
        path = {"vocab_path" if name == "phi4" else "path": str(json_folder)}
        assert tune.models.get_tokenizer(name, **path).vocab_size > 0
