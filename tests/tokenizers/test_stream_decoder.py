"""StreamDecoder: the pieces add up to the whole, and no half character is shown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune.tokenizers import SentencePieceTokenizer, StreamDecoder

TEXTS = [
    "the answer of seven",
    "  leading and   inner spaces ",
    "日本語 and 한국어",
    "👩‍👩‍👧‍👦😀 done",
    "real \ufffd replacement\ufffd",
    "line\nbreak",
]


@pytest.fixture(scope="module")
def tokenizer(spm_file):
    return SentencePieceTokenizer(spm_file)


def stream(tokenizer, ids, **options):
    decoder = StreamDecoder(tokenizer, **options)
    return [decoder.push(token_id) for token_id in ids] + [decoder.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up(tokenizer, text):
    ids = tokenizer.encode(text)
    assert "".join(stream(tokenizer, ids)) == text
    assert "".join(stream(tokenizer, ids, skip_special=False)) == f"<s>{text}</s>"


def test_a_character_appears_when_it_is_whole(tokenizer):
    ids = tokenizer.encode("a😀b", add_bos=False, add_eos=False)
    pieces = [piece for piece in stream(tokenizer, ids) if piece]
    assert "😀" in pieces
    assert not any("\ufffd" in piece for piece in pieces)


def test_words_keep_the_space_before_them(tokenizer):
    ids = tokenizer.encode("the answer", add_bos=False, add_eos=False)
    # Control tokens and lone spaces in between show nothing, and must not swallow the next space.
    ids = [1, *ids, 2, *ids, 1, tokenizer.token_id("▁"), 1, *ids]
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids) == "the answer the answer  the answer"


def test_an_unfinished_character_comes_at_the_end(tokenizer):
    ids = tokenizer.encode("a😀", add_bos=False, add_eos=False)[:-1]
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert pieces[-1].endswith("\ufffd")


def test_is_fresh_after_finish(tokenizer):
    decoder = StreamDecoder(tokenizer)
    for _ in range(2):
        pieces = [decoder.push(token_id) for token_id in tokenizer.encode("the answer")]
        assert "".join(pieces) + decoder.finish() == "the answer"


@given(data=st.data())
@settings(max_examples=300)
def test_any_ids_add_up(data):
    tokenizer = data.draw(st.sampled_from(_CACHE))
    # Mostly bytes and special tokens: where streams go wrong.
    token_id = st.one_of(st.integers(0, 260), st.integers(0, tokenizer.vocab_size - 1))
    ids = data.draw(st.lists(token_id, max_size=24))
    skip_special = data.draw(st.booleans())
    assert "".join(stream(tokenizer, ids, skip_special=skip_special)) == tokenizer.decode(ids, skip_special)


_CACHE: list = []


@pytest.fixture(autouse=True)
def _share(tokenizer, folding_spm_file):
    _CACHE[:] = [tokenizer, SentencePieceTokenizer(folding_spm_file)]
