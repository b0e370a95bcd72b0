"""Vocabularies in the form of GPT-2: vocab.json and merges.txt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tune.errors import TokenizerError
from tune.tokenizers.detect_format import parse_json, read_tokenizer_file
from tune.tokenizers.hf_json import HFTokenizer
from tune.tokenizers.settings import AddedToken, TokenizerSettings, read_json, read_settings
from tune.tokenizers.templates import PromptTemplateSpec
from tune.tokenizers.tiktoken_families import LLAMA3_PATTERN, QWEN_PATTERN
from tune.utils.paths import expand_path

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
# ByteLevel's own pattern is GPT-2's.
_GPT2 = {**_BYTES, "use_regex": True}


def _cut(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _BYTES]}


_END = "<|endoftext|>"
# They follow the vocabulary, which does not hold them.
_QWEN2_SPECIAL = (_END, "<|im_start|>", "<|im_end|>")
# How each family cuts words, and whether it composes characters first.
_FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "gpt2": (_GPT2, None),
    "qwen2": (_cut(QWEN_PATTERN), {"type": "NFC"}),
    "phi4": (_cut(LLAMA3_PATTERN), None),
    "smollm": (
        {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2]},
        None,
    ),
}


def vocab_merges_tokenizer(
    path: str,
    merges_file: str = "",
    max_seq_len: int | None = None,
    prompt_template: PromptTemplateSpec | None = None,
    family: str | None = None,
    settings: TokenizerSettings | None = None,
) -> HFTokenizer:
    """Return the tokenizer of a vocab.json and a merges.txt.

    The two files say nothing of how words are cut. Where a tokenizer.json stands beside them, which does, that one
    is read instead.

    Args:
        path: the vocab.json, or the directory that holds it.
        merges_file: the merges.txt; by default the one beside `path`.
        max_seq_len: tokens after which an example is cut; by default what the settings beside it say.
        prompt_template: how conversations are written as text, see `tune.tokenizers.get_prompt_template`.
        family: "gpt2", "qwen2", "phi4" or "smollm": how words are cut; by default as the model's config.json says,
            and GPT-2's for models that it does not name.
        settings: what stands beside the files; read from there if not given.

    Raises:
        TokenizerError: a file is missing, damaged or of another kind.
    """
    file = expand_path(path)
    folder = file if file.is_dir() else file.parent
    file = folder / "vocab.json" if file.is_dir() else file
    if family is None and (folder / "tokenizer.json").is_file():
        return HFTokenizer(folder / "tokenizer.json", max_seq_len, prompt_template, settings=settings)
    settings = settings or read_settings(folder)
    vocab = parse_json(file, read_tokenizer_file(file), "vocab.json")
    if not vocab or any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in vocab.values()):
        raise TokenizerError(
            f"{file} is no vocab.json: it should hold tokens with their ids, such as {{'the': 262}}"
        )
    merges = _read_merges(expand_path(merges_file) if merges_file else folder / "merges.txt", vocab)
    family = family or _family_of(settings, folder)
    if family not in _FAMILIES:
        raise TokenizerError(f"there is no family {family!r} of vocab.json; known are {', '.join(_FAMILIES)}")
    splitter, normalizer = _FAMILIES[family]
    if not settings.names and not settings.added:
        settings = _with_usual_tokens(settings, family, vocab)
    definition: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": splitter,
        "post_processor": None,
        "decoder": _BYTES,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
    add_bos = bool(settings.add_bos)
    return HFTokenizer(
        file, max_seq_len, prompt_template, settings=settings, definition=definition, add_bos=add_bos
    )


def _family_of(settings: TokenizerSettings, folder: Path) -> str:
    config = read_json(folder / "tokenizer_config.json")
    kind = f"{settings.model_type} {config.get('tokenizer_class')}".lower()
    # Phi-4 calls itself phi3, as does the Phi-3 that has a SentencePiece model.
    known = {"qwen": "qwen2", "phi": "phi4", "llama": "smollm", "smollm": "smollm"}
    return next((name for key, name in known.items() if key in kind), "gpt2")


def _with_usual_tokens(settings: TokenizerSettings, family: str, vocab: dict[str, int]) -> TokenizerSettings:
    """Return the settings that the reference's classes have where no file says anything."""
    end = AddedToken(_END, special=True, normalized=False)
    if family == "qwen2":
        first = max(vocab.values()) + 1
        added = {first + place: replace(end, content=text) for place, text in enumerate(_QWEN2_SPECIAL)}
        return replace(settings, names={"eos_token": end, "pad_token": end}, added=added)
    return replace(settings, names={"eos_token": end}) if _END in vocab else settings


def _read_merges(file: Path, vocab: dict[str, int]) -> list[list[str]]:
    try:
        text = read_tokenizer_file(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{file} is no merges.txt: byte {error.start} is not UTF-8") from error
    merges = []
    # Not splitlines(): line separators of Unicode may stand in a token.
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys():
            raise TokenizerError(
                f"{file}, line {number}: {line[:60]!r} is no pair of tokens of the vocabulary with their sum; "
                "the file is damaged, cut short, or another model's"
            )
        merges.append(pair)
    return merges
