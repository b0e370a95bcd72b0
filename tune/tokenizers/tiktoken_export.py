"""A tiktoken vocabulary as a tokenizer.json with the same ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise


def tokenizer_json(
    ranks: Mapping[bytes, int],
    special_tokens: Mapping[str, int],
    pattern: str,
    composes: bool,
    bos: str | None,
) -> str:
    """Returns the content of a tokenizer.json that gives the ids of a tiktoken vocabulary.

    Why the ids are equal: tiktoken joins, over and over, the neighbours whose joint token has the lowest rank, the
    leftmost first. When a token of rank r comes up, everything that joins at a lower rank has been joined, inside
    of it as it would be if it stood alone. So its two parts are always those that its own bytes are joined to at
    ranks below r, and this one pair is its merge; merges in the order of ranks are then the same algorithm. A token
    that does not end up as two parts is found only as a whole word, which tiktoken, like `ignore_merges`, looks
    up first.

    Args:
        ranks: tokens and their ranks.
        special_tokens: text to id.
        pattern: regular expression that cuts a text into words.
        composes: texts are brought into NFC first.
        bos: what stands before a text.
    """
    letters = byte_letters()

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = parts_below(ranks, token, rank)
        if len(parts) == 2:
            merges.append([written(part) for part in parts])
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags} for text, i in special_tokens.items()],
        "normalizer": {"type": "NFC"} if composes else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level if bos is None else _bos_before(bos, special_tokens[bos]),
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {written(token): rank for token, rank in ranks.items()},
            "merges": merges,
        },
    }
    return json.dumps(content, ensure_ascii=False)


def parts_below(ranks: Mapping[bytes, int], token: bytes, rank: int) -> list[bytes]:
    """Returns what the bytes of a token are joined to by tokens of a rank below `rank`."""
    parts = [token[index : index + 1] for index in range(len(token))]
    while len(parts) > 1:
        joined = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
        lowest = min(joined)
        if lowest >= rank:
            break
        index = joined.index(lowest)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts


def byte_letters() -> list[str]:
    """Returns the letter that stands for each byte in the vocabularies of byte-level tokenizers."""
    # https://github.com/openai/gpt-2, src/encoder.py: printable bytes stand for themselves, the others, in
    # their order, for the letters from U+0100 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _bos_before(bos: str, bos_id: int) -> dict[str, object]:
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            first,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": bos, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }
