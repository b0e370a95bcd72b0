"""A tiktoken vocabulary as a tokenizer.json with the same ids."""

from __future__ import annotations

import json
from collections.abc import Mapping


def tokenizer_json(
    ranks: Mapping[bytes, int],
    special_tokens: Mapping[str, int],
    pattern: str,
    composes: bool,
    bos: str | None,
) -> str:
    """Return the content of a tokenizer.json that gives the ids of a tiktoken vocabulary.

    Why the ids are equal: tiktoken looks a word up as a whole, which is what `ignore_merges` says; else it joins,
    over and over, the neighbours whose joint token has the lowest rank. A merge for every way to part every token,
    in the order of the tokens' ranks, is the same rule. For Llama 3 these are the merges of the published
    tokenizer.json, in its order. One freedom is left: of neighbours that overlap and would make the same token from
    other parts, tiktoken joins the left ones, the library those whose merge comes first. It takes words that repeat
    themselves to bring that about; the tests look for it in such words and find none.

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
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:place], token[place:]) for place in range(1, len(token))]
        known = [(left, right) for left, right in halves if left in ranks and right in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [[written(left), written(right)] for left, right in known]
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
        "post_processor": byte_level if bos is None else bos_before(bos, special_tokens[bos]),
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


def byte_letters() -> list[str]:
    """Return the letter that stands for each byte in the vocabularies of byte-level tokenizers."""
    # https://github.com/openai/gpt-2, src/encoder.py: printable bytes stand for themselves, the others, in
    # their order, for the letters from U+0100 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def bos_before(bos: str, bos_id: int) -> dict[str, object]:
    """Return the post-processor that puts a BOS before each text."""
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
