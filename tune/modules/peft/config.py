"""Which matrices of a model get adapters, and of what size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from tune.errors import ConfigError

# The first line's last: of attention whose gate has a matrix of its own. The second line: of layers that keep a state
# instead of attending; of those with a short convolution, the third, too. The last: of layers with an input of their
# own, as files and peft name them.
AttnModule = Literal[
    "q_proj", "k_proj", "v_proj", "output_proj", "gate_proj",
    "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj",
    "in_proj",
    "per_layer_input_gate", "per_layer_projection", "per_layer_model_projection",
]  # fmt: skip
ATTN_MODULES: tuple[AttnModule, ...] = get_args(AttnModule)
MLP_MODULES = ("w1", "w2", "w3")
# By the ends of their paths in a model.
_PER_LAYER = {
    "per_layer.gate": "per_layer_input_gate",
    "per_layer.projection": "per_layer_projection",
    "per_layer_input.projection": "per_layer_model_projection",
}
# No matrix of a model here has a higher rank than this; beyond, sizes leave what torch can count.
MAX_RANK = 2**16


def module_name(path: str) -> str:
    """Return the name by which a configuration chooses the matrix at a path of a model."""
    owner, _, leaf = path.rpartition(".")
    return _PER_LAYER.get(f"{owner.rpartition('.')[2]}.{leaf}", leaf)


@dataclass(frozen=True)
class LoRAModule:
    """One matrix with a size of adapter of its own.

    Args:
        path: of the module in the model: "layers.0.attn.q_proj".
        rank: r, rows of A and columns of B.
        alpha: as in `LoRAConfig`.
    """

    path: str
    rank: int
    alpha: float


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters beside frozen matrices: W x + scaling * B A x.  # arXiv:2106.09685, 4.1

    Args:
        rank: r, rows of A and columns of B.
        alpha: what the adapters add is multiplied by alpha / rank.
        dropout: probability that an input of an adapter is dropped, in training mode only; the frozen matrix sees
            all of them.
        attn_modules: matrices of the attention that get adapters, in every layer that has them (gate_proj is that of a
            gate of its own); those of layers that keep a state instead have names of their own (in_proj_qkv,
            in_proj_z, in_proj_b, in_proj_a, out_proj), and so have those with a short convolution (in_proj, out_proj),
            and those with an input of their own (per_layer_input_gate, per_layer_projection; per_layer_model_projection
            makes these inputs).
        apply_to_mlp: the matrices of the feed-forward (w1, w2, w3) get them as well.
        apply_to_output: the output matrix gets one as well.
        use_dora: direction and magnitude of each row are trained apart.  # arXiv:2402.09353
        use_rslora: multiply by alpha / sqrt(rank) instead, which stays stable as ranks grow.  # arXiv:2312.03732
        quantize_base: keep the blocks' frozen matrices in 4 bits (NF4), with and without adapters.  # arXiv:2305.14314
        modules: the matrices one by one, with a rank and alpha each; then `rank`, `alpha`, `attn_modules`,
            `apply_to_mlp` and `apply_to_output` decide nothing. It is how adapters made elsewhere are described.

    Raises:
        ConfigError: values that no adapter can have; every such problem is listed.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    attn_modules: tuple[AttnModule, ...] = ("q_proj", "v_proj")
    apply_to_mlp: bool = False
    apply_to_output: bool = False
    use_dora: bool = False
    use_rslora: bool = False
    quantize_base: bool = False
    modules: tuple[LoRAModule, ...] = ()

    def __post_init__(self) -> None:
        given: object = self.attn_modules
        if isinstance(given, list):  # as YAML has it
            object.__setattr__(self, "attn_modules", tuple(given))
        if problems := list(self._problems()):
            raise ConfigError("no adapters can be made like this:\n  " + "\n  ".join(problems))

    def _problems(self) -> Iterator[str]:
        yield from _problems_of_size("", self.rank, self.alpha)
        for module in self.modules:
            yield from _problems_of_size(f"{module.path}: ", module.rank, module.alpha)
        # Written so that NaN fails as well.
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            yield f"dropout is {self.dropout!r}; it must be at least 0 and below 1"
        given: object = self.attn_modules
        if not isinstance(given, tuple):
            yield f"attn_modules is {given!r}; it must be a list of names"
            return
        for name in given:
            if name not in ATTN_MODULES:
                yield f"attn_modules names {name!r}; the attention has {', '.join(ATTN_MODULES)}"
        for names in (self.attn_modules, tuple(module.path for module in self.modules)):
            if twice := sorted({str(name) for name in names if names.count(name) > 1}):
                yield f"{', '.join(twice[:4])} is named twice"
        if not (self.attn_modules or self.apply_to_mlp or self.apply_to_output or self.modules):
            yield "no matrix gets an adapter: name some in attn_modules, or set apply_to_mlp"


# Names in a configuration, and what they set here.
_SETTINGS = {
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_attn_modules": "attn_modules",
    "apply_lora_to_mlp": "apply_to_mlp",
    "apply_lora_to_output": "apply_to_output",
    "use_dora": "use_dora",
    "use_rslora": "use_rslora",
    "quantize_base": "quantize_base",
}


def choose_lora(settings: Mapping[str, Any], adapter: LoRAConfig | None = None) -> LoRAConfig:
    """Return what a configuration says of its adapters.

    Args:
        settings: by the names a configuration has for them (`lora_rank`); None leaves what stands.
        adapter: what is not set is taken from it, instead of the defaults.

    Raises:
        ConfigError: values that no adapter can have.
    """
    given = {_SETTINGS[name]: value for name, value in settings.items() if value is not None}
    return replace(adapter or LoRAConfig(), **given)


def _problems_of_size(where: str, rank: object, alpha: object) -> Iterator[str]:
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
        yield f"{where}rank is {rank!r}; it must be a whole number, at least 1 and at most {MAX_RANK}"
    if not _is_number(alpha) or not 0 < alpha < math.inf:  # type: ignore[operator]  # it is a number by then
        yield f"{where}alpha is {alpha!r}; it must be above 0 and finite"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
