"""Tokenizer and configuration files of a stranger, or changed by another tool: bounded, and read for what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from tune.checkpoints import read_json
from tune.errors import CheckpointError, TokenizerError
from tune.models.loading import read_model_config
from tune.tokenizers import from_checkpoint
from tune.tokenizers.spm import SentencePieceTokenizer


def change(file: Path, **fields: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | fields))


@pytest.fixture
def exported(tmp_path: Path, spm_file: Path) -> Path:
    """A folder with tokenizer.model and the tokenizer.json that was made of it, as a saved step holds them."""
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(spm_file.read_bytes())
    SentencePieceTokenizer(folder / "tokenizer.model").write_settings(folder)
    assert (folder / "tokenizer.json").is_file()
    return folder


@pytest.mark.parametrize("has_digest", [True, False])
def test_tokens_that_another_tool_added_count(exported: Path, has_digest: bool) -> None:
    settings = exported / "tokenizer_config.json"
    if not has_digest:  # as earlier versions wrote it
        content = json.loads(settings.read_text())
        del content["made_from_digest"]
        settings.write_text(json.dumps(content))
    before = from_checkpoint(exported)
    assert isinstance(before, SentencePieceTokenizer)
    changed = Tokenizer.from_file(str(exported / "tokenizer.json"))
    changed.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    changed.save(str(exported / "tokenizer.json"))
    after = from_checkpoint(exported)
    think = changed.token_to_id("<think>")
    text = "the answer <think> of seven"
    assert think in after.encode(text, add_bos=False, add_eos=False)
    assert think not in before.encode(text, add_bos=False, add_eos=False)
    plain = "the river of apple"
    assert after.encode(plain, add_bos=False, add_eos=False) == before.encode(
        plain, add_bos=False, add_eos=False
    )


def test_too_many_added_tokens(chat_folder: Any) -> None:
    folder = chat_folder()
    tokens = {str(600 + i): {"content": f"<|x{i}|>", "special": True} for i in range(140_000)}
    change(folder / "tokenizer_config.json", added_tokens_decoder=tokens)
    with pytest.raises(
        TokenizerError, match="140000 tokens are added to the vocabulary; 131072 are read at most"
    ):
        from_checkpoint(folder)
    change(folder / "tokenizer_config.json", added_tokens_decoder={})
    entries = [{"id": 600 + i, "content": f"<|x{i}|>", "special": True} for i in range(140_000)]
    change(folder / "tokenizer.json", added_tokens=entries)
    with pytest.raises(
        TokenizerError, match="140000 tokens are added to the vocabulary; 131072 are read at most"
    ):
        from_checkpoint(folder)


def test_too_many_ends_of_a_generation(chat_folder: Any) -> None:
    folder = chat_folder()
    change(folder / "generation_config.json", eos_token_id=[1] * 3_000)
    with pytest.raises(TokenizerError, match="eos_token_id lists 3000 ids; 1000 are read at most"):
        from_checkpoint(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": ' + "[" * 100_000, "nested deeper"),
        ('{"a": ' + "1" * 10_000 + "}", "a number of thousands of digits"),
        (b'{"a": "\xff"}', "is not UTF-8"),
    ],
    ids=["deep", "digits", "bytes"],
)
@pytest.mark.parametrize(
    "name", ["generation_config.json", "tokenizer_config.json", "config.json", "tokenizer.json"]
)
def test_json_that_python_would_explain(chat_folder: Any, name: str, text: str | bytes, words: str) -> None:
    folder = chat_folder()
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TokenizerError, match=words) as caught:
        from_checkpoint(folder)
    assert "set_int_max" not in str(caught.value)
    with pytest.raises(CheckpointError, match=words):
        read_json(folder / name)


def test_a_config_of_many_fields_is_a_short_error(tmp_path: Path) -> None:
    fields = {"architectures": ["LlamaForCausalLM"], **{f"k{i}": i for i in range(200_000)}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match="`k0` is 0, and this field is not known here") as caught:
        read_model_config(tmp_path)
    assert len(str(caught.value)) < 9_000
