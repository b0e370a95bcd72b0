"""Tokens added to a tokenizer: transformers' ids, whatever file it was read from, and what cannot be a token."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tune.checkpoints.save import write_tokenizer
from tune.errors import TokenizerError
from tune.models.llama2 import llama2_tokenizer
from tune.tokenizers import BaseTokenizer, from_checkpoint

TEXTS = ["green <tool>apple</tool> <|call|>", "<tool>", " the <tool> seven  walk", "日本<tool>\n"]


def saved(tokenizer: BaseTokenizer, folder: Path) -> Path:
    folder.mkdir()
    write_tokenizer(folder, tokenizer)
    return folder


def test_ids_are_those_of_transformers(chat_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = chat_folder()
    theirs = AutoTokenizer.from_pretrained(folder)
    # One that is there, twice the same, a word of the vocabulary, and white space.
    ordinary, special = ["<tool>", "<think>", "<tool>", "seven", "\n\n"], ["<|ask|>", "<|call|>", "</think>"]
    ours = from_checkpoint(folder, add_tokens=ordinary, add_special_tokens=special)
    theirs.add_tokens(ordinary)
    theirs.add_tokens(special, special_tokens=True)
    assert ours.vocab_size == len(theirs)
    again = from_checkpoint(saved(ours, tmp_path / "saved"))
    theirs_again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    pickled = pickle.loads(pickle.dumps(ours))
    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=False)
        assert theirs_again.encode(text, add_special_tokens=False) == expected
        for tokenizer in (ours, again, pickled):
            assert tokenizer.encode(text, False, False, parse_special=True) == expected
            assert tokenizer.decode(expected) == theirs.decode(expected, skip_special_tokens=True)
    for token in (*ordinary, *special):
        assert again.token_id(token) == ours.token_id(token) == theirs.convert_tokens_to_ids(token)
    assert again.special_tokens == ours.special_tokens
    assert {"<|ask|>", "</think>"} <= set(ours.special_tokens)
    # A control token stays text where a user writes it.
    assert ours.special_tokens["<|ask|>"] not in ours.encode("<|ask|>")
    assert ours.encode_pieces(["a", ours.special_tokens["<|ask|>"]])[-1] == ours.special_tokens["<|ask|>"]


def test_a_special_token_stays_special(chat_folder: Callable[..., Path]) -> None:
    folder = chat_folder()
    assert (
        from_checkpoint(folder, add_tokens=["<|call|>"]).special_tokens
        == from_checkpoint(folder).special_tokens
    )


def test_a_sentencepiece_model_takes_tokens(spm_file: Path, tmp_path: Path) -> None:
    plain = llama2_tokenizer(str(spm_file))
    ours = llama2_tokenizer(str(spm_file), add_tokens=["<tool>"], add_special_tokens=["<|ask|>"])
    assert ours.token_id("<tool>") == plain.vocab_size
    assert ours.token_id("<|ask|>") == plain.vocab_size + 1
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (plain.bos_id, plain.eos_id, plain.pad_id)
    folder = saved(ours, tmp_path / "saved")
    again, theirs = from_checkpoint(folder), AutoTokenizer.from_pretrained(folder)
    assert again.vocab_size == len(theirs) == plain.vocab_size + 2
    for text in TEXTS:
        assert again.encode(text) == ours.encode(text)
        assert theirs.encode(text) == ours.encode(text, add_eos=False)
        if "<tool>" not in text:
            assert ours.encode(text) == plain.encode(text)
    assert plain.vocab_size in ours.encode("the <tool>")


@pytest.mark.parametrize(
    ("tokens", "special", "said"),
    [
        ([""], [], "an empty text"),
        ([], ["a" * 1_000_000], "1000000 characters, 'aaaa"),
        (["a\ud800"], [], r"'a\\ud800', which is no text"),
        (["<x>", "<y>"], ["<y>"], "both name '<y>'"),
        ("<x>", [], "is a list of texts"),
        ([3], [], "is a list of texts"),
    ],
)
def test_what_cannot_be_a_token_is_refused(
    chat_folder: Callable[..., Path], tokens: list[str], special: list[str], said: str
) -> None:
    with pytest.raises(TokenizerError, match=said):
        from_checkpoint(chat_folder(), add_tokens=tokens, add_special_tokens=special)


def test_nothing_to_add_changes_nothing(chat_folder: Callable[..., Path]) -> None:
    tokenizer = from_checkpoint(chat_folder(), add_tokens=[], add_special_tokens=[])
    assert not tokenizer.may_outgrow_model
    assert tokenizer.encode("<tool>") == from_checkpoint(tokenizer.path).encode("<tool>")
