"""The parameters of the LoRA recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from tune.config.diagnostics import Diagnostic, problem
from tune.config.params import fields_of, given_fields, param
from tune.recipes.params.finetune import FinetuneParams

# What a builder that adds adapters itself is called: lora_llama2_7b, qlora_llama2_7b.
_ADAPTING_BUILDERS = ("lora_", "qlora_")
# What chooses the matrices that get an adapter, by the same names in a builder and here.
# As `tune.modules.peft.AttnModule`, which comes with torch and says of which layers each line is.
_AttnModule = Literal[
    "q_proj", "k_proj", "v_proj", "output_proj", "gate_proj",
    "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj",
    "in_proj",
    "per_layer_input_gate", "per_layer_projection", "per_layer_model_projection",
]  # fmt: skip
_MATRICES = ("lora_attn_modules", "apply_lora_to_mlp", "apply_lora_to_output")


@dataclass(frozen=True)
class LoraFinetuneParams(FinetuneParams):
    """Parameters of `lora_finetune`: the model's weights are frozen, small adapters beside them are trained."""

    recipe_names: ClassVar[tuple[str, ...]] = (
        "lora_finetune",
        "lora_finetune_single_device",
        "lora_finetune_distributed",
    )

    # --- LoRA: what is trained --------------------------------------------------------------------------
    # The values here are those of a run that says nothing. A lora_ builder of the model, or an adapter that is gone on
    # from, says them itself; one that is set beside it is refused, whatever its value.
    # null is still read, and means the default: runs of earlier versions saved it for what was not set.
    lora_rank: int | None = param(
        8,
        minimum=1,
        maximum=2**16,
        group="LoRA",
        fixed_on_resume=True,
        help="Inner width r of each adapter.",
    )
    lora_alpha: float | None = param(
        16.0,
        minimum=1e-6,
        maximum=1e6,
        group="LoRA",
        fixed_on_resume=True,
        help="Scale of what adapters add: alpha / rank, or alpha / sqrt(rank) with use_rslora.",
    )
    loraplus_lr_ratio: float | None = param(
        None,
        minimum=1e-3,
        maximum=1e4,
        group="Optimization",
        fixed_on_resume=True,
        help="LoRA+: how much faster the second matrix of each adapter learns than the first, such as 16.",
    )
    lora_dropout: float | None = param(
        0.0,
        minimum=0.0,
        maximum=0.99,
        group="LoRA",
        fixed_on_resume=True,
        help="Dropout before the adapters.",
    )
    lora_attn_modules: list[_AttnModule] | None = param(
        ["q_proj", "v_proj"],
        group="LoRA",
        fixed_on_resume=True,
        help="Matrices of the attention that get an adapter.",
    )
    apply_lora_to_mlp: bool | None = param(
        False,
        group="LoRA",
        fixed_on_resume=True,
        help="Adapters on the feed-forward, too; on experts where those take its place.",
    )
    apply_lora_to_output: bool | None = param(
        False, group="LoRA", fixed_on_resume=True, help="An adapter on the output matrix, too."
    )
    use_dora: bool | None = param(
        False,
        group="LoRA",
        fixed_on_resume=True,
        help="Learn the length of each row apart from its direction.",
    )
    use_rslora: bool | None = param(
        False,
        group="LoRA",
        fixed_on_resume=True,
        help="Scale by alpha / sqrt(rank), which suits high ranks.",
    )
    quantize_base: bool | None = param(
        False,
        group="LoRA",
        fixed_on_resume=True,
        help="Keep the frozen matrices of the blocks in 4 bits (NF4): QLoRA.",
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

    def optimizer_settings(self) -> dict[str, Any]:
        """Return how the optimizer steps, and what it is told of some weights alone, as `build_optimizer` takes it."""
        return {**super().optimizer_settings(), "loraplus_lr_ratio": self.loraplus_lr_ratio}

    def lora_settings(self) -> dict[str, Any]:
        """Return what the adapters are to be like, as `choose_lora` takes it.

        Of an adapter that is gone on from only what was set is said here.
        """
        given = given_fields(self)
        values = {
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
        if self.checkpointer.kwargs.get("adapter_checkpoint"):
            return {name: value for name, value in values.items() if name in given}
        return {name: _DEFAULTS[name] if value is None else value for name, value in values.items()}

    def decided_elsewhere(self) -> dict[str, str]:
        """Return the settings of adapters that are not this object's to say, and who says them instead."""
        builder = self.model.path.rpartition(".")[2]
        if builder.startswith(_ADAPTING_BUILDERS):
            return dict.fromkeys(ADAPTER_SETTINGS, f"as {builder} has it, see model")
        if self.checkpointer.kwargs.get("adapter_checkpoint"):
            kept = given_fields(self) | {"quantize_base"}
            return dict.fromkeys(
                (name for name in ADAPTER_SETTINGS if name not in kept),
                "as the adapter in adapter_checkpoint has it",
            )
        return {}

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
        given = [name for name in ADAPTER_SETTINGS if name in given_fields(self)]
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
        if unknown := [name for name in modules if name not in get_args(_AttnModule)]:
            yield problem(
                f"names {str(unknown[0])[:80]!r}; the attention has {', '.join(get_args(_AttnModule))}",
                fields[:1],
            )
        elif len(set(modules)) < len(modules):
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


_DEFAULTS = {name: info.default for name, info in fields_of(LoraFinetuneParams).items()}
# What says what an adapter is like; all of it is in a lora_ builder too, and most of it in an adapter's folder.
ADAPTER_SETTINGS = tuple(
    name
    for name, info in fields_of(LoraFinetuneParams).items()
    if info.group == "LoRA" and not info.short_for
)
