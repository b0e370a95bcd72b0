"""What a model family is to the files: names of weights, and the configuration beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tune.modules.config import DecoderConfig

Transform = Callable[[Tensor, DecoderConfig], Tensor]


@dataclass(frozen=True)
class WeightRule:
    """One of our parameters and the tensor that holds it in a file.

    Args:
        ours: parameter name; `{}` stands for the layer's number.
        theirs: tensor name, with `{}` where `ours` has it.
        to_ours: brings their values into our order; None: they are the same. It keeps the shape.
        to_theirs: the inverse of `to_ours`.
    """

    ours: str
    theirs: str
    to_ours: Transform | None = None
    to_theirs: Transform | None = None


@dataclass(frozen=True)
class Layout:
    """How one kind of checkpoint names a family's tensors.

    Args:
        name: for messages: "Hugging Face", "Meta".
        rules: one per parameter, or per parameter of a block.
        ignored: patterns of tensor names that carry nothing a model needs, such as stored rotary frequencies.
        tied_output: name under which a tied output matrix may appear a second time.
    """

    name: str
    rules: tuple[WeightRule, ...]
    ignored: tuple[str, ...] = ()
    tied_output: str = ""

    def expand(self, config: DecoderConfig) -> Iterator[WeightRule]:
        """Yield one rule per parameter of a model with these sizes, in the order of the model."""
        in_blocks = [rule for rule in self.rules if "{}" in rule.ours]
        for rule in self.rules:
            if "{}" not in rule.ours:
                if rule.theirs != self.tied_output or not config.tie_word_embeddings:
                    yield rule
            elif rule is in_blocks[0]:
                for layer in range(config.num_layers):
                    for block_rule in in_blocks:
                        yield WeightRule(
                            block_rule.ours.format(layer),
                            block_rule.theirs.format(layer),
                            block_rule.to_ours,
                            block_rule.to_theirs,
                        )


@dataclass(frozen=True)
class Family:
    """A model family as files know it. Models carry theirs, so that they can be saved without a model registry.

    Args:
        name: Hugging Face's `model_type`.
        architectures: the names in config.json that this family reads; the first is written.
        hf: layout of Hugging Face checkpoints.
        meta: layout of Meta's consolidated files, for families that have one.
        torchtune: layout of torchtune's own files; they are read, never written.
        read_hf_config: config.json's content to sizes; raises CheckpointError on what it does not understand.
        write_hf_config: sizes to config.json's content.
        read_meta_config: params.json's content and the shapes of the weights to sizes.
        write_meta_config: sizes to params.json's content.
    """

    name: str
    architectures: tuple[str, ...]
    hf: Layout
    read_hf_config: Callable[[Mapping[str, Any]], DecoderConfig]
    write_hf_config: Callable[[DecoderConfig], dict[str, Any]]
    meta: Layout | None = None
    torchtune: Layout | None = None
    read_meta_config: Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], DecoderConfig] | None = (
        None
    )
    write_meta_config: Callable[[DecoderConfig], dict[str, Any]] | None = None

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The layouts this family's weights come in."""
        return tuple(layout for layout in (self.hf, self.meta, self.torchtune) if layout is not None)
