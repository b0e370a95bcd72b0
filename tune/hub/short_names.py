"""Friendly names of models, and the hub repositories they stand for."""

from __future__ import annotations

import difflib
import re
from urllib.parse import unquote, urlsplit

from tune.errors import HubError

# One line a family: the name, then the repository. A name with a size is the model as its publisher first offers it;
# "-instruct" and "-chat" are the variants tuned to follow instructions, "-base" the ones that are not.
SHORT_NAMES: dict[str, dict[str, str]] = {
    "Llama 2": {
        "llama2": "meta-llama/Llama-2-7b-hf",
        "llama2-7b": "meta-llama/Llama-2-7b-hf",
        "llama2-13b": "meta-llama/Llama-2-13b-hf",
        "llama2-70b": "meta-llama/Llama-2-70b-hf",
        "llama2-chat": "meta-llama/Llama-2-7b-chat-hf",
        "llama2-7b-chat": "meta-llama/Llama-2-7b-chat-hf",
        "llama2-13b-chat": "meta-llama/Llama-2-13b-chat-hf",
        "llama2-70b-chat": "meta-llama/Llama-2-70b-chat-hf",
    },
    "Llama 3": {
        "llama3": "meta-llama/Meta-Llama-3-8B",
        "llama3-8b": "meta-llama/Meta-Llama-3-8B",
        "llama3-70b": "meta-llama/Meta-Llama-3-70B",
        "llama3-instruct": "meta-llama/Meta-Llama-3-8B-Instruct",
        "llama3-8b-instruct": "meta-llama/Meta-Llama-3-8B-Instruct",
        "llama3-70b-instruct": "meta-llama/Meta-Llama-3-70B-Instruct",
    },
    "Llama 3.1": {
        "llama3.1": "meta-llama/Llama-3.1-8B",
        "llama3.1-8b": "meta-llama/Llama-3.1-8B",
        "llama3.1-70b": "meta-llama/Llama-3.1-70B",
        "llama3.1-405b": "meta-llama/Llama-3.1-405B",
        "llama3.1-8b-instruct": "meta-llama/Llama-3.1-8B-Instruct",
        "llama3.1-70b-instruct": "meta-llama/Llama-3.1-70B-Instruct",
        "llama3.1-405b-instruct": "meta-llama/Llama-3.1-405B-Instruct",
    },
    "Llama 3.2": {
        "llama3.2-1b": "meta-llama/Llama-3.2-1B",
        "llama3.2-3b": "meta-llama/Llama-3.2-3B",
        "llama3.2-1b-instruct": "meta-llama/Llama-3.2-1B-Instruct",
        "llama3.2-3b-instruct": "meta-llama/Llama-3.2-3B-Instruct",
    },
    "Llama 3.3": {
        "llama3.3": "meta-llama/Llama-3.3-70B-Instruct",
        "llama3.3-70b": "meta-llama/Llama-3.3-70B-Instruct",
        "llama3.3-70b-instruct": "meta-llama/Llama-3.3-70B-Instruct",
    },
    "Code Llama": {
        "codellama-7b": "codellama/CodeLlama-7b-hf",
        "codellama-13b": "codellama/CodeLlama-13b-hf",
        "codellama-34b": "codellama/CodeLlama-34b-hf",
        "codellama-70b": "codellama/CodeLlama-70b-hf",
        "codellama-7b-instruct": "codellama/CodeLlama-7b-Instruct-hf",
        "codellama-13b-instruct": "codellama/CodeLlama-13b-Instruct-hf",
        "codellama-34b-instruct": "codellama/CodeLlama-34b-Instruct-hf",
        "codellama-70b-instruct": "codellama/CodeLlama-70b-Instruct-hf",
    },
    "Mistral": {
        "mistral": "mistralai/Mistral-7B-v0.3",
        "mistral-v0.1": "mistralai/Mistral-7B-v0.1",
        "mistral-v0.3": "mistralai/Mistral-7B-v0.3",
        "mistral-instruct": "mistralai/Mistral-7B-Instruct-v0.3",
        "mistral-v0.1-instruct": "mistralai/Mistral-7B-Instruct-v0.1",
        "mistral-v0.2-instruct": "mistralai/Mistral-7B-Instruct-v0.2",
        "mistral-v0.3-instruct": "mistralai/Mistral-7B-Instruct-v0.3",
        "mistral-nemo": "mistralai/Mistral-Nemo-Base-2407",
        "mistral-nemo-instruct": "mistralai/Mistral-Nemo-Instruct-2407",
    },
    "Mixtral": {
        "mixtral": "mistralai/Mixtral-8x7B-v0.1",
        "mixtral-instruct": "mistralai/Mixtral-8x7B-Instruct-v0.1",
        "mixtral-8x22b": "mistralai/Mixtral-8x22B-v0.1",
        "mixtral-8x22b-instruct": "mistralai/Mixtral-8x22B-Instruct-v0.1",
    },
    "Qwen 2": {
        "qwen2-0.5b": "Qwen/Qwen2-0.5B",
        "qwen2-1.5b": "Qwen/Qwen2-1.5B",
        "qwen2-7b": "Qwen/Qwen2-7B",
        "qwen2-72b": "Qwen/Qwen2-72B",
        "qwen2-0.5b-instruct": "Qwen/Qwen2-0.5B-Instruct",
        "qwen2-1.5b-instruct": "Qwen/Qwen2-1.5B-Instruct",
        "qwen2-7b-instruct": "Qwen/Qwen2-7B-Instruct",
        "qwen2-72b-instruct": "Qwen/Qwen2-72B-Instruct",
    },
    "Qwen 2.5": {
        "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
        "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B",
        "qwen2.5-3b": "Qwen/Qwen2.5-3B",
        "qwen2.5-7b": "Qwen/Qwen2.5-7B",
        "qwen2.5-14b": "Qwen/Qwen2.5-14B",
        "qwen2.5-32b": "Qwen/Qwen2.5-32B",
        "qwen2.5-72b": "Qwen/Qwen2.5-72B",
        "qwen2.5-0.5b-instruct": "Qwen/Qwen2.5-0.5B-Instruct",
        "qwen2.5-1.5b-instruct": "Qwen/Qwen2.5-1.5B-Instruct",
        "qwen2.5-3b-instruct": "Qwen/Qwen2.5-3B-Instruct",
        "qwen2.5-7b-instruct": "Qwen/Qwen2.5-7B-Instruct",
        "qwen2.5-14b-instruct": "Qwen/Qwen2.5-14B-Instruct",
        "qwen2.5-32b-instruct": "Qwen/Qwen2.5-32B-Instruct",
        "qwen2.5-72b-instruct": "Qwen/Qwen2.5-72B-Instruct",
    },
    "Qwen 3": {
        "qwen3-0.6b": "Qwen/Qwen3-0.6B",
        "qwen3-1.7b": "Qwen/Qwen3-1.7B",
        "qwen3-4b": "Qwen/Qwen3-4B",
        "qwen3-8b": "Qwen/Qwen3-8B",
        "qwen3-14b": "Qwen/Qwen3-14B",
        "qwen3-32b": "Qwen/Qwen3-32B",
        "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B",
        "qwen3-0.6b-base": "Qwen/Qwen3-0.6B-Base",
        "qwen3-1.7b-base": "Qwen/Qwen3-1.7B-Base",
        "qwen3-4b-base": "Qwen/Qwen3-4B-Base",
        "qwen3-8b-base": "Qwen/Qwen3-8B-Base",
        "qwen3-14b-base": "Qwen/Qwen3-14B-Base",
        "qwen3-30b-a3b-base": "Qwen/Qwen3-30B-A3B-Base",
    },
    "Gemma": {
        "gemma-2b": "google/gemma-2b",
        "gemma-7b": "google/gemma-7b",
        "gemma-2b-instruct": "google/gemma-2b-it",
        "gemma-7b-instruct": "google/gemma-7b-it",
    },
    "Gemma 2": {
        "gemma2-2b": "google/gemma-2-2b",
        "gemma2-9b": "google/gemma-2-9b",
        "gemma2-27b": "google/gemma-2-27b",
        "gemma2-2b-instruct": "google/gemma-2-2b-it",
        "gemma2-9b-instruct": "google/gemma-2-9b-it",
        "gemma2-27b-instruct": "google/gemma-2-27b-it",
    },
    "Gemma 3": {
        "gemma3-1b": "google/gemma-3-1b-pt",
        "gemma3-4b": "google/gemma-3-4b-pt",
        "gemma3-12b": "google/gemma-3-12b-pt",
        "gemma3-27b": "google/gemma-3-27b-pt",
        "gemma3-1b-instruct": "google/gemma-3-1b-it",
        "gemma3-4b-instruct": "google/gemma-3-4b-it",
        "gemma3-12b-instruct": "google/gemma-3-12b-it",
        "gemma3-27b-instruct": "google/gemma-3-27b-it",
    },
    "Phi": {
        "phi3-mini": "microsoft/Phi-3-mini-4k-instruct",
        "phi3-mini-128k": "microsoft/Phi-3-mini-128k-instruct",
        "phi4": "microsoft/phi-4",
        "phi4-mini": "microsoft/Phi-4-mini-instruct",
    },
    "SmolLM": {
        "smollm2-135m": "HuggingFaceTB/SmolLM2-135M",
        "smollm2-360m": "HuggingFaceTB/SmolLM2-360M",
        "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B",
        "smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "smollm2-360m-instruct": "HuggingFaceTB/SmolLM2-360M-Instruct",
        "smollm2-1.7b-instruct": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        "smollm3": "HuggingFaceTB/SmolLM3-3B",
        "smollm3-base": "HuggingFaceTB/SmolLM3-3B-Base",
    },
    "OLMo 2": {
        "olmo2-1b": "allenai/OLMo-2-0425-1B",
        "olmo2-7b": "allenai/OLMo-2-1124-7B",
        "olmo2-13b": "allenai/OLMo-2-1124-13B",
        "olmo2-32b": "allenai/OLMo-2-0325-32B",
        "olmo2-1b-instruct": "allenai/OLMo-2-0425-1B-Instruct",
        "olmo2-7b-instruct": "allenai/OLMo-2-1124-7B-Instruct",
        "olmo2-13b-instruct": "allenai/OLMo-2-1124-13B-Instruct",
        "olmo2-32b-instruct": "allenai/OLMo-2-0325-32B-Instruct",
    },
    "Granite": {
        "granite3-2b": "ibm-granite/granite-3.3-2b-base",
        "granite3-8b": "ibm-granite/granite-3.3-8b-base",
        "granite3-2b-instruct": "ibm-granite/granite-3.3-2b-instruct",
        "granite3-8b-instruct": "ibm-granite/granite-3.3-8b-instruct",
    },
}

# What the hub allows: letters, digits, dots, dashes and underscores, starting and ending with a letter or digit.
_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?|[A-Za-z0-9]")
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")


def repository_of(name: str, endpoint: str = "") -> tuple[str, str | None]:
    """Return the hub repository that `name` means, and the revision if the name holds one.

    Args:
        name: a short name, "owner/name", or the address of the model's page.
        endpoint: address of the hub in use, whose pages are understood too.

    Raises:
        HubError: it is none of these; the message suggests the nearest.
    """
    text = name.strip()
    known = {short: repo for family in SHORT_NAMES.values() for short, repo in family.items()}
    if text.casefold() in known:
        return known[text.casefold()], None
    revision = None
    if text.partition("/")[0] in _HUB_HOSTS:
        text = "https://" + text
    if "://" in text:
        text, revision = _read_address(text, endpoint)
    if is_repository(text):
        return text, revision
    raise HubError(_not_a_name(name, known))


def is_repository(text: str) -> bool:
    """Tell whether `text` has the form "owner/name" of a hub repository."""
    parts = text.split("/")
    return len(parts) == 2 and all(_PART.fullmatch(part) and not _has_doubles(part) for part in parts)


def _has_doubles(part: str) -> bool:
    return "--" in part or ".." in part


def nearest_names(word: str, count: int = 3) -> list[str]:
    """Return the short names closest to `word`, the nearest first."""
    known = [short for family in SHORT_NAMES.values() for short in family]
    folded = {_fold(short): short for short in reversed(known)}
    found = difflib.get_close_matches(_fold(word), folded, n=count, cutoff=0.7)
    starts = [short for key, short in folded.items() if len(word) > 2 and key.startswith(_fold(word))]
    return list(dict.fromkeys([*(folded[key] for key in found), *sorted(starts, key=len)]))[:count]


def _fold(word: str) -> str:
    return "".join(letter for letter in word.casefold() if letter.isalnum() or letter == ".")


def _read_address(text: str, endpoint: str) -> tuple[str, str | None]:
    """Return owner/name and revision out of a page's address; other text comes back as it is."""
    try:
        address = urlsplit(text)
        own = urlsplit(endpoint).netloc
    except ValueError:
        return text, None
    if address.scheme not in ("http", "https") or address.netloc not in {*_HUB_HOSTS, own} - {""}:
        return text, None
    parts = [unquote(part) for part in address.path.split("/") if part]
    if parts[:1] in (["datasets"], ["spaces"]):
        raise HubError(f"{text} is the page of a {parts[0].removesuffix('s')}, not of a model")
    revision = parts[3] if len(parts) > 3 and parts[2] in ("tree", "blob", "resolve", "commit") else None
    return "/".join(parts[:2]), revision


def _not_a_name(name: str, known: dict[str, str]) -> str:
    start = f"{name!r} names no model"
    close = nearest_names(name.rsplit("/", 1)[-1])
    if close:
        meant = ", ".join(f"{short} ({known[short]})" for short in close)
        return f"{start}; did you mean {meant}?"
    return (
        f"{start}: give owner/name as on the model's page (meta-llama/Llama-3.2-1B), the address of that page, "
        "or a short name of `tune download --help`"
    )
