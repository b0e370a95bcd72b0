"""Chat templates for models that come without one: base models, and what Meta and Mistral let people download."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from tune.tokenizers.chat_template_render import ChatTemplate

_FOLDER = Path(__file__).parent / "chat_templates"
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
# By name, the special tokens without which the template would be mere text that the model never saw.
_NEEDS: dict[str, tuple[str, ...]] = {
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "mistral": (),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "qwen2": CHATML_TOKENS,
    "phi3": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "phi4": (*CHATML_TOKENS, "<|im_sep|>"),
    "olmo2": (),
    "granite": ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
}
BUILTIN_NAMES = tuple(_NEEDS)
# torchtune's names of such templates.
BUILTIN_CLASS_NAMES = {"MistralChatTemplate": "mistral"}


def builtin_template(name: str) -> ChatTemplate:
    """Return one of `BUILTIN_NAMES`."""
    return _read(name, _NEEDS[name])


def chatml_template() -> ChatTemplate:
    """Return ChatML for tokenizers that have its special tokens."""
    return _read("chatml", CHATML_TOKENS)


@lru_cache(maxsize=32)
def _read(name: str, needs: tuple[str, ...]) -> ChatTemplate:
    source = (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    return ChatTemplate(source, name, needs=needs, is_builtin=True)
