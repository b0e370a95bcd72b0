from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tune.errors import GenerationError
from tune.generation import StopStrings, generate, generate_text, stream, stream_text
from tune.modules import DecoderConfig, TransformerDecoder
from tune.tokenizers import SentencePieceTokenizer


@pytest.fixture(scope="module")
def tokenizer(spm_file: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(spm_file)


@pytest.fixture(scope="module")
def model(tokenizer: SentencePieceTokenizer) -> TransformerDecoder:
    torch.manual_seed(4)
    model = TransformerDecoder(
        DecoderConfig(
            vocab_size=tokenizer.vocab_size,
            num_layers=1,
            num_heads=3,
            num_kv_heads=3,
            embed_dim=20,
            head_dim=6,
            intermediate_dim=28,
            max_seq_len=97,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


SAMPLED = {"temperature": 1.0, "seed": 11}


def test_the_pieces_add_up_to_the_decoded_tokens(
    model: TransformerDecoder, tokenizer: SentencePieceTokenizer
) -> None:
    for seed in range(5):
        settings = {"max_new_tokens": 80, "temperature": 1.0, "seed": seed}
        ids = generate(
            model, tokenizer.encode("the cat", add_eos=False), stop_ids=tokenizer.stop_ids, **settings
        )  # type: ignore[arg-type]
        pieces = list(stream_text(model, tokenizer, "the cat", **settings))  # type: ignore[arg-type]
        assert (
            "".join(pieces) == tokenizer.decode(ids) == generate_text(model, tokenizer, "the cat", **settings)
        )  # type: ignore[arg-type]
        assert all(pieces)
        assert len(pieces) > 10
        from_ids = generate_text(model, tokenizer, tokenizer.encode("the cat", add_eos=False), **settings)  # type: ignore[arg-type]
        assert from_ids == "".join(pieces)


def test_a_stop_string_ends_the_text_before_it(
    model: TransformerDecoder, tokenizer: SentencePieceTokenizer
) -> None:
    whole = generate_text(model, tokenizer, "the", max_new_tokens=80, ignore_eos=True, **SAMPLED)  # type: ignore[arg-type]
    stop = whole[12:15]  # spans tokens wherever they are cut
    text = stream_text(
        model,
        tokenizer,
        "the",
        max_new_tokens=80,
        ignore_eos=True,
        stop=["not in there", stop],
        **SAMPLED,  # type: ignore[arg-type]
    )
    assert "".join(text) == whole[: whole.index(stop)]
    assert text.stop_reason == "stop_string"
    assert text.num_tokens < 80
    assert not model.caches_are_enabled()


def test_a_stop_string_that_never_completes_takes_nothing_away(
    model: TransformerDecoder, tokenizer: SentencePieceTokenizer
) -> None:
    whole = generate_text(model, tokenizer, "the", max_new_tokens=30, **SAMPLED)  # type: ignore[arg-type]
    text = stream_text(model, tokenizer, "the", max_new_tokens=30, stop=[whole[-3:] + "!?!"], **SAMPLED)  # type: ignore[arg-type]
    assert "".join(text) == whole
    assert text.stop_reason in ("max_new_tokens", "stop_id")


def test_eos_ends_the_text_unless_ignored(
    model: TransformerDecoder, tokenizer: SentencePieceTokenizer
) -> None:
    settings = {"max_new_tokens": 9, "use_cache": False}
    free = stream_text(model, tokenizer, "the mat", ignore_eos=True, **settings)  # type: ignore[arg-type]
    list(free)
    assert free.stop_reason == "max_new_tokens"
    first = generate(model, tokenizer.encode("the mat", add_eos=False), max_new_tokens=1)
    tokenizer.stop_ids = (tokenizer.eos_id, *first)  # whatever this model says first now ends its text
    try:
        stopped = stream_text(model, tokenizer, "the mat", **settings)  # type: ignore[arg-type]
        assert list(stopped) == []
        assert (stopped.stop_reason, stopped.num_tokens) == ("stop_id", 0)
    finally:
        tokenizer.stop_ids = (tokenizer.eos_id,)


def test_rows_that_pad_the_vocabulary_leave_no_text(tokenizer: SentencePieceTokenizer) -> None:
    torch.manual_seed(6)
    sizes = {
        "num_layers": 1,
        "num_heads": 1,
        "num_kv_heads": 1,
        "embed_dim": 8,
        "head_dim": 8,
        "intermediate_dim": 9,
    }
    padded = TransformerDecoder(DecoderConfig(vocab_size=tokenizer.vocab_size + 500, max_seq_len=64, **sizes))
    settings = {"max_new_tokens": 50, "temperature": 3.0, "seed": 1}
    ids = list(stream(padded, tokenizer.encode("the", add_eos=False), **settings))
    known = [token_id for token_id in ids if token_id < tokenizer.vocab_size]
    assert 0 < len(known) < len(ids) == 50  # as often as their logits say: nothing is left out of the choice
    assert generate_text(padded, tokenizer, "the", ignore_eos=True, **settings) == tokenizer.decode(known)


def test_closing_a_text_ends_it(model: TransformerDecoder, tokenizer: SentencePieceTokenizer) -> None:
    with stream_text(model, tokenizer, "the", max_new_tokens=30, **SAMPLED) as text:  # type: ignore[arg-type]
        next(text)
        assert model.caches_are_enabled()
    assert not model.caches_are_enabled()
    assert list(text) == []


def cut(text: str, stops: list[str]) -> str:
    return text[: min((i for i in map(text.find, stops) if i >= 0), default=len(text))]


@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
)
def test_stop_strings_cut_as_if_the_whole_text_were_known(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStrings(stops)
    shown = ""
    for i, piece in enumerate(pieces):
        shown += matcher.push(piece)
        whole = "".join(pieces[: i + 1])
        assert cut(whole, stops).startswith(shown)  # nothing shown ever has to be taken back
        # and nothing is held back longer than needed: at most one character less than the longest stop string
        assert matcher.found or len(whole) - len(shown) < max(map(len, stops), default=1)
    shown += matcher.finish()
    assert shown == cut("".join(pieces), stops)
    assert matcher.found == any(stop in "".join(pieces) for stop in stops)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(GenerationError, match="a stop string is empty"):
        StopStrings(["a", ""])
