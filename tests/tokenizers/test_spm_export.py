"""A SentencePiece model saved as tokenizer.json gives the ids and texts of the model itself."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
import sentencepiece
from trained_tokenizers import HARD_TEXTS

from tune.tokenizers import BaseTokenizer, SentencePieceTokenizer, from_checkpoint
from tune.tokenizers.spm_export import tokenizer_json


def train(**options: object) -> bytes:
    content = io.BytesIO()
    rng = random.Random(3)
    words = ["the", "answer", "question", "of", "apple", "river", "seven", "walk", "Zürich", "日本", "42", ""]
    settings = {
        "vocab_size": 500,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
        **options,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(rng.choices(words, k=9)) for _ in range(500)),
        model_writer=content,
        hard_vocab_limit=False,
        **settings,
    )
    return content.getvalue()


def both(
    tmp_path: Path, proto: bytes, **options: object
) -> tuple[SentencePieceTokenizer, BaseTokenizer | None]:
    (tmp_path / "tokenizer.model").write_bytes(proto)
    model = SentencePieceTokenizer(tmp_path / "tokenizer.model", **options)
    (tmp_path / "saved").mkdir()
    model.write_settings(tmp_path / "saved")
    file = tmp_path / "saved" / "tokenizer.json"
    return model, from_checkpoint(file) if file.exists() else None


@pytest.mark.parametrize(
    "options",
    [{}, {"control_symbols": ["[INST]"]}, {"user_defined_symbols": ["[REF]"]}, {"add_dummy_prefix": False}],
    ids=["plain", "control", "defined", "no-prefix"],
)
def test_ids_and_texts_are_those_of_the_model(tmp_path: Path, options: dict[str, object]) -> None:
    model, saved = both(tmp_path, train(**options))
    assert saved is not None
    rng = random.Random(5)
    mixed = ["".join(rng.choices("aaeehr the  ▁日é\n4", k=rng.randint(1, 40))) for _ in range(300)]
    for text in [*HARD_TEXTS, *mixed, *("a" * n for n in range(20)), "see [REF]", "[INST]"]:
        ids = model.encode(text)
        assert saved.encode(text) == ids, text
        assert saved.decode(ids) == model.decode(ids), text
        pieces = [model.bos_id, text, model.eos_id, text]
        assert saved.encode_pieces(pieces) == model.encode_pieces(pieces), text
    # Bytes that are no text are written otherwise by every tokenizer.json: one sign for each of them.
    # So is the unknown token, which is left out with the special ones there.
    texts = [i for i in range(1, model.vocab_size) if not model.token(i).startswith("<0x")]
    for _ in range(200):
        ids = rng.choices(texts, k=5)
        assert saved.decode(ids) == model.decode(ids), ids


def test_added_tokens_and_a_missing_bos_come_along(tmp_path: Path) -> None:
    size = sentencepiece.SentencePieceProcessor(model_proto=train()).vocab_size()
    model, saved = both(
        tmp_path, train(), added_tokens={"<|end|>": size, "<|user|>": size + 1}, add_bos=False
    )
    assert saved is not None
    text = "the<|end|> answer <|user|>"
    assert saved.encode(text) == model.encode(text)
    assert saved.token_id("<|user|>") == model.token_id("<|user|>") == size + 1
    raw = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())
    assert raw["post_processor"] is None


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram", "vocab_size": 330},
        {"normalization_rule_name": "nmt_nfkc"},
        {"remove_extra_whitespaces": True},
        {"byte_fallback": False, "vocab_size": 60},
        {"user_defined_symbols": ["a b"]},
        {"treat_whitespace_as_suffix": True},
    ],
    ids=["unigram", "nfkc", "folding", "no-bytes", "spaces", "suffix"],
)
def test_a_model_with_other_rules_gets_none(tmp_path: Path, options: dict[str, object]) -> None:
    _, saved = both(tmp_path, train(**options))
    assert saved is None


def test_added_ids_with_a_gap_get_none(tmp_path: Path) -> None:
    _, saved = both(tmp_path, train(), added_tokens={"<|end|>": 5000})
    assert saved is None


def test_what_is_saved_goes_on_being_read_from_the_model_file(tmp_path: Path) -> None:
    model, _ = both(tmp_path, train())
    folder = tmp_path / "again"
    for _ in range(2):
        folder.mkdir(exist_ok=True)
        for file in model.files():
            (folder / file.name).write_bytes(file.read_bytes())
        model.write_settings(folder)
        model = from_checkpoint(folder)
        assert isinstance(model, SentencePieceTokenizer)
        assert (folder / "tokenizer.json").exists()
        folder = tmp_path / "third"
    (tmp_path / "again" / "tokenizer.model").unlink()
    assert from_checkpoint(tmp_path / "again").encode("the answer") == model.encode("the answer")


def test_settings_that_came_with_the_model_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    from_checkpoint(tmp_path).write_settings(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()


def test_a_damaged_part_makes_no_tokenizer_json(spm_file: Path) -> None:
    proto = spm_file.read_bytes()
    assert tokenizer_json(proto, None, {}) is not None
    # A normaliser's message (field 3) whose one field says that it is longer than the message.
    assert tokenizer_json(proto + b"\x1a\x02\x12\x7f", None, {}) is None
