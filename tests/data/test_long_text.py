"""A long text is encoded in pieces, and has the ids that it has as a whole."""

from __future__ import annotations

import random

import pytest

from tune.data import long_text
from tune.data.long_text import encode_long
from tune.tokenizers import SentencePieceTokenizer, from_checkpoint

WORDS = [
    "the",
    "river",
    "answers",
    "seven",
    "12,345",
    "naïve",
    "日本",
    "x=y+1;",
    "(apple)",
    "====",
    "I'll",
    ".",
]
BETWEEN = [" ", " ", " ", "\n", "\n\n", "  ", " \n", "\n   ", "\t", "", "\r\n", "。"]


def write(num_words):
    rng = random.Random(3)
    return "".join(rng.choice(WORDS) + rng.choice(BETWEEN) for _ in range(num_words))


@pytest.fixture(params=["sentencepiece", "folding", "byte-level"])
def tokenizer(request, spm_file, folding_spm_file, chat_folder):
    if request.param == "byte-level":
        return from_checkpoint(chat_folder())
    return SentencePieceTokenizer(spm_file if request.param == "sentencepiece" else folding_spm_file)


def test_pieces_have_the_ids_of_the_whole(tokenizer, monkeypatch):
    monkeypatch.setattr(long_text, "PIECE", 700)
    text = write(6000)
    pieces = list(long_text._pieces(tokenizer, text))
    assert len(pieces) > 15
    assert [start for start, _ in pieces[1:]] == [end for _, end in pieces[:-1]]
    for add_eos in (True, False):
        assert encode_long(tokenizer, text, add_eos).tolist() == tokenizer.encode(text, add_eos=add_eos)


@pytest.mark.parametrize("text", ["=" * 5000, "a" * 3001, " " * 4000, "ab\n\n" * 900, ""])
def test_what_cannot_be_cut_stays_whole(tokenizer, monkeypatch, text):
    monkeypatch.setattr(long_text, "PIECE", 500)
    assert encode_long(tokenizer, text, True).tolist() == tokenizer.encode(text)
