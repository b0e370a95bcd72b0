"""vocab.json with merges.txt: the ids of the reference's classes for the families."""

from __future__ import annotations

import json

import pytest
import transformers
from trained_tokenizers import HARD_TEXTS, train

from tune.errors import TokenizerError
from tune.tokenizers import from_checkpoint, vocab_merges_tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def model():
    return train("qwen")["model"]


@pytest.fixture
def folder(model, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    size = len(model["vocab"])
    added = {str(size + index): {"content": text, "special": True} for index, text in enumerate(SPECIAL)}
    write(
        folder,
        tokenizer_class="Qwen2Tokenizer",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        added_tokens_decoder=added,
    )
    return folder


def write(folder, **config):
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def same_ids(ours, reference):
    for text in HARD_TEXTS:
        ids = ours.encode(text, add_bos=False, add_eos=False)
        assert ids == reference.encode(text, split_special_tokens=True, add_special_tokens=False), text
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True)


def test_qwen2s(folder):
    ours, reference = from_checkpoint(folder), transformers.AutoTokenizer.from_pretrained(folder)
    same_ids(ours, reference)
    assert (ours.eos_id, ours.pad_id, ours.bos_ids) == (reference.eos_token_id, reference.pad_token_id, ())
    assert ours.vocab_size == len(reference)
    by_path = vocab_merges_tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), max_seq_len=11)
    same_ids(by_path, reference)
    assert by_path.max_seq_len == 11
    assert by_path.encode("1234") == ours.encode("1234") == [*map(ours.token_id, "1234"), ours.eos_id]


def test_gpt2s(folder):
    write(folder, tokenizer_class="GPT2Tokenizer", eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    ours, reference = from_checkpoint(folder), transformers.AutoTokenizer.from_pretrained(folder)
    same_ids(ours, reference)
    assert ours.encode("seven", add_eos=False) == reference.encode("seven")
    assert "e\u0301" in ours.decode(ours.encode("e\u0301"))  # nothing is composed


def test_families_are_told_apart_by_the_models_configuration(folder, model):
    def three_digits():
        return len(from_checkpoint(folder).encode("😀 123", False, False))

    write(folder, eos_token="<|endoftext|>", added_tokens_decoder={})
    for model_type, family in (("qwen3", "qwen2"), ("phi3", "phi4"), ("llama", "smollm"), ("gpt2", "gpt2")):
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        told = vocab_merges_tokenizer(str(folder), family=family)
        found = from_checkpoint(folder)
        for text in (*HARD_TEXTS, "e\u0301 12345 don't"):
            assert found.encode(text) == told.encode(text)
    with pytest.raises(TokenizerError, match="no family 'bert'"):
        vocab_merges_tokenizer(str(folder), family="bert")


def test_the_two_files_alone_are_enough(folder, model):
    (folder / "tokenizer_config.json").unlink()
    files = [str(folder / "vocab.json"), str(folder / "merges.txt")]
    ours, size = vocab_merges_tokenizer(*files, family="qwen2"), len(model["vocab"])
    same_ids(ours, transformers.Qwen2Tokenizer(*files))
    assert ours.special_tokens == {text: size + place for place, text in enumerate(SPECIAL)}
    assert (ours.eos_id, ours.pad_id, ours.bos_ids) == (size, size, ())
    with pytest.raises(TokenizerError, match="ends a text"):
        vocab_merges_tokenizer(*files)
    (folder / "vocab.json").write_text(json.dumps({**model["vocab"], "<|endoftext|>": size}))
    ours = vocab_merges_tokenizer(*files)
    same_ids(ours, transformers.GPT2Tokenizer(*files))
    assert ours.eos_id == size
    assert size not in ours.encode("a <|endoftext|>", add_eos=False)


def test_a_tokenizer_json_beside_them_is_read_instead(folder):
    content = train("llama3")
    (folder / "tokenizer.json").write_text(json.dumps(content))
    write(folder, eos_token="<|eot_id|>")
    ours = vocab_merges_tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    assert ours.path.name == "tokenizer.json"
    assert ours.encode("123") == from_checkpoint(folder).encode("123")


def test_other_tools_load_what_is_saved(folder, tmp_path):
    import shutil

    for bare in (False, True):
        saved = tmp_path / f"saved {bare}"
        saved.mkdir()
        ours = from_checkpoint(folder)
        for file in ours.files():
            if not bare:
                shutil.copyfile(file, saved / file.name)
        ours.write_settings(saved)
        reference = transformers.AutoTokenizer.from_pretrained(saved)
        same_ids(ours, reference)
        same_ids(from_checkpoint(saved), reference)
        assert reference.eos_token_id == ours.eos_id
        assert bare or (saved / "merges.txt").is_file()


def test_damaged_files_are_named(folder, tmp_path):
    merges = (folder / "merges.txt").read_text()
    for content, says in (
        (merges + "no such pair\n", r"merges\.txt, line \d+: .* no pair"),
        (merges[:-3], r"merges\.txt, line \d+: .* cut short"),
        ("no merge", "line 1: 'no merge'"),
    ):
        (folder / "merges.txt").write_text(content)
        with pytest.raises(TokenizerError, match=says):
            from_checkpoint(folder)
    (folder / "merges.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(TokenizerError, match="byte 0 is not UTF-8"):
        from_checkpoint(folder)
    (folder / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match=r"vocab\.json without its merges\.txt"):
        from_checkpoint(folder)
    with pytest.raises(TokenizerError, match=r"no tokenizer file .*merges\.txt"):
        vocab_merges_tokenizer(str(folder))
    (folder / "merges.txt").write_text(merges)
    for content, says in (
        ("{}", "tokens with their ids"),
        ('{"a": "b"}', "tokens with their"),
        ("[]", "a list"),
    ):
        (folder / "vocab.json").write_text(content)
        with pytest.raises(TokenizerError, match=says):
            vocab_merges_tokenizer(str(folder))
