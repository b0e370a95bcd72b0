"""Every parameter of the generation recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from tune.config.diagnostics import Diagnostic, problem
from tune.config.params import param
from tune.recipes.params.data_checks import check_template
from tune.recipes.params.model import ModelParams


@dataclass(frozen=True)
class AskParams(ModelParams):
    """What a recipe that asks a model can be told; each recipe adds what is its own."""

    # --- Prompt -----------------------------------------------------------------------------------------
    prompt_template: str | dict[str, list[str]] | None = param(
        None,
        group="Prompt",
        help="Template around each prompt: chat for the checkpoint's own, llama3, alpaca, ..., a .jinja file, or "
        "{user: [before, after], assistant: [before, after]}; null is what a run trained its model "
        "in, and the text as it is (plain) for any other.",
    )
    system_prompt: str | None = param(
        None, group="Prompt", help="What the system says before each prompt, in its template."
    )
    chat_template_kwargs: dict[str, str | bool | int | float] | None = param(
        None, group="Prompt", help="Further names that a chat template reads: {enable_thinking: false}."
    )

    # --- Sampling ---------------------------------------------------------------------------------------
    top_k: int | None = param(
        None, minimum=1, maximum=10**9, group="Sampling", help="Sample among the k likeliest tokens only."
    )
    top_p: float | None = param(
        None,
        above=0.0,
        maximum=1.0,
        group="Sampling",
        help="Sample among the likeliest tokens that together have this probability.",
    )
    seed: int | None = param(
        None, minimum=0, maximum=2**32 - 1, group="Sampling", help="Seed of the sampling; null draws one."
    )
    repetition_penalty: float = param(
        1.0,
        above=0.0,
        maximum=1e3,
        group="Sampling",
        help="Make tokens that stand in the text already less likely: 1.1 a little, 1 not at all.",
    )
    stop: list[str] | None = param(None, group="Sampling", help="Texts that end a completion, besides EOS.")
    show_reasoning: bool = param(
        False,
        group="Output",
        help="Show what gpt-oss and Gemma 4 think in a channel of its own, between <think> tags, before the answer.",
    )

    def cross_checks(self) -> Iterator[Diagnostic]:
        """Yield what is wrong between fields that are each right on their own."""
        yield from super().cross_checks()
        yield from check_template("prompt_template", self.prompt_template)
        if self.stop and "" in self.stop:
            yield problem("holds an empty text, which every answer begins with; remove it", ("stop",))


@dataclass(frozen=True)
class GenerateParams(AskParams):
    """Parameters of `generate`: a model goes on from a prompt."""

    recipe_names: ClassVar[tuple[str, ...]] = ("generate", "alpaca_generate")

    prompt: str | None = param(
        None, group="Prompt", help="Text to go on from; - reads it from standard input."
    )
    prompt_file: str | None = param(
        None,
        group="Prompt",
        help="File of prompts: a line each, or rows as training reads them (jsonl, json, csv, parquet).",
    )
    max_new_tokens: int = param(
        256, minimum=1, maximum=10**9, group="Sampling", help="Longest completion, in tokens."
    )
    temperature: float = param(
        0.0,
        minimum=0.0,
        maximum=1e3,
        group="Sampling",
        help="0 always takes the likeliest token; higher is more random.",
    )
    ignore_eos: bool = param(False, group="Sampling", help="Go on past the end-of-text token.")
    enable_kv_cache: bool = param(
        True,
        group="Sampling",
        help="Keep keys and values of earlier tokens; false recomputes them at each token.",
    )

    compile: bool = param(
        False,
        group="Sampling",
        help="Compile the blocks for writing on a GPU: some seconds at the start, then faster tokens.",
    )
    batch_size: int = param(
        16,
        minimum=1,
        maximum=10**6,
        group="Sampling",
        help="Prompts of a prompt_file that are answered together; fewer take less memory.",
    )
    output_file: str | None = param(
        None,
        group="Output",
        help="Also write prompts and completions to this file, a JSON object a line; "
        "null is beside the prompt_file.",
    )

    def cross_checks(self) -> Iterator[Diagnostic]:
        """Yield what is wrong between fields that are each right on their own."""
        yield from super().cross_checks()
        if self.prompt is None and self.prompt_file is None:
            yield problem("is required (or prompt_file): the text to go on from", ("prompt", "prompt_file"))
        if self.prompt is not None and self.prompt_file is not None:
            yield problem("and prompt_file are both set; give one", ("prompt", "prompt_file"))
