"""Ids under the class names that published tokenizer_config.json files have: some of transformers' build anew."""

from __future__ import annotations

import json

import pytest
from trained_tokenizers import HARD_TEXTS, SPECIAL
from transformers import AutoTokenizer

from tune.tokenizers import from_checkpoint

PUBLISHED = [
    ("llama3", "PreTrainedTokenizerFast", "llama"),
    ("qwen", "Qwen2Tokenizer", "qwen2"),
    ("qwen", "Qwen2Tokenizer", "qwen3"),
    ("qwen", "GPT2Tokenizer", "olmo2"),
    ("qwen", "GPT2Tokenizer", "granite"),
    ("llama2", "LlamaTokenizer", "mistral"),
    ("llama2", "LlamaTokenizer", "phi3"),
    ("mistral", "LlamaTokenizerFast", "mixtral"),
    ("gemma", "GemmaTokenizer", "gemma2"),
    ("gemma", "GemmaTokenizerFast", "gemma3_text"),
]


@pytest.mark.parametrize(("kind", "name", "model_type"), PUBLISHED)
def test_ids_equal_the_reference_under_published_class_names(make_folder, kind, name, model_type):
    folder = make_folder(kind, tokenizer_class=name)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    reference, ours = AutoTokenizer.from_pretrained(folder), from_checkpoint(folder)
    special = SPECIAL[kind][-1]
    for text in (*HARD_TEXTS, f"the answer{special}of apple", f"{special} green "):
        ids = reference.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_bos=False, add_eos=False, parse_special=True) == ids, text
    assert ours.encode("the answer", add_eos=False) == reference.encode("the answer")


def test_llama2_has_the_ids_of_its_file(make_folder):
    folder = make_folder("llama2", tokenizer_class="LlamaTokenizer", legacy=False)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    rebuilt, ours = AutoTokenizer.from_pretrained(folder), from_checkpoint(folder)
    by_the_file = AutoTokenizer.from_pretrained(make_folder("llama2"))
    for text in ("the answer</s>green", " the answer"):
        ids = ours.encode(text, add_bos=False, add_eos=False, parse_special=True)
        assert ids == by_the_file.encode(text, add_special_tokens=False)
        # One "▁" less than the file, and sentencepiece, put before text.
        assert ids != rebuilt.encode(text, add_special_tokens=False)
