"""Adapters put into a model, found in it, and taken out again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from tune.errors import ConfigError
from tune.modules.experts import ExpertLinear
from tune.modules.peft.config import (
    ATTN_MODULES,
    MLP_MODULES,
    LoRAConfig,
    LoRAModule,
    module_name,
)
from tune.modules.peft.experts import FrozenExperts, LoRAExperts
from tune.modules.peft.frozen import FrozenLinear
from tune.modules.peft.lora import LoRALinear
from tune.modules.peft.token_rows import (
    TokenRowsEmbedding,
    TokenRowsLinear,
    with_token_rows,
    without_token_rows,
)

if TYPE_CHECKING:  # the decoder's output may be adapted, so it knows this package
    from tune.modules.decoder import TransformerDecoder

# These are small, and decide: which experts a token is sent to, what a state forgets, and what it takes.
_NEVER_QUANTIZED = ("router", "in_proj_a", "in_proj_b")
_ADAPTER_ENDINGS = (".lora_a.weight", ".lora_b.weight", ".magnitude", ".token_rows")


def apply_lora(model: TransformerDecoder, config: LoRAConfig) -> None:
    """Put adapters beside a model's matrices, and freeze everything else, in place.

    What the model computes stays the same to the bit, unless its base is quantised here. The adapters are of their
    matrix's dtype and where it is. On the meta device they get their memory by `reset_adapters` or `load_adapter`,
    after the base has been loaded.

    Args:
        model: a decoder without adapters, before it is wrapped, compiled or given to an optimizer.
        config: which matrices, and how.

    Raises:
        ConfigError: the model has no such matrices, or cannot have adapters there.
    """
    if adapted_modules(model):
        raise ConfigError("the model has adapters already: merge_adapters makes them part of its matrices")
    chosen = chosen_modules(model, config)
    in_blocks = _matrices_of_blocks(model)
    model.requires_grad_(False)
    if model.score is not None:
        model.score.requires_grad_(True)  # trained whole: it begins as noise
    for module in chosen:
        linear = model.get_submodule(module.path)
        assert isinstance(linear, nn.Linear | ExpertLinear)
        # The output is read as one matrix by the loss: quantised, it would be made anew for each batch.
        quantize_base = (
            config.quantize_base
            and module.path in in_blocks
            and module.path.rpartition(".")[2] not in _NEVER_QUANTIZED
        )
        _replace(model, module.path, _adapted(linear, module, config, quantize_base))
    if config.quantize_base:
        _quantize(model, in_blocks)


def freeze(model: TransformerDecoder, quantize: bool = False) -> None:
    """Make a model one that is not trained, in place: without gradients, in eval mode, for good.

    Args:
        model: a decoder without adapters, before it is wrapped, compiled or loaded.
        quantize: keep the blocks' matrices in 4 bits (NF4) from when they are loaded.
    """
    model.requires_grad_(False).eval()
    if quantize:
        _quantize(model, _matrices_of_blocks(model))


def quantize_frozen(model: TransformerDecoder) -> None:
    """Plan the frozen matrices of the blocks in 4 bits, in place, of a model that has adapters and no memory."""
    for path, module in model.layers.named_modules():
        if isinstance(module, FrozenLinear) and path.rpartition(".")[2] not in _NEVER_QUANTIZED:
            module.quantize_base = True
    matrices = _matrices_of_blocks(model)
    _quantize(model, [path for path in matrices if not model.get_parameter(f"{path}.weight").requires_grad])


def _matrices_of_blocks(model: TransformerDecoder) -> list[str]:
    return [
        f"layers.{path}"
        for path, module in model.layers.named_modules()
        if isinstance(module, nn.Linear | ExpertLinear)
    ]


def _quantize(model: TransformerDecoder, paths: Sequence[str]) -> None:
    for path in paths:
        linear = model.get_submodule(path)
        if isinstance(linear, nn.Linear | ExpertLinear) and path.rpartition(".")[2] not in _NEVER_QUANTIZED:
            frozen = _room_in_4_bits(linear)
            _take_over(linear, frozen)
            _replace(model, path, frozen)


def add_token_rows(
    model: TransformerDecoder,
    token_ids: Sequence[int],
    names: Sequence[str] = ("tok_embeddings.weight", "output.weight"),
) -> None:
    """Train the rows of some tokens beside a model's adapters, in place; they begin as they are.

    Args:
        model: frozen, before it is wrapped, compiled or given to an optimizer.
        token_ids: of the tokens.
        names: of the matrices: the embedding, and the output matrix where it is not the same one.

    Raises:
        ConfigError: there is an adapter beside the output matrix.
    """
    for name in names:
        path = name.removesuffix(".weight")
        module = getattr(model, path)
        if module is None or (isinstance(module, nn.Embedding | nn.Linear) and module.weight.requires_grad):
            continue  # tied, or trained whole
        if not isinstance(module, nn.Embedding | nn.Linear):
            raise ConfigError(
                "new tokens need rows of their own in the output matrix, and an adapter beside it changes all rows: "
                "set apply_lora_to_output to false"
            )
        rows = with_token_rows(module, token_ids)
        if adapters := adapter_parameters(model):
            rows.token_rows.data = rows.token_rows.data.to(next(iter(adapters.values())).dtype)
        _replace(model, path, rows)


def has_token_rows(model: nn.Module) -> bool:
    """Whether rows of some tokens are trained beside a model's adapters."""
    return any(isinstance(module, TokenRowsEmbedding | TokenRowsLinear) for module in model.modules())


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter's."""
    return name.endswith(_ADAPTER_ENDINGS)


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a model's adapters by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if is_adapter(name)}


def adapted_modules(model: nn.Module) -> dict[str, LoRALinear | LoRAExperts]:
    """Return the modules of a model that have adapters, by path, in the model's order."""
    return {
        path: module for path, module in model.named_modules() if isinstance(module, LoRALinear | LoRAExperts)
    }


def cast_adapters(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring a model's adapters to a dtype of their own, in place; they may be on the meta device."""
    for parameter in adapter_parameters(model).values():
        parameter.data = parameter.data.to(dtype)


def reset_adapters(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Begin every adapter of a model anew, and give memory to those on the meta device.

    Args:
        model: its base is loaded.
        dtype: what the adapters become; None: what they are, or their matrix's where they had no memory.

    Raises:
        ConfigError: the model has no adapters, or a matrix that is still without memory.
    """
    modules = adapted_modules(model)
    if not modules:
        raise ConfigError("the model has no adapters: apply_lora puts them in")
    if empty := [path for path, module in modules.items() if module.base_device.type == "meta"]:
        raise ConfigError(f"load the base first: {empty[0]} and {len(empty) - 1} more have no memory yet")
    for module in modules.values():
        module.reset_adapter(dtype)
    for owner in model.modules():
        if isinstance(owner, TokenRowsEmbedding | TokenRowsLinear):
            owner.reset_token_rows(dtype)


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Replace each matrix and its adapter by the one matrix that does the same, in place; a plain model remains.

    A quantised base is merged in the dtype it stands for and stays unquantised. Merged one at a time: the peak is one
    matrix more than the model. All parameters stay frozen.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, TokenRowsEmbedding | TokenRowsLinear):
            _replace(model, path, without_token_rows(module))
        elif isinstance(module, FrozenExperts):
            _replace(model, path, _merged_experts(module))
        elif isinstance(module, FrozenLinear):
            # At least fp32 until the sum is made: an adapter is small beside its matrix.
            wide = torch.promote_types(module.base_dtype, torch.float32)
            merged = module.merged_weight(wide).to(module.base_dtype)
            linear = nn.Linear(module.in_dim, module.out_dim, bias=False, device="meta")
            linear.weight = nn.Parameter(merged, requires_grad=False)
            linear.register_parameter("bias", module.bias)
            _replace(model, path, linear.train(module.training))


def _merged_experts(module: FrozenExperts) -> ExpertLinear:
    wide = torch.promote_types(module.base_dtype, torch.float32)
    with torch.device("meta"):
        plain = ExpertLinear(module.num_experts, module.in_dim, module.out_dim)
    # One expert at a time in the wider type, as above one matrix.
    stack = torch.empty(plain.weight.shape, dtype=module.base_dtype, device=module.base_device)
    for place, matrix in enumerate(stack):
        matrix.copy_(module.merged_expert(place, wide))
    plain.weight = nn.Parameter(stack, requires_grad=False)
    plain.bias = module.bias
    return plain.train(module.training)


def drop_adapters(model: nn.Module) -> None:
    """Take the adapters out of a model whose base is not quantised yet, in place: what they learnt is gone."""
    for path, module in list(model.named_modules()):
        if isinstance(module, FrozenLinear):
            linear: nn.Linear | ExpertLinear
            with torch.device("meta"):
                if isinstance(module, FrozenExperts):
                    linear = ExpertLinear(module.num_experts, module.in_dim, module.out_dim)
                else:
                    linear = nn.Linear(module.in_dim, module.out_dim, bias=False)
            assert module.weight is not None, "it is quantised when it is filled"
            linear.weight = module.weight
            linear.bias = module.bias
            _replace(model, path, linear.train(module.training))


def chosen_modules(model: TransformerDecoder, config: LoRAConfig) -> tuple[LoRAModule, ...]:
    """Return the matrices of a model that a configuration gives adapters to, in the model's order.

    Raises:
        ConfigError: the model has no such matrices, or cannot have adapters there.
    """
    if config.apply_to_output and not config.modules and model.output is None:
        raise ConfigError(
            "the model's output matrix is its embedding (tie_word_embeddings), and an adapter would have to change "
            "both: set apply_lora_to_output (in a LoRAConfig: apply_to_output) to false"
        )
    known = _adaptable(model)
    if config.modules:
        for module in config.modules:
            _check_path(model, module.path, known, config.use_dora)
        order = {path: place for place, path in enumerate(known)}
        return tuple(sorted(config.modules, key=lambda module: order[module.path]))
    names = {module_name(path) for path in known}
    there = [name for name in ATTN_MODULES if name in names]
    if absent := [name for name in config.attn_modules if name not in there]:
        raise ConfigError(
            f"attn_modules (lora_attn_modules) names {absent[0]}, and no layer of this model has it: it has "
            f"{', '.join(there)}"
        )
    wanted = {*config.attn_modules, *(MLP_MODULES if config.apply_to_mlp else ())}
    chosen = [path for path in known if module_name(path) in wanted and not _is_beside_experts(model, path)]
    if config.use_dora and any(_is_of_experts(path) for path in chosen):
        raise ConfigError(
            "use_dora: the rows of experts have no magnitudes here, nor in peft: set use_dora or apply_to_mlp "
            "(apply_lora_to_mlp) to false"
        )
    if config.apply_to_output:
        chosen.append("output")
    return tuple(LoRAModule(path, config.rank, config.alpha) for path in chosen)


def _adaptable(model: TransformerDecoder) -> list[str]:
    """Return the paths of the matrices in blocks, experts' among them, and of the output."""
    kinds = nn.Linear | FrozenLinear | ExpertLinear
    paths = [path for path, module in model.named_modules() if isinstance(module, kinds)]
    names = (*ATTN_MODULES, *MLP_MODULES, "output")
    return [path for path in paths if module_name(path) in names]


def _is_of_experts(path: str) -> bool:
    return ".experts." in path


def _is_beside_experts(model: TransformerDecoder, path: str) -> bool:
    """Whether this is a feed-forward of a model with experts in other layers: peft takes its names for theirs."""
    is_of_layer = ".mlp." in path and ".mlp.shared." not in path
    moe = model.config.moe
    return moe is not None and not moe.is_beside and is_of_layer and not _is_of_experts(path)


def _check_path(model: TransformerDecoder, path: str, known: list[str], use_dora: bool) -> None:
    if path == "output" and model.output is None:
        raise ConfigError("output is the embedding (tie_word_embeddings), and gets no adapter")
    if path not in known:
        raise ConfigError(f"the model has no matrix {path}; it has {', '.join(known[:8])}, ...")
    if _is_beside_experts(model, path):
        raise ConfigError(
            f"{path}: the feed-forwards of layers without experts get no adapters in a model that has experts"
        )
    if use_dora and _is_of_experts(path):
        raise ConfigError(f"{path}: use_dora: the rows of experts have no magnitudes here, nor in peft")


def _adapted(
    linear: nn.Linear | ExpertLinear, module: LoRAModule, config: LoRAConfig, quantize_base: bool
) -> LoRALinear | LoRAExperts:
    adapted: LoRALinear | LoRAExperts
    with torch.device("meta"):  # the adapter gets its memory beside the matrix, once that is there
        if isinstance(linear, ExpertLinear):
            num_experts, out_dim, in_dim = linear.weight.shape
            adapted = LoRAExperts(
                num_experts,
                in_dim,
                out_dim,
                module.rank,
                module.alpha,
                config.dropout,
                quantize_base=quantize_base,
                use_rslora=config.use_rslora,
            )
        else:
            adapted = LoRALinear(
                linear.in_features,
                linear.out_features,
                module.rank,
                module.alpha,
                config.dropout,
                quantize_base=quantize_base,
                use_dora=config.use_dora,
                use_rslora=config.use_rslora,
            )
    _take_over(linear, adapted)
    adapted.reset_adapter()
    return adapted


def _room_in_4_bits(linear: nn.Linear | ExpertLinear) -> FrozenLinear:
    """Return a module for the same matrix, or matrices, frozen and in 4 bits, without memory; its bias is left out."""
    with torch.device("meta"):
        if isinstance(linear, ExpertLinear):
            num_experts, out_dim, in_dim = linear.weight.shape
            return FrozenExperts(num_experts, in_dim, out_dim, quantize_base=True)
        return FrozenLinear(linear.in_features, linear.out_features, quantize_base=True)


def _take_over(linear: nn.Linear | ExpertLinear, frozen: FrozenLinear) -> None:
    """Give the frozen module what the plain one had: the same tensors, or their codes."""
    held = dict(linear.named_parameters())
    frozen.weight, frozen.bias = held["weight"], held.get("bias")
    if frozen.quantize_base and not linear.weight.is_meta:
        frozen.fill_weight(linear.weight.detach())
    frozen.train(linear.training)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)
