"""Builders of models with LoRA adapters, under the names that torchtune's configs use.

Any model takes adapters through `tune.modules.peft.apply_lora`, and in the LoRA recipe through its own parameters;
these are thin names for some of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from tune.modules import TransformerDecoder
from tune.modules.peft import LoRAConfig, apply_lora


class LoRABuilder:
    """Builds what another builder does, with adapters.

    Args:
        builder: of the model; called without arguments.
        quantize_base: what holds where a call leaves it open.
    """

    def __init__(self, builder: Callable[[], TransformerDecoder], quantize_base: bool = False) -> None:
        self._builder = builder
        self._quantize_base = quantize_base

    def __call__(
        self,
        lora_attn_modules: list[Literal["q_proj", "k_proj", "v_proj", "output_proj"]],
        apply_lora_to_mlp: bool = False,
        apply_lora_to_output: bool = False,
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        lora_dropout: float = 0.0,
        use_dora: bool = False,
        use_rslora: bool = False,
        quantize_base: bool | None = None,
    ) -> TransformerDecoder:
        """Return a model whose weights are frozen, with adapters that are trained.

        Args:
            lora_attn_modules: matrices of the attention that get adapters.
            apply_lora_to_mlp: the feed-forward's get them, too.
            apply_lora_to_output: the output matrix gets one, too.
            lora_rank: inner width of each adapter.
            lora_alpha: what adapters add is scaled by alpha / rank.
            lora_dropout: dropout before the adapters, in training mode.
            use_dora: learn the length of each row apart from its direction.
            use_rslora: scale by alpha / sqrt(rank) instead.
            quantize_base: keep the frozen matrices of the blocks in 4 bits; null: as the builder's name says.

        Raises:
            ConfigError: adapters that this model cannot have.
        """
        model = self._builder()
        config = LoRAConfig(
            rank=lora_rank,
            alpha=lora_alpha,
            dropout=lora_dropout,
            attn_modules=tuple(lora_attn_modules),
            apply_to_mlp=apply_lora_to_mlp,
            apply_to_output=apply_lora_to_output,
            use_dora=use_dora,
            use_rslora=use_rslora,
            quantize_base=self._quantize_base if quantize_base is None else quantize_base,
        )
        apply_lora(model, config)
        return model
