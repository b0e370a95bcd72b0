"""From folders to what answers: the model with its weights, its tokenizer, and the template it was trained in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from tune.checkpoints import load_adapter, read_json
from tune.checkpoints.run_folder import read_run_record
from tune.config.component import Component
from tune.config.instantiate import instantiate
from tune.errors import GenerationError
from tune.generation.sampling import Sampling
from tune.modules import TransformerDecoder
from tune.modules.peft import merge_adapters
from tune.tokenizers import Tokenizer
from tune.tokenizers.templates import AnyTemplate, get_prompt_template, text_template_names

__all__ = ["load_model", "load_tokenizer", "saved_sampling", "trained_template"]


class Checkpointer(Protocol):
    """What is asked of the object that finds and reads weights."""

    adapter_checkpoint: Path | None

    def find_model_dir(self) -> Path | None: ...
    def find_tokenizer_dir(self) -> Path | None: ...
    def load_into(self, model: TransformerDecoder, model_dir: Path, *, device: torch.device) -> None: ...


def load_tokenizer(checkpointer: Checkpointer, tokenizer: Component) -> Tokenizer:
    """Return the tokenizer that a config names, with the checkpoint's folder for what it leaves open."""
    folder = checkpointer.find_tokenizer_dir()
    found: Tokenizer = instantiate(tokenizer, defaults={"checkpoint_dir": str(folder)})
    return found


def load_model(
    checkpointer: Checkpointer, model: Component, device: torch.device, dtype: torch.dtype
) -> TransformerDecoder:
    """Return a model with its weights, an adapter made part of them, ready to be asked.

    Args:
        checkpointer: knows where they are.
        model: builds it.
        device, dtype: of the weights.
    """
    model_dir = checkpointer.find_model_dir()
    assert model_dir is not None, "a checkpointer for generation has a folder"
    # On the meta device the model costs nothing until each tensor is read: one copy of the weights at most.
    with torch.device("meta"):
        built: TransformerDecoder = instantiate(model, defaults={"checkpoint_dir": str(model_dir)}).to(dtype)
    checkpointer.load_into(built, model_dir, device=device)
    if checkpointer.adapter_checkpoint:
        load_adapter(built, checkpointer.adapter_checkpoint, base=model_dir)
        merge_adapters(built)  # one product instead of three for each matrix
    return built.eval()


def trained_template(
    run: Path | None, tokenizer: Tokenizer, *, only_turns: bool = False
) -> AnyTemplate | None:
    """Return the template that a run trained its model in, with its system prompt; None for bare text.

    Args:
        run: its folder; None: the model was trained elsewhere, and nobody knows.
        tokenizer: the one that was saved: its chat template is what was trained, system prompt included.
        only_turns: a template of bare text, such as alpaca's, counts as none; without its turns a chat is blank.
    """
    if run is None:
        return None
    data: Any = (read_run_record(run) or {}).get("data")
    name = data.get("template") if isinstance(data, dict) else None
    if name in ("", "plain") or (only_turns and name in text_template_names()):
        return None
    if tokenizer.chat_template is not None:
        return get_prompt_template("chat")
    return get_prompt_template(name) if name in text_template_names() else None


def saved_sampling(folder: Path) -> dict[str, Any]:
    """Return how a model says it is to be sampled, in its `generation_config.json`: arguments of `Sampling`.

    {} where it says nothing, or something that is no such setting.
    """
    held = (
        read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    )
    if not held.get("do_sample"):
        return {}
    found: dict[str, Any] = {"temperature": 1.0}
    found |= {name: held[name] for name in ("temperature", "top_k", "top_p") if _is_number(held.get(name))}
    if found.get("top_k") == 0:  # transformers' word for all
        del found["top_k"]
    try:
        Sampling(**found)
    except GenerationError:
        return {}
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
