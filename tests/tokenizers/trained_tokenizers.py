"""Small tokenizers of every kind, trained here, with the settings that the published models have."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

KINDS = ("llama3", "qwen", "llama2", "mistral", "gemma", "unigram")
BYTE_LEVEL = ("llama3", "qwen")
DIGITS = {"llama3": r"\p{N}{1,3}", "qwen": r"\p{N}"}
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = {
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>"],
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama2": ["<unk>", "<s>", "</s>"],
    "mistral": ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
    "gemma": ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
    "unigram": ["<pad>", "<unk>", "<s>", "</s>"],
}
NAMES = {
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "qwen": {
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "add_bos_token": False,
    },
    "llama2": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
    "unigram": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
}
WORDS = "the answer question of apple river seven green walk user don't 42 2024 é Zürich 日本語"
HARD_TEXTS = [
    "",
    " ",
    "the answer",
    "  two  leading, trailing  ",
    "line\n\nbreaks\r\n\tand tabs\n\n\n   x\n",
    "日本語のテキスト 한국어 العربية हिन्दी",
    "👩‍👩‍👧‍👦 😀😀 🇨🇭 👍🏽",
    "<s> not special </s> <unk> <pad> <0x0A> [INST] <bos>",
    "<|begin_of_text|>the<|eot_id|><|im_start|>user<|im_end|>\n<|endoftext|> <think>ok</think>",
    "naïve Zürich e\u0301 o\u0308\u0323 \u00a0nbsp \u200bzero \u1100\u1161\u11a8 \u212b",
    "▁literal▁metaspace ▁",
    "nul\x00inside \x01\x1b[0m\x7f",
    "1234567890 3.14159",
    "\ufeffbom \ufffd replacement \U0010ffff \U000f0001",
    "def f(x):\n    return {'a': x**2}  # seven\n\tif (a&&b) {};\n",
    "don't I'LL we'Ve  's",
    "a" * 70 + "    " * 11 + "\n" * 13,
]


def corpus() -> list[str]:
    rng = random.Random(0)
    words = WORDS.split()
    ends = (".", "?", ":\n", "!", " {", "  ", "\n\n", "\t")
    return [" ".join(rng.choices(words, k=9)) + rng.choice(ends) for _ in range(400)]


def train(kind: str) -> dict[str, Any]:
    """Return the content of a tokenizer.json."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    if kind in BYTE_LEVEL:
        made = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
        split = pre_tokenizers.Split(tokenizers.Regex(PATTERN % DIGITS[kind]), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([split, level])
        made.normalizer = normalizers.NFC() if kind == "qwen" else None
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=431, initial_alphabet=alphabet, show_progress=False)
        made.train_from_iterator(corpus(), trainer)
    elif kind == "unigram":
        made = tokenizers.Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        made.decoder = decoders.Metaspace(prepend_scheme="always")
        trainer = trainers.UnigramTrainer(
            vocab_size=211, special_tokens=SPECIAL[kind], unk_token="<unk>", show_progress=False
        )
        made.train_from_iterator(corpus(), trainer)
    else:
        made = _train_with_byte_fallback(kind)
    is_special = {"special": True, "normalized": False}
    made.add_special_tokens([tokenizers.AddedToken(text, **is_special) for text in SPECIAL[kind]])
    if kind == "qwen":
        made.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
        made.add_tokens([tokenizers.AddedToken("</think>", normalized=False)])
    if (bos := NAMES[kind]["bos_token"]) is not None:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))]
        )
    content: dict[str, Any] = json.loads(made.to_str())
    return content


def _train_with_byte_fallback(kind: str) -> Any:
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = normalizers.Replace(" ", "▁")
    made.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=257, show_progress=False))
    model = json.loads(made.to_str())["model"]
    pieces = [*SPECIAL[kind], *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    made = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(dict.fromkeys(pieces))},
            merges=[tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "gemma":
        made.normalizer = normalizers.Replace(" ", "▁")
    elif kind == "llama2":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(steps if kind == "gemma" else [*steps, decoders.Strip(" ", 1, 0)])
    return made


def tiktoken_lines(definition: dict[str, Any]) -> bytes:
    """Return the vocabulary of a byte-level tokenizer.json in tiktoken's format, ranks in the order of merges."""
    from tokenizers import pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = {}
    for byte in range(128):
        alphabet[level.pre_tokenize_str(chr(byte))[0][0]] = byte
    for code in range(128, 2048):
        letters = level.pre_tokenize_str(chr(code))[0][0]
        alphabet |= dict(zip(letters, chr(code).encode(), strict=True))
    rest = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(alphabet))
    # Bytes that no text of two-byte characters holds, in the order of their letters.
    alphabet |= dict(zip(rest, sorted(set(range(256)) - set(alphabet.values())), strict=True))
    tokens = [bytes([byte]) for byte in range(256)]
    for left, right in definition["model"]["merges"]:
        token = bytes(alphabet[letter] for letter in left + right)
        if token not in tokens:
            tokens.append(token)
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
