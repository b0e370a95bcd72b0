"""What datasets must be to each other and to a recipe, as far as a configuration alone can tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tune.config.component import Component
from tune.config.diagnostics import Diagnostic, problem, shorten
from tune.config.slots import SHUFFLE_BUFFER, STREAMING, WEIGHT
from tune.config.suggestions import nearest
from tune.errors import ConfigError
from tune.recipes.params.limits import IGNORE_INDEX
from tune.utils.splits import parse_split

_TEMPLATE_FILES = (".jinja", ".jinja2", ".j2")
PREFERENCES = (
    "preference_dataset",
    "unpaired_dataset",
    "hh_rlhf_helpful_dataset",
    "stack_exchange_paired_dataset",
)


def each_dataset(**fields: Component | Sequence[Component] | None) -> Iterator[tuple[str, Component]]:
    """Yield each dataset of some fields, with the place where it stands: a field, or a number in its list."""
    for name, given in fields.items():
        if isinstance(given, Component):
            yield name, given
        for index, one in enumerate(() if given is None or isinstance(given, Component) else given):
            yield f"{name}.{index}", one


def check_datasets(**fields: Component | Sequence[Component] | None) -> Iterator[Diagnostic]:
    """Yield the prompt templates and splits among the arguments of our datasets that there cannot be."""
    for name, one in each_dataset(**fields):
        if one.path.startswith("tune."):
            yield from check_template(f"{name}.prompt_template", one.kwargs.get("prompt_template"))
            yield from _check_source(name, one)


def _check_source(name: str, dataset: Component) -> Iterator[Diagnostic]:
    split, source = dataset.kwargs.get("split"), dataset.kwargs.get("source")
    if isinstance(split, str):
        try:
            parse_split(split)
        except ConfigError:
            yield problem(
                f"is {split!r}; write a name, or a name with a range: train, train[:500], train[90%:]",
                (f"{name}.split",),
            )
    if source == "":
        yield problem("is empty: give a local file, a folder, or a name on the hub", (f"{name}.source",))


def check_template(name: str, template: Any) -> Iterator[Diagnostic]:
    """Yield why `template` is none; whether a file is there is not a matter of the configuration."""
    is_file = isinstance(template, str) and template.endswith(_TEMPLATE_FILES)
    if is_file or not isinstance(template, (str, Mapping)):
        return
    # the names live there, and it imports no torch; most configurations name none
    from tune.tokenizers.templates import get_prompt_template, template_names

    try:
        get_prompt_template(template)
    except ConfigError as error:
        yield problem(
            f"is no template: {shorten(str(error), 400)}",
            (name,),
            suggestion=nearest(template, template_names()) if isinstance(template, str) else None,
        )


def check_mixing(datasets: Component | Sequence[Component], mix_until: str) -> Iterator[Diagnostic]:
    """Yield why datasets cannot be mixed by their weights, or a setting of the mixture has no effect."""
    several = datasets if isinstance(datasets, (list, tuple)) else ()
    bare = [f"dataset.{index}" for index, component in enumerate(several) if WEIGHT not in component.kwargs]
    if 0 < len(bare) < len(several):
        yield problem(
            f"has no {WEIGHT}, and others of the list have one: give one to each of them, or to none",
            (bare[0],),
        )
    if mix_until != "first_exhausted" and (not several or len(bare) == len(several)):
        yield problem(
            f"has no effect: it is for a list of datasets, each with a {WEIGHT}", ("mix_until", "dataset")
        )


def check_answers(**fields: Component | Sequence[Component] | None) -> Iterator[Diagnostic]:
    """Yield which datasets of ours hold preferences, from which no answers are to be learnt."""
    for where, one in each_dataset(**fields):
        builder = one.path.rpartition(".")[2]
        if one.path.startswith("tune.datasets.") and builder in PREFERENCES:
            yield problem(
                f"is {builder}, which gives bad answers beside good ones: use the recipe preference_finetune",
                (where,),
            )


def check_streaming(
    datasets: Component | Sequence[Component],
    dataset_val: Component | None,
    max_steps: int | None,
    val_split: float | None,
) -> Iterator[Diagnostic]:
    """Yield what data that is streamed lacks, or cannot be."""
    several = dict(each_dataset(dataset=datasets))
    streamed = [name for name, one in several.items() if one.kwargs.get(STREAMING) is True]
    if streamed and len(streamed) < len(several):
        lacking = next(name for name in several if name not in streamed)
        yield problem(
            "must be streamed, as others of the list are, or none of them", (f"{lacking}.{STREAMING}",)
        )
    elif len(streamed) > 1:
        for name, one in several.items():
            if WEIGHT not in one.kwargs:
                yield problem(
                    "is needed: a stream has no end after which the next could begin", (f"{name}.{WEIGHT}",)
                )
    if streamed and max_steps is None:
        yield problem(
            "is required: streamed data has no known end", ("max_steps", f"{streamed[0]}.{STREAMING}")
        )
    if streamed and val_split is not None:
        yield problem(
            "needs all rows, and streamed data is never read whole: name other data in dataset_val",
            ("val_split", f"{streamed[0]}.{STREAMING}"),
        )
    if dataset_val is not None and dataset_val.kwargs.get(STREAMING) is True:
        yield problem(
            "must be false: validation reads its data to the end; dataset_val.limit takes a part of it",
            (f"dataset_val.{STREAMING}",),
        )
    for name, one in {**several, **({"dataset_val": dataset_val} if dataset_val else {})}.items():
        if SHUFFLE_BUFFER in one.kwargs and one.kwargs.get(STREAMING) is not True:
            yield problem(
                f"has no effect: it is for data that is streamed ({name}.{STREAMING}=true)",
                (f"{name}.{SHUFFLE_BUFFER}",),
            )


def check_val_split(val_split: float | None, dataset_val: Component | None) -> Iterator[Diagnostic]:
    """Yield why no part of the training data can be set aside for validation."""
    if val_split is None:
        return
    if dataset_val is not None:
        yield problem(
            "sets a part of dataset aside for validation, and dataset_val names other data: keep one of the two",
            ("val_split", "dataset_val"),
        )
    if val_split >= 1 and val_split != int(val_split):
        yield problem(
            f"must be a share below 1, or a whole number of examples, not {val_split:g}", ("val_split",)
        )


def check_collation(collate_fn: Component) -> Iterator[Diagnostic]:
    """Yield a label of padding that would be learnt."""
    label = collate_fn.kwargs.get("ignore_idx", IGNORE_INDEX)
    if label != IGNORE_INDEX and collate_fn.path.startswith("tune."):
        yield problem(
            f"must be {IGNORE_INDEX}, not {label}: padding would be learnt; remove it",
            ("collate_fn.ignore_idx",),
            suggestion=str(IGNORE_INDEX),
        )
