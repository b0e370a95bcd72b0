"""The parameters of the LoRA recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from recipes.params.finetune import FinetuneParams
from tune.config.diagnostics import Diagnostic, problem
from tune.config.params import param

# What a builder that adds adapters itself is called: lora_llama2_7b, qlora_llama2_7b.
_ADAPTING_BUILDERS = ("lora_", "qlora_")
# What chooses the matrices that get an adapter, by the same names in a builder and here.
_MATRICES = ("lora_attn_modules", "apply_lora_to_mlp", "apply_lora_to_output")


@dataclass(frozen=True)
class LoraFinetuneParams(FinetuneParams):
    """Parameters of `lora_finetune`: the model's weights are frozen, small adapters beside them are trained."""

    recipe_names: ClassVar[tuple[str, ...]] = (
        "lora_finetune",
        "lora_finetune_single_device",
        "lora_finetune_distributed",
    )

    # --- LoRA: what is trained. null leaves it to a lora_ builder of the model, else to the value named -----
    lora_rank: int | None = param(
        None,
        minimum=1,
        maximum=2**16,
        group="LoRA",
        fixed_on_resume=True,
        help="Inner width r of each adapter; null means 8.",
    )
    lora_alpha: float | None = param(
        None,
        above=0.0,
        group="LoRA",
        fixed_on_resume=True,
        help="Scale of what adapters add: alpha / rank, or alpha / sqrt(rank) with use_rslora; null means 16.",
    )
    lora_dropout: float | None = param(
        None,
        minimum=0.0,
        maximum=0.99,
        group="LoRA",
        fixed_on_resume=True,
        help="Dropout before the adapters; null means 0.",
    )
    lora_attn_modules: list[Literal["q_proj", "k_proj", "v_proj", "output_proj"]] | None = param(
        None,
        group="LoRA",
        fixed_on_resume=True,
        help="Matrices of the attention that get an adapter; null means q_proj and v_proj.",
    )
    apply_lora_to_mlp: bool | None = param(
        None, group="LoRA", fixed_on_resume=True, help="Adapters on the feed-forward, too; null means no."
    )
    apply_lora_to_output: bool | None = param(
        None, group="LoRA", fixed_on_resume=True, help="An adapter on the output matrix, too; null means no."
    )
    use_dora: bool | None = param(
        None,
        group="LoRA",
        fixed_on_resume=True,
        help="Learn the length of each row apart from its direction; null means no.",
    )
    use_rslora: bool | None = param(
        None,
        group="LoRA",
        fixed_on_resume=True,
        help="Scale by alpha / sqrt(rank), which suits high ranks; null means no.",
    )
    quantize_base: bool | None = param(
        None,
        group="LoRA",
        fixed_on_resume=True,
        help="Keep the frozen matrices of the blocks in 4 bits (NF4): QLoRA; null means no.",
    )
    adapter_checkpoint: str | None = param(
        None,
        short_for="checkpointer.adapter_checkpoint",
        group="LoRA",
        help="Folder of an adapter in PEFT layout to go on from; it says rank, alpha and modules itself.",
    )
    save_adapter_weights_only: bool = param(
        False,
        group="Output",
        help="Save the adapter alone, not also the whole model with the adapter merged into it.",
    )

    def lora_settings(self) -> dict[str, Any]:
        """Return what the adapters are to be like, as `choose_lora` takes it."""
        return {
            "lora_rank": self.lora_rank,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "lora_attn_modules": self.lora_attn_modules,
            "apply_lora_to_mlp": self.apply_lora_to_mlp,
            "apply_lora_to_output": self.apply_lora_to_output,
            "use_dora": self.use_dora,
            "use_rslora": self.use_rslora,
            "quantize_base": self.quantize_base,
        }

    def cross_checks(self) -> Iterator[Diagnostic]:
        """Yield what is wrong between fields that are each right on their own."""
        yield from super().cross_checks()
        if not self.checkpointer.kwargs.get("checkpoint_dir"):
            yield problem(
                "is required: the folder with the weights that the adapters are trained beside",
                ("model_checkpoint", "checkpointer.checkpoint_dir"),
            )
        yield from self._check_adapters()

    def _check_adapters(self) -> Iterator[Diagnostic]:
        adapter = self.checkpointer.kwargs.get("adapter_checkpoint")
        given = [name for name, value in self.lora_settings().items() if value is not None]
        builder = self.model.path.rpartition(".")[2]
        if builder.startswith(_ADAPTING_BUILDERS):
            for name in given:
                yield problem(
                    f"is an argument of {builder}: set model.{name}, or name the model without its lora_ "
                    f"({builder.split('lora_', 1)[1]})",
                    (name, "model"),
                )
            if adapter:
                yield problem(
                    f"says what the adapters are like, and so does {builder}; use the builder without lora_",
                    ("checkpointer.adapter_checkpoint", "model"),
                )
        elif adapter:
            for name in given:
                if name not in ("lora_dropout", "quantize_base"):
                    yield problem(
                        "is said by the adapter in adapter_checkpoint; remove one of the two",
                        (name, "checkpointer.adapter_checkpoint"),
                    )
        yield from self._check_matrices(builder)

    def _check_matrices(self, builder: str) -> Iterator[Diagnostic]:
        """Yield what is wrong with the choice of matrices, whether it is made here or in a lora_ builder."""
        named = {name: getattr(self, name) for name in _MATRICES}
        prefix = ""
        if builder.startswith(_ADAPTING_BUILDERS):
            named, prefix = {name: self.model.kwargs.get(name) for name in _MATRICES}, "model."
        if named["apply_lora_to_output"] and self.model.kwargs.get("tie_word_embeddings"):
            yield problem(
                "would change the embedding as well, which is the output matrix (tie_word_embeddings); set it to false",
                (f"{prefix}apply_lora_to_output", "model.tie_word_embeddings"),
            )
        modules = named["lora_attn_modules"]
        fields = tuple(prefix + name for name in _MATRICES)
        if not isinstance(modules, (list, tuple)):
            return
        if len(set(map(str, modules))) < len(modules):
            yield problem("names a matrix twice", fields[:1])
        if not modules and not named["apply_lora_to_mlp"] and not named["apply_lora_to_output"]:
            yield problem("is empty, and no other matrix gets an adapter: there is nothing to train", fields)

    def _quantized_by(self) -> str:
        builder = self.model.path.rpartition(".")[2]
        if self.quantize_base:
            return "quantize_base"
        if builder.startswith(_ADAPTING_BUILDERS) and self.model.kwargs.get("quantize_base"):
            return "model.quantize_base"
        return "model" if builder.startswith("qlora_") else ""
