"""A SentencePiece BPE model as a tokenizer.json with the same ids."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from tune.tokenizers.protobuf import read_fields
from tune.tokenizers.settings import AddedToken
from tune.tokenizers.tiktoken_export import bos_before

# sentencepiece/src/sentencepiece_model.proto: fields of ModelProto, and what they hold.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_MODEL_TYPE, _SPACE_AS_SUFFIX, _BPE = 3, 24, 2
_CHARACTER_MAP, _DUMMY_PREFIX, _FOLDS_SPACES, _ESCAPES_SPACES = 2, 3, 4, 5
_SPACE = "▁"


class _Piece(NamedTuple):
    text: str
    score: float
    kind: int


def tokenizer_json(proto: bytes, bos: str | None, added: Mapping[int, AddedToken]) -> str | None:
    """Return the content of a tokenizer.json that gives the ids of a SentencePiece model.

    Why the ids are equal: sentencepiece joins, over and over, the neighbours whose joint piece has the highest
    score. A merge for every way to part every piece, in the order of the pieces' scores, is the same rule; what
    no piece holds becomes bytes in both. Of neighbours that overlap and would make the same piece from other
    parts, either may be joined first; the tests find no text in which that shows. One difference is known: after
    a piece that its author defined (Mistral's "[REF]"), the library puts another space before the text.

    Args:
        proto: the model file; its control pieces are the special tokens.
        bos: what stands before a text.
        added: tokens beyond the model's pieces, by id.

    Returns:
        None for a model whose rules a tokenizer.json of this kind does not hold: another algorithm than BPE, a
        map of characters, folded spaces, pieces with spaces that are found before the others, no pieces for
        bytes, or scores or ids that leave the order open; and for one with a damaged part that sentencepiece passes
        over.
    """
    return _tokenizer_json(proto, bos, tuple(added.items()))


@lru_cache(maxsize=2)  # each saved step has the same one
def _tokenizer_json(proto: bytes, bos: str | None, items: tuple[tuple[int, AddedToken], ...]) -> str | None:
    added = dict(items)
    try:
        pieces, settings = _read(proto)
    except (ValueError, struct.error):
        return None
    kinds = {piece.kind for piece in pieces}
    plain = (
        settings.get((_TRAINER, _MODEL_TYPE)) == _BPE
        and not settings.get((_TRAINER, _SPACE_AS_SUFFIX), 0)
        and not settings.get((_NORMALIZER, _CHARACTER_MAP), b"")
        and settings.get((_NORMALIZER, _FOLDS_SPACES), 1) == 0
        and settings.get((_NORMALIZER, _ESCAPES_SPACES), 1) == 1
        and {_NORMAL, _UNKNOWN, _BYTE} <= kinds <= {_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE}
        and not any(piece.kind == _USER_DEFINED and {_SPACE, " "} & set(piece.text) for piece in pieces)
    )
    vocabulary = {piece.text: index for index, piece in enumerate(pieces)}
    # The library numbers added tokens itself: those it has by their place, others on from there.
    beyond = sorted(set(added) - set(range(len(pieces))))
    numbered = beyond == list(range(len(pieces), len(pieces) + len(beyond))) and all(
        pieces[index].text == token.content if index < len(pieces) else token.content not in vocabulary
        for index, token in added.items()
    )
    joined = [piece for piece in pieces if piece.kind == _NORMAL and len(piece.text) > 1]
    # Runs of spaces share a score in Llama 2's model: whichever are joined first, the ids are the same.
    scores = [piece.score for piece in joined if piece.text.strip(_SPACE)]
    if not (plain and numbered) or len(vocabulary) < len(pieces) or len(set(scores)) < len(scores):
        return None
    normal = {piece.text for piece in pieces if piece.kind == _NORMAL}
    merges = []
    for piece in sorted(joined, key=lambda piece: -piece.score):
        halves = [(piece.text[:place], piece.text[place:]) for place in range(1, len(piece.text))]
        known = [(left, right) for left, right in halves if left in normal and right in normal]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [list(pair) for pair in known]
    has_prefix = settings.get((_NORMALIZER, _DUMMY_PREFIX), 1) == 1
    ids = {**vocabulary, **{token.content: index for index, token in added.items()}}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(pieces, added),
        "normalizer": _sequence(
            "normalizers", [{"type": "Prepend", "prepend": _SPACE}] * has_prefix, " ", _SPACE
        ),
        "pre_tokenizer": None,
        "post_processor": None if bos is None else bos_before(bos, ids[bos]),
        "decoder": _decoder(has_prefix),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": next(piece.text for piece in pieces if piece.kind == _UNKNOWN),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
    return json.dumps(content, ensure_ascii=False)


def _read(proto: bytes) -> tuple[list[_Piece], dict[tuple[int, int], int | bytes]]:
    """Return the pieces, and the fields of the two messages that say how they are used; the last of each counts."""
    pieces: list[_Piece] = []
    settings: dict[tuple[int, int], int | bytes] = {}
    for outer in read_fields(proto):
        if not isinstance(outer.value, bytes):
            continue
        if outer.number == _PIECES:
            found = {field.number: field.value for field in read_fields(outer.value)}
            text, score, kind = found.get(_PIECE, b""), found.get(_SCORE, bytes(4)), found.get(_TYPE, _NORMAL)
            if isinstance(text, bytes) and isinstance(score, bytes) and isinstance(kind, int):
                pieces.append(_Piece(text.decode(), struct.unpack("<f", score)[0], kind))
        elif outer.number in (_TRAINER, _NORMALIZER):
            settings |= {(outer.number, field.number): field.value for field in read_fields(outer.value)}
    return pieces, settings


def _added_tokens(pieces: list[_Piece], added: Mapping[int, AddedToken]) -> list[dict[str, object]]:
    found = {
        index: AddedToken(piece.text, special=piece.kind != _USER_DEFINED, normalized=False)
        for index, piece in enumerate(pieces)
        if piece.kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    }
    # What is special is looked for in the text as it stands, without a space before it.
    given = {
        index: replace(token, normalized=token.normalized and not token.special)
        for index, token in added.items()
    }
    tokens = sorted({**found, **given}.items())
    return [{"id": index, "content": token.content, **token.flags()} for index, token in tokens]


def _sequence(name: str, first: list[dict[str, str]], old: str, new: str) -> dict[str, object]:
    return {
        "type": "Sequence",
        name: [*first, {"type": "Replace", "pattern": {"String": old}, "content": new}],
    }


def _decoder(has_prefix: bool) -> dict[str, object]:
    steps: list[dict[str, object]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if has_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
