"""What the published models with tiktoken vocabularies add to the file: a pattern and special tokens.

The file itself holds nothing but tokens and their ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tune.errors import TokenizerError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Llama 3 reads digits three at a time, Qwen one at a time; everything else is the same.
LLAMA3_PATTERN = _WORDS + r"\p{N}{1,3}" + _REST
QWEN_PATTERN = _WORDS + r"\p{N}" + _REST

# The names of Llama 3.1 and later, at their distance from the first special id. The first Llama 3 had reserved
# tokens in the places of those it did not know; the ids are the same.
_LLAMA3_NAMES = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
_NUM_LLAMA3 = 256
_QWEN_NAMES = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))


@dataclass(frozen=True)
class TiktokenFamily:
    """How the vocabularies of one family are used.

    Args:
        name: as the argument `family` names it.
        pattern: regular expression that cuts a text into words.
        num_ranks: tokens in the published file.
        special: names of the special tokens, which follow the last rank.
        bos, eos, pad: their roles; no BOS for models that use none.
        stops: what ends a generation.
        composes: texts are brought into Unicode's composed form (NFC) first.
        longest_text: characters that are read in one go; None: all.
        longest_run: characters of white space in a row, or of anything else, that are.
    """

    name: str
    pattern: str
    num_ranks: int
    special: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str
    stops: tuple[str, ...]
    composes: bool
    longest_text: int | None
    longest_run: int


def _llama3_special() -> tuple[str, ...]:
    reserved = iter(range(_NUM_LLAMA3))
    return tuple(
        _LLAMA3_NAMES.get(place) or f"<|reserved_special_token_{next(reserved)}|>"
        for place in range(_NUM_LLAMA3)
    )


# https://github.com/meta-llama/llama3, llama/tokenizer.py; https://github.com/meta-llama/llama-models
LLAMA3 = TiktokenFamily(
    name="llama3",
    pattern=LLAMA3_PATTERN,
    num_ranks=128_000,
    special=_llama3_special(),
    bos="<|begin_of_text|>",
    eos="<|end_of_text|>",
    pad="<|finetune_right_pad_id|>",
    stops=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    composes=False,
    longest_text=400_000,
    longest_run=25_000,
)
# https://github.com/QwenLM/Qwen, tokenization_note.md, and tokenization_qwen.py of its checkpoints
QWEN = TiktokenFamily(
    name="qwen",
    pattern=QWEN_PATTERN,
    num_ranks=151_643,
    special=_QWEN_NAMES,
    bos=None,
    eos="<|endoftext|>",
    pad="<|endoftext|>",
    stops=("<|endoftext|>", "<|im_end|>"),
    composes=True,
    longest_text=None,
    # The reference has no limit, and the library fails somewhere beyond this many spaces.
    longest_run=400_000,
)
FAMILIES: Mapping[str, TiktokenFamily] = {family.name: family for family in (LLAMA3, QWEN)}


def find_family(name: str | None, file_name: str, num_ranks: int, model_type: str) -> TiktokenFamily:
    """Return the family of a vocabulary.

    Args:
        name: as somebody chose it, None to find out.
        file_name: of the vocabulary.
        num_ranks: tokens in it.
        model_type: as the model's config.json names it, "" where there is none.

    Raises:
        TokenizerError: it is no known family's.
    """
    if name is not None:
        if name not in FAMILIES:
            raise TokenizerError(
                f"there is no tiktoken family {name!r}; known are {', '.join(FAMILIES)}. Vocabularies of other "
                "models need their tokenizer.json"
            )
        return FAMILIES[name]
    for family in FAMILIES.values():
        if num_ranks == family.num_ranks:
            return family
    if model_type.startswith("qwen") or "qwen" in file_name.lower():
        return QWEN
    # The name in Meta's own layout.
    if model_type in ("llama", "mllama") or (not model_type and file_name == "tokenizer.model"):
        return LLAMA3
    raise TokenizerError(
        f"{file_name} is a tiktoken vocabulary of {num_ranks} tokens, which says nothing of how words are cut; "
        f"known are those of {', '.join(FAMILIES)}. Say family=..., or use the model's tokenizer.json"
    )
