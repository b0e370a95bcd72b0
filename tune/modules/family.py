"""What a model family is to the files: names of weights, and the configuration beside them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from tune.modules.config import DecoderConfig

Transform = Callable[[Tensor, DecoderConfig], Tensor]
Rows = Callable[[DecoderConfig], Tensor]


@dataclass(frozen=True)
class WeightRule:
    """One of our parameters and the tensor that holds it in a file.

    Rules of a layer that name the same tensor share it: it holds their parameters one under the other, in the order
    of the rules, as fused projections do. The matrices of experts are named one by one, `experts.3.w1.weight`, though
    a model keeps them in stacks; a tensor without the expert's number holds them for all experts, [E, rows, columns].

    Args:
        ours: parameter name; `{}` stands for the layer's number, a second one for the expert's.
        theirs: tensor name, with `{}` where `ours` has it, or without the second one.
        to_ours: brings their values into our order; None: they are the same. It keeps the shape.
        to_theirs: the inverse of `to_ours`.
        num_experts: of a rule for one expert and a tensor that holds all, how many these are; else 0.
        in_turns: that tensor is [E, columns, rows], of several kinds of matrices a row of each in turn.
        rows: of rules that share a tensor whose rows stand in another order: the places [rows] of this one's there, and
            every rule has them; None: one parameter under the other.
    """

    ours: str
    theirs: str
    to_ours: Transform | None = None
    to_theirs: Transform | None = None
    num_experts: int = 0
    in_turns: bool = False
    rows: Rows | None = None


@dataclass(frozen=True)
class OuterModel:
    """A larger model that holds a family's decoder as its text part, as multimodal checkpoints do.

    What else it holds (tensors, configuration, files of its processor) goes untouched into what is saved, and adapters
    are named as its modules are.

    Args:
        architecture, model_type: its names in config.json.
        carried: patterns of the names of its other tensors.
        fields: of its config.json, beside those of the text part: carried over, and of no effect on the text.
        trunk: what the decoder's tensors and modules begin with where they begin with "model." on their own.
        output: the output matrix's tensor.
        older: other such pairs, as files have had them.
        text_config: the field of config.json that describes the decoder.
        defaults: of that description, where a file leaves fields out.
    """

    architecture: str
    model_type: str
    carried: tuple[str, ...]
    fields: tuple[str, ...]
    trunk: str = "model.language_model."
    output: str = "lm_head.weight"
    older: tuple[tuple[str, str], ...] = ()
    text_config: str = "text_config"
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """How one kind of checkpoint names a family's tensors.

    Args:
        name: for messages: "Hugging Face", "Meta".
        rules: for every parameter that a model of the family may have; which of them it has depends on its sizes.
        ignored: patterns of tensor names that carry nothing a model needs, such as stored rotary frequencies.
        tied_output: name under which a tied output matrix may appear a second time.
        carried: patterns of the names of tensors that are no part of the decoder and are saved along with it.
        carried_of_sharing: the same of layers without keys and values of their own, `{}` for the layer's number.
        outer: the larger model that such a checkpoint is; None: the decoder alone.
        adapted_weights: a part of the names of modules whose adapters peft has beside their weights alone
            (`target_parameters`), since it takes the modules' names for those of experts.
    """

    name: str
    rules: tuple[WeightRule, ...]
    ignored: tuple[str, ...] = ()
    tied_output: str = ""
    carried: tuple[str, ...] = ()
    carried_of_sharing: tuple[str, ...] = ()
    outer: OuterModel | None = None
    adapted_weights: str | None = None

    def all_carried(self, config: DecoderConfig) -> tuple[str, ...]:
        """Return the patterns of the names of all tensors that are saved along with a decoder of these sizes."""
        sharing = range(config.num_own_kv_layers, config.num_layers)
        return (
            *self.carried,
            *(pattern.format(layer) for layer in sharing for pattern in self.carried_of_sharing),
        )

    def expand(self, config: DecoderConfig, names: Collection[str]) -> Iterator[tuple[WeightRule, ...]]:
        """Yield the rules of a model, those that share a tensor together, in the order of the model.

        Args:
            config: the model's sizes.
            names: of its parameters; rules for others are left out.
        """
        num_experts = 0 if config.moe is None else config.moe.num_experts
        known = frozenset(names)  # ten thousands, of experts
        in_blocks = [rule for rule in self.rules if "{}" in rule.ours]
        expanded: dict[str, list[WeightRule]] = {}
        for rule in self.rules:
            if "{}" not in rule.ours:
                expanded.setdefault(rule.theirs, []).append(rule)
            elif rule is in_blocks[0]:
                for layer in range(config.num_layers):
                    for block_rule in in_blocks:
                        for numbered in _numbered(block_rule, layer, num_experts):
                            expanded.setdefault(numbered.theirs, []).append(numbered)
        for sharing in expanded.values():
            if per_kind := sharing[
                0
            ].num_experts:  # from one kind after the other to one expert after the other
                sharing = [rule for place in range(per_kind) for rule in sharing[place::per_kind]]
            if present := tuple(rule for rule in sharing if rule.ours in known):
                yield present


def _numbered(rule: WeightRule, layer: int, num_experts: int) -> Iterator[WeightRule]:
    """Yield the rule for one layer, or for each expert of the layer."""
    if rule.ours.count("{}") == 1:
        yield replace(rule, ours=rule.ours.format(layer), theirs=rule.theirs.format(layer))
        return
    is_stacked = rule.theirs.count("{}") == 1
    for expert in range(num_experts):
        ours, theirs = rule.ours.format(layer, expert), rule.theirs.format(layer, expert)
        yield replace(rule, ours=ours, theirs=theirs, num_experts=num_experts if is_stacked else 0)


@dataclass(frozen=True)
class Family:
    """A model family as files know it. Models carry theirs, so that they can be saved without a model registry.

    Args:
        name: Hugging Face's `model_type`.
        architectures: the names in config.json that this family reads; the first is written.
        hf: layout of Hugging Face checkpoints.
        hf_variants: other names in such checkpoints, those of larger models among them; what is read in one of these
            is saved in it.
        meta: layout of Meta's consolidated files, for families that have one.
        torchtune: layout of torchtune's own files, for families it had; they are written by conversion alone.
        read_hf_config: config.json's content to sizes; raises CheckpointError on what it does not understand.
        write_hf_config: sizes to config.json's content.
        read_meta_config: params.json's content and the shapes of the weights to sizes.
        write_meta_config: sizes to params.json's content.
        classifier: transformers' class of such a decoder with a head that scores texts; "" where it has none.
        has_score: its models have such a head in place of an output matrix (`tune.modules.score`).
    """

    name: str
    architectures: tuple[str, ...]
    hf: Layout
    read_hf_config: Callable[[Mapping[str, Any]], DecoderConfig]
    write_hf_config: Callable[[DecoderConfig], dict[str, Any]]
    hf_variants: tuple[Layout, ...] = ()
    meta: Layout | None = None
    torchtune: Layout | None = None
    read_meta_config: Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], DecoderConfig] | None = (
        None
    )
    write_meta_config: Callable[[DecoderConfig], dict[str, Any]] | None = None
    classifier: str = ""
    has_score: bool = False

    def layout_of_modules(self, outer: OuterModel | None) -> Layout:
        """Return the layout that names tensors as transformers names its modules, in a larger model or alone."""
        if outer is None:
            return self.hf
        return next(layout for layout in self.hf_variants if layout.outer is outer)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The layouts this family's weights come in."""
        known = (self.hf, *self.hf_variants, self.meta, self.torchtune)
        return tuple(layout for layout in known if layout is not None)
