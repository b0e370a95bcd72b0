"""Friendly names of models, and the hub repositories they stand for."""

from __future__ import annotations

import difflib
import re
from urllib.parse import unquote, urlsplit

from tune.errors import HubError


def _sizes(short: str, repo: str, sizes: str, variants: str = "") -> dict[str, str]:
    """Return the short names of each size and variant.

    Args:
        short: the short name, with {} for the size, to which a variant's sign is added.
        repo: the repository, with {} for the size, to which a variant's ending is added.
        sizes: separated by spaces, as the repository spells them.
        variants: "sign=ending" of each, separated by spaces; a plain "=" is the model without a sign.
    """
    pairs = [variant.split("=") for variant in (variants or "=").split()]
    return {
        short.format(size.casefold()) + sign: repo.format(size) + ending
        for sign, ending in pairs
        for size in sizes.split()
    }


_INSTRUCT = "= -instruct=-Instruct"
# A name with a size is the model as its publisher first offers it; "-instruct" and "-chat" are the variants tuned to
# follow instructions, "-base" the ones that are not.
SHORT_NAMES: dict[str, dict[str, str]] = {
    "Llama 2": {
        "llama2": "meta-llama/Llama-2-7b-hf",
        "llama2-chat": "meta-llama/Llama-2-7b-chat-hf",
        **_sizes("llama2-{}", "meta-llama/Llama-2-{}", "7b 13b 70b", "=-hf -chat=-chat-hf"),
    },
    "Llama 3": {
        "llama3": "meta-llama/Meta-Llama-3-8B",
        "llama3-instruct": "meta-llama/Meta-Llama-3-8B-Instruct",
        **_sizes("llama3-{}", "meta-llama/Meta-Llama-3-{}", "8B 70B", _INSTRUCT),
    },
    "Llama 3.1": {
        "llama3.1": "meta-llama/Llama-3.1-8B",
        **_sizes("llama3.1-{}", "meta-llama/Llama-3.1-{}", "8B 70B 405B", _INSTRUCT),
    },
    "Llama 3.2": _sizes("llama3.2-{}", "meta-llama/Llama-3.2-{}", "1B 3B", _INSTRUCT),
    "Llama 3.3": {
        "llama3.3": "meta-llama/Llama-3.3-70B-Instruct",
        **_sizes("llama3.3-{}", "meta-llama/Llama-3.3-{}", "70B", "=-Instruct -instruct=-Instruct"),
    },
    "Code Llama": _sizes(
        "codellama-{}", "codellama/CodeLlama-{}", "7b 13b 34b 70b", "=-hf -instruct=-Instruct-hf"
    ),
    "Mistral": {
        "mistral": "mistralai/Mistral-7B-v0.3",
        "mistral-instruct": "mistralai/Mistral-7B-Instruct-v0.3",
        **_sizes("mistral-{}", "mistralai/Mistral-7B-{}", "v0.1 v0.3"),
        **_sizes("mistral-{}-instruct", "mistralai/Mistral-7B-Instruct-{}", "v0.1 v0.2 v0.3"),
        "mistral-nemo": "mistralai/Mistral-Nemo-Base-2407",
        "mistral-nemo-instruct": "mistralai/Mistral-Nemo-Instruct-2407",
    },
    "Mixtral": {
        "mixtral": "mistralai/Mixtral-8x7B-v0.1",
        "mixtral-instruct": "mistralai/Mixtral-8x7B-Instruct-v0.1",
        "mixtral-8x22b": "mistralai/Mixtral-8x22B-v0.1",
        "mixtral-8x22b-instruct": "mistralai/Mixtral-8x22B-Instruct-v0.1",
    },
    "Qwen 2": _sizes("qwen2-{}", "Qwen/Qwen2-{}", "0.5B 1.5B 7B 72B", _INSTRUCT),
    "Qwen 2.5": _sizes("qwen2.5-{}", "Qwen/Qwen2.5-{}", "0.5B 1.5B 3B 7B 14B 32B 72B", _INSTRUCT),
    "Qwen 3": {
        **_sizes("qwen3-{}", "Qwen/Qwen3-{}", "0.6B 1.7B 4B 8B 14B 32B 30B-A3B"),
        **_sizes("qwen3-{}", "Qwen/Qwen3-{}", "0.6B 1.7B 4B 8B 14B 30B-A3B", "-base=-Base"),
    },
    "Gemma": _sizes("gemma-{}", "google/gemma-{}", "2b 7b", "= -instruct=-it"),
    "Gemma 2": _sizes("gemma2-{}", "google/gemma-2-{}", "2b 9b 27b", "= -instruct=-it"),
    "Gemma 3": _sizes("gemma3-{}", "google/gemma-3-{}", "1b 4b 12b 27b", "=-pt -instruct=-it"),
    "Phi": {
        "phi3-mini": "microsoft/Phi-3-mini-4k-instruct",
        "phi3-mini-128k": "microsoft/Phi-3-mini-128k-instruct",
        "phi4": "microsoft/phi-4",
        "phi4-mini": "microsoft/Phi-4-mini-instruct",
    },
    "SmolLM": {
        **_sizes("smollm2-{}", "HuggingFaceTB/SmolLM2-{}", "135M 360M 1.7B", _INSTRUCT),
        "smollm3": "HuggingFaceTB/SmolLM3-3B",
        "smollm3-base": "HuggingFaceTB/SmolLM3-3B-Base",
    },
    "OLMo 2": {
        **_sizes("olmo2-{}", "allenai/OLMo-2-0425-{}", "1B", _INSTRUCT),
        **_sizes("olmo2-{}", "allenai/OLMo-2-1124-{}", "7B 13B", _INSTRUCT),
        **_sizes("olmo2-{}", "allenai/OLMo-2-0325-{}", "32B", _INSTRUCT),
    },
    "Granite": _sizes("granite3-{}", "ibm-granite/granite-3.3-{}", "2b 8b", "=-base -instruct=-instruct"),
}

# What the hub allows: a letter or digit at both ends; dots, dashes and underscores between, but no "--" and no "..".
_PART = r"(?!.*(?:--|\.\.))[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REPOSITORY = re.compile(f"{_PART}/{_PART}")
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
    close = nearest_names(name.rsplit("/", 1)[-1])
    if close:
        meant = ", ".join(f"{short} ({known[short]})" for short in close)
        raise HubError(f"{name!r} names no model; did you mean {meant}?")
    raise HubError(
        f"{name!r} names no model: give owner/name as on the model's page (meta-llama/Llama-3.2-1B), the address of "
        "that page, or a short name of `tune download --help`"
    )


def is_repository(text: str) -> bool:
    """Tell whether `text` has the form "owner/name" of a hub repository."""
    return _REPOSITORY.fullmatch(text) is not None


def nearest_names(word: str, count: int = 3) -> list[str]:
    """Return the short names closest to `word`, the nearest first."""
    folded = {_fold(short): short for family in SHORT_NAMES.values() for short in family}
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
