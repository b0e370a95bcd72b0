"""Every parameter of the generation recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tune.config.component import Component
from tune.config.diagnostics import Diagnostic, problem
from tune.config.params import agreed_values, check_params, param
from tune.config.slots import CHECKPOINTER, MODEL, TOKENIZER
from tune.recipes.params.checks import check_checkpointer, check_sizes, check_template


@dataclass(frozen=True)
class AskParams:
    """What a recipe that asks a model can be told; each recipe adds what is its own."""

    # --- Model ------------------------------------------------------------------------------------------
    model: Component = param(
        "auto",
        slot=MODEL,
        group="Model",
        help="Architecture: a builder such as llama2_7b, or auto to build what the checkpoint describes.",
    )
    model_checkpoint: str | None = param(
        None,
        short_for="checkpointer.checkpoint_dir",
        group="Model",
        help="Folder of a run, of a saved step, of a model in Hugging Face or Meta layout, or of an adapter.",
    )
    checkpointer: Component = param(
        "tune.training.FullModelCheckpointer", slot=CHECKPOINTER, group="Model", help="Reads the weights."
    )
    adapter_checkpoint: str | None = param(
        None,
        short_for="checkpointer.adapter_checkpoint",
        group="Model",
        help="Folder of a LoRA adapter in PEFT layout (or a saved step that has one), put on the weights.",
    )
    tokenizer: Component = param(
        "auto",
        slot=TOKENIZER,
        group="Model",
        help="Tokenizer: a builder such as llama2_tokenizer, or auto to read the one in the checkpoint folder.",
    )
    tokenizer_checkpoint: str | None = param(
        None,
        short_for="tokenizer.path",
        group="Model",
        help="The tokenizer's file, for example tokenizer.model.",
    )

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
    # --- Environment ------------------------------------------------------------------------------------
    device: str | None = param(
        None,
        pattern=r"cpu|mps|cuda(:\d+)?",
        pattern_help="cpu, cuda, cuda:N or mps",
        group="Device",
        help="cpu, cuda, cuda:N or mps; null takes a GPU when there is one.",
    )
    dtype: Literal["bf16", "fp32", "fp16"] | None = param(
        None,
        group="Device",
        help="Precision of weights and computation; null takes bf16 on a GPU, fp32 on a CPU.",
    )
    log_level: Literal["DEBUG", "INFO", "WARN", "WARNING", "ERROR"] = param(
        "INFO", group="Output", help="How much is printed to standard error."
    )

    _agreed: Any = agreed_values()

    def __post_init__(self) -> None:
        check_params(self)

    def cross_checks(self) -> Iterator[Diagnostic]:
        """Yield what is wrong between fields that are each right on their own."""
        if not self.checkpointer.kwargs.get("checkpoint_dir"):
            yield problem(
                "is required: the folder with the weights",
                ("model_checkpoint", "checkpointer.checkpoint_dir"),
            )
        yield from check_checkpointer(self.checkpointer)
        builder = self.model.path.rpartition(".")[2]
        if builder.startswith(("lora_", "qlora_")):
            yield problem(
                f"adds adapters ({builder}), which no checkpoint has: name it {builder.split('lora_', 1)[1]}, "
                "and the folder of the adapter in adapter_checkpoint",
                ("model",),
            )
        yield from check_sizes(self.model)
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
