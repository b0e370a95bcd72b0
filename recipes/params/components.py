"""What the arguments of components must be to each other, as far as a configuration alone can tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tune.config.component import Component
from tune.config.diagnostics import shorten
from tune.config.params import Problem
from tune.errors import ConfigError

# The label of a position without a target, in every batch (`tune.data`, which would import torch).
_IGNORE_INDEX = -100
_TEMPLATE_FILES = (".jinja", ".jinja2", ".j2")


def check_optimizer(optimizer: Component) -> Iterator[Problem]:
    """Yield what an optimizer's arguments have against each other, or against training at all."""
    given = optimizer.kwargs
    for other, why in (
        ("foreach", "excludes foreach: choose one implementation"),
        ("differentiable", "excludes differentiable"),
    ):
        if given.get("fused") and given.get(other):
            yield Problem(why, ("optimizer.fused", f"optimizer.{other}"))
    if given.get("maximize"):
        yield Problem("would make the loss greater at each step; remove it", ("optimizer.maximize",))
    if given.get("nesterov") and optimizer.path == "torch.optim.SGD":
        if not given.get("momentum"):
            yield Problem("needs optimizer.momentum above 0", ("optimizer.nesterov", "optimizer.momentum"))
        elif given.get("dampening"):
            yield Problem("needs a dampening of 0", ("optimizer.nesterov", "optimizer.dampening"))


def check_loss(loss: Component) -> Iterator[Problem]:
    """Yield what makes a loss another than the sum over the target tokens."""
    reduction = loss.kwargs.get("reduction", "sum")
    if reduction != "sum":
        yield Problem(
            f"must be sum, not {reduction}: the recipe divides by the count of all target tokens of a step itself",
            ("loss.reduction",),
            suggestion="sum",
        )
    ignored = loss.kwargs.get("ignore_index", _IGNORE_INDEX)
    if ignored != _IGNORE_INDEX and loss.path.startswith(("tune.", "torch.")):
        yield Problem(
            f"must be {_IGNORE_INDEX}, not {ignored}: that is the label of positions without a target; remove it",
            ("loss.ignore_index",),
            suggestion=str(_IGNORE_INDEX),
        )


def check_sizes(model: Component) -> Iterator[Problem]:
    """Yield the sizes of a decoder that do not go into each other."""
    if not model.path.startswith("tune."):
        return  # a name may mean anything there
    sizes = {name: value for name, value in model.kwargs.items() if type(value) is int and value > 0}
    heads, kv_heads = sizes.get("num_heads"), sizes.get("num_kv_heads")
    width, head_dim = sizes.get("embed_dim"), sizes.get("head_dim")
    if heads and kv_heads and heads % kv_heads:
        yield Problem(
            f"is {heads}, not a multiple of num_kv_heads {kv_heads}",
            ("model.num_heads", "model.num_kv_heads"),
        )
    if heads and width and head_dim is None and width % heads:
        yield Problem(
            f"is {width}, not a multiple of num_heads {heads}", ("model.embed_dim", "model.num_heads")
        )
    elif heads and width and (head_dim or width // heads) % 2 and model.kwargs.get("rotary_dim") is None:
        found = ("model.head_dim",) if head_dim else ("model.embed_dim", "model.num_heads")
        yield Problem(
            f"makes heads of {head_dim or width // heads} channels; rotary positions need an even number",
            found,
        )


def check_templates(
    name: str, components: Component | tuple[Component, ...] | list[Component] | None
) -> Iterator[Problem]:
    """Yield the prompt templates among the arguments of datasets that there are not.

    Args:
        name: the field that holds the dataset, or a list of them.
        components: its value.
    """
    if isinstance(components, Component):
        yield from check_template(f"{name}.prompt_template", components.kwargs.get("prompt_template"))
    for index, component in enumerate(components if isinstance(components, (list, tuple)) else ()):
        yield from check_templates(f"{name}.{index}", component)


def check_template(name: str, template: Any) -> Iterator[Problem]:
    """Yield why `template` is none; whether a file is there is not a matter of the configuration."""
    is_file = isinstance(template, str) and template.endswith(_TEMPLATE_FILES)
    if is_file or not isinstance(template, (str, Mapping)):
        return
    # the names live there, and it imports no torch; most configurations name none
    from tune.tokenizers.templates import get_prompt_template, template_names

    try:
        get_prompt_template(template)
    except ConfigError as error:
        yield Problem(
            f"is no template: {shorten(str(error), 400)}",
            (name,),
            suggestion=_nearest(template, template_names()),
        )


def _nearest(template: Any, names: tuple[str, ...]) -> str | None:
    import difflib  # only on the way to an error

    if not isinstance(template, str) or len(template) > 100:
        return None
    close = difflib.get_close_matches(template.lower(), names, n=1, cutoff=0.7)
    return close[0] if close else None
