"""What a family's file makes its builders of: one size, one size with adapters, sizes by argument, a tokenizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, ParamSpec

from tune.errors import ConfigError
from tune.modules import DecoderConfig, Family, TransformerDecoder
from tune.modules.peft import AttnModule, LoRAConfig, apply_lora
from tune.tokenizers import BaseTokenizer, from_checkpoint

P = ParamSpec("P")


class ModelBuilder:
    """Builds a family's decoder in one published size.

    Args:
        family: how its checkpoints name weights.
        config: the size.
    """

    def __init__(self, family: Family, config: DecoderConfig) -> None:
        self.family = family
        self.config = config

    def __call__(self, attn_dropout: float = 0.0) -> TransformerDecoder:
        """Return the model of this name, randomly initialised.

        Built on torch's current default device and dtype.

        Args:
            attn_dropout: dropout on attention weights while training.
        """
        return TransformerDecoder(replace(self.config, attn_dropout=attn_dropout), self.family)


class LoRABuilder(Generic[P]):
    """Builds what another builder does, with adapters, under the names that torchtune's configs use.

    Any model takes adapters through `tune.modules.peft.apply_lora`, and in the LoRA recipe through its own parameters.

    Args:
        builder: of the model; its arguments are keywords of a call.
        quantize_base: what holds where a call leaves it open.
    """

    def __init__(self, builder: Callable[P, TransformerDecoder], quantize_base: bool = False) -> None:
        self.builder = builder
        self.quantize_base = quantize_base
        # What a call takes, spelt out: the arguments of a configuration are compared with it.
        own = list(inspect.signature(type(self).__call__).parameters.values())[1:-2]  # neither self nor P's
        wrapped = inspect.signature(builder).parameters.values()
        keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in wrapped]
        self.__signature__ = inspect.Signature([*own, *keywords], return_annotation=TransformerDecoder)

    def __call__(
        self,
        lora_attn_modules: list[AttnModule],
        apply_lora_to_mlp: bool = False,
        apply_lora_to_output: bool = False,
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        lora_dropout: float = 0.0,
        use_dora: bool = False,
        use_rslora: bool = False,
        quantize_base: bool | None = None,
        *args: P.args,
        **arguments: P.kwargs,
    ) -> TransformerDecoder:
        """Return the model of this name, frozen, with adapters that are trained.

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
            *args: of the model's builder.
            **arguments: of the model's builder.

        Raises:
            ConfigError: sizes that do not fit together, or adapters that this model cannot have.
        """
        model = self.builder(*args, **arguments)
        config = LoRAConfig(
            rank=lora_rank,
            alpha=lora_alpha,
            dropout=lora_dropout,
            attn_modules=tuple(lora_attn_modules),
            apply_to_mlp=apply_lora_to_mlp,
            apply_to_output=apply_lora_to_output,
            use_dora=use_dora,
            use_rslora=use_rslora,
            quantize_base=self.quantize_base if quantize_base is None else quantize_base,
        )
        apply_lora(model, config)
        return model


def sizes_by_argument(
    *,
    num_heads: int,
    num_kv_heads: int | None,
    embed_dim: int,
    intermediate_dim: int | None,
    head_dim: int | None = None,
    **others: Any,
) -> DecoderConfig:
    """Return a decoder's description from the arguments of a builder.

    Args:
        num_heads: query heads.
        num_kv_heads: None: as many as query heads.
        embed_dim: width.
        intermediate_dim: width of the feed-forward; None: two thirds of four widths, rounded up to 256.
        head_dim: width of a head; None: the width over the heads.
        **others: further arguments of `DecoderConfig`.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    if head_dim is None:
        if num_heads < 1 or embed_dim % num_heads:
            raise ConfigError(f"embed_dim is {embed_dim}, not a multiple of num_heads {num_heads}")
        head_dim = embed_dim // num_heads
    if intermediate_dim is None:
        intermediate_dim = -(-(2 * 4 * embed_dim // 3) // 256) * 256
    return DecoderConfig(
        num_heads=num_heads,
        num_kv_heads=num_heads if num_kv_heads is None else num_kv_heads,
        embed_dim=embed_dim,
        head_dim=head_dim,
        intermediate_dim=intermediate_dim,
        **others,
    )


def tokenizer_at(
    path: str,
    max_seq_len: int | None = None,
    prompt_template: str | dict[str, list[str]] | None = None,
    add_tokens: list[str] | None = None,
    add_special_tokens: list[str] | None = None,
) -> BaseTokenizer:
    """Return the tokenizer that a checkpoint's files describe, as those of most families do.

    Args:
        path: its tokenizer.model or tokenizer.json, or the directory that holds one.
        max_seq_len: tokens after which an example is cut; None: what the model was made for.
        prompt_template: how conversations are written as text, see `tune.data.get_prompt_template`; None: as the
            checkpoint's own template says.
        add_tokens: texts that become one token each, with ids after the last one (`tune.tokenizers.with_new_tokens`).
        add_special_tokens: the same for control tokens, which templates write and a text never becomes.

    Raises:
        TokenizerError: there is no such file, or it cannot be read.
    """
    return from_checkpoint(path, max_seq_len, prompt_template, add_tokens, add_special_tokens)
