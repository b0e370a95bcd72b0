"""What kind of tokenizer a file holds, told from its content: names are used for several kinds."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any, Literal

from tune.errors import TokenizerError
from tune.utils.json_errors import describe_json_error

# The largest published ones have some 40 MB.
_LARGEST_FILE = 512 * 2**20

TokenizerFormat = Literal["sentencepiece", "tiktoken", "tokenizer.json", "vocab.json", "tekken", "unknown"]


def read_tokenizer_file(path: Path) -> bytes:
    """Return the content of a tokenizer's file.

    Raises:
        TokenizerError: it is not there or cannot be read.
    """
    if not path.is_file():
        raise TokenizerError(f"there is no tokenizer file {path}")
    try:
        if (size := path.stat().st_size) > _LARGEST_FILE:
            raise TokenizerError(f"{path} has {size} bytes, which no tokenizer has; is it a file of weights?")
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}") from error


def find_tokenizer_file(path: Path, *names: str) -> Path:
    """Return `path`, or the first of `names` that stands in it where it is a directory.

    Raises:
        TokenizerError: none of them does, or the directory cannot be read.
    """
    try:
        if not path.is_dir():
            return path
        for name in names:
            if (path / name).is_file():
                return path / name
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:8])
    except OSError as error:
        raise TokenizerError(f"cannot read {error.filename or path}: {error.strerror}") from error
    raise TokenizerError(
        f"no {' or '.join(names)} in {path}; it holds {held or 'nothing'}. Give the path of the file itself if it has "
        "another name."
    )


def detect_format(content: bytes) -> TokenizerFormat:
    """Return what a file's content is, "unknown" for what is none of the kinds."""
    head = content[:4096].lstrip()
    if head[:1] == b"{":
        return _json_format(content)
    if _is_tiktoken_line(content[:4096].split(b"\n", 1)[0]):
        return "tiktoken"
    # ModelProto begins with its first piece: field 1, a length, and in it field 1 again.
    if content[:1] == b"\x0a" and content[2:3] == b"\x0a":
        return "sentencepiece"
    return "unknown"


def describe_mismatch(wanted: str, path: Path, content: bytes) -> str:
    """Say that a file is not of the kind wanted, and what it seems to be instead."""
    head = content[:200].lstrip()
    if not content:
        reason = "it is empty; the download was probably cut short"
    elif head.startswith(b"version https://git-lfs"):
        reason = "it is a git-lfs pointer, not the file itself; run `git lfs pull` or download it again"
    elif head[:1] == b"<":
        reason = "it is a web page, probably a refused download of a gated model"
    elif content[:2] == b"PK" or content[:2] == b"\x1f\x8b":
        reason = "it is a compressed archive; unpack it first"
    else:
        reason = _SEEMS[detect_format(content)]
    return f"{path} is no {wanted} ({len(content)} bytes): {reason}"


_SEEMS: dict[TokenizerFormat, str] = {
    "sentencepiece": "it is a SentencePiece model, or the beginning of one",
    "tiktoken": "it is a tiktoken vocabulary (as of Llama 3)",
    "tokenizer.json": "it is a tokenizer.json of Hugging Face",
    "vocab.json": "it is JSON of another kind, such as settings or a bare vocabulary",
    "tekken": "it is a tekken.json of Mistral",
    "unknown": "its content cannot be parsed; it may be cut short or damaged",
}


def parse_json(path: Path, content: bytes, wanted: str) -> dict[str, Any]:
    """Return the object in a JSON file's content.

    Raises:
        TokenizerError: it is none; the message says what it is.
    """
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        head = content[:50].lstrip()
        if head[:1] != b"{":
            raise TokenizerError(describe_mismatch(wanted, path, content)) from error
        raise TokenizerError(
            f"{path} is no {wanted} ({len(content)} bytes): its JSON is damaged or cut short: "
            f"{describe_json_error(error)}"
        ) from error
    if not isinstance(data, dict):
        raise TokenizerError(f"{path} is no {wanted}: it holds a {type(data).__name__}, expected an object")
    return data


def _json_format(content: bytes) -> TokenizerFormat:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return "unknown"
    if isinstance(data.get("model"), dict) and "vocab" in data["model"]:
        return "tokenizer.json"
    if isinstance(data.get("config"), dict) and isinstance(data.get("vocab"), list):
        return "tekken"
    return "vocab.json"


def _is_tiktoken_line(line: bytes) -> bool:
    token, _, rank = line.rstrip(b"\r").partition(b" ")
    if not rank.isdigit():
        return False
    try:
        return len(base64.b64decode(token, validate=True)) > 0
    except (binascii.Error, ValueError):
        return False
