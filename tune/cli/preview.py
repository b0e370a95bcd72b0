"""`tune preview`: the data report, and examples as the model reads them, before anything is trained.

With ``--json`` the output is one object: ``{"datasets": [...]}``, an item for each dataset of the config, with

- ``name``: where it stands in the config, such as ``dataset`` or ``dataset.1``
- ``report``: the counts of the rows read; ``is_partial``: whether rows were left unread
- ``examples``: each with ``places`` (file and line of the rows in it), ``num_cut`` (tokens beyond ``max_seq_len``, left
  out), ``tokens`` and ``labels`` (not shifted; -100 is not learnt), ``weights`` and ``input_pos`` where the dataset
  gives them, and ``pieces``
- ``pieces``: neighbours alike in all but their text, each with ``start`` and ``end`` (places of its tokens), ``text``,
  ``learnt``, ``weight`` (0 where not learnt), ``special`` and ``document``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune.cli.arguments import Command, Given, Option, UsageError
from tune.cli.catalogue import find_recipe
from tune.cli.exit_codes import EXIT_BAD_USAGE
from tune.cli.preview_html import check_html_file, html_span, write_html
from tune.cli.recipe_lookup import Target, find_target
from tune.cli.terminal import paint, report_error, say, wants_color
from tune.cli.torch_logging import importing_quietly
from tune.cli.validate import CHOICE, choose_config, choose_target, judge_stated, print_problems, resolve_for
from tune.errors import ConfigError, DataError, TuneError

if TYPE_CHECKING:
    from tune.config.component import Component
    from tune.config.resolution import Resolution
    from tune.data.preview import Paint, PreviewToken
    from tune.datasets.preview import ShownDataset

_NUM_EXAMPLES = 5
_DEFAULT_RECIPE = "full_finetune"
# What a run needs and a look at its data does not: given where a config leaves it out.
_NOT_NEEDED = {"output_dir": "output_dir=out", "optimizer.lr": "lr=1e-5"}


def run(given: Given) -> int:
    """Show what a config's datasets teach; return 0, or 2 where config or data cannot be used."""
    resolution = _resolve(given)
    if not resolution.ok:
        if "json" in given.switches:
            say(json.dumps(resolution.to_json(), indent=2) + "\n")
        else:
            print_problems(resolution)
        return EXIT_BAD_USAGE
    if "json" not in given.switches:
        print_problems(resolution)
    components = dict(_components(resolution.params, "val" in given.switches))
    name, force, with_ids = given.one("html"), "force" in given.switches, "ids" in given.switches
    html = None if name is None else check_html_file(name, force)  # before the data is read
    try:
        shown = _look(resolution.params, components, given)
        mixture = _describe_mixture(resolution.params, components, shown)
    except TuneError as error:
        report_error(str(error))
        return EXIT_BAD_USAGE
    if "json" in given.switches:
        say(json.dumps({"datasets": [item.to_json() for item in shown]}) + "\n")
    else:
        for item in shown:
            say((f"{item.name}: " if len(shown) > 1 else "") + item.report_text() + "\n")
        say(f"{mixture}\n" if mixture else "")
        if html is None:
            _print_examples(shown, with_ids)
    if html is not None:
        sections = [(item, list(format_examples(item, with_ids, html_span))) for item in shown]
        write_html(html, sections, force)
        say(f"Wrote {html}\n", sys.stderr)
    return 0


def _resolve(given: Given) -> Resolution[Any]:
    """Resolve the config and the overrides as `tune run` would, but for what a look at the data does not need.

    Raises:
        UsageError: there is no such config or recipe.
    """
    config, target, stated = _choose(given)
    resolution = resolve_for(target, config, given)
    missing = {error.path for error in resolution.errors if error.code == "missing-required"}
    if filled := [text for path, text in _NOT_NEEDED.items() if path in missing]:
        resolution = resolve_for(target, config, replace(given, overrides=[*given.overrides, *filled]))
    if stated is not None and config is not None:
        judge_stated(resolution, stated, config, target)
    return resolution


def _choose(given: Given) -> tuple[Path | None, Target, str | None]:
    """Return the config, the recipe, and what the config says about it where the recipe is a guess."""
    asked = given.one("recipe")
    if asked is None and given.operands and find_recipe(given.operands[0]) is not None:
        asked = given.operands.pop(0)  # `tune preview full_finetune`, as `tune run` has it
        given.values["recipe"] = [asked]
    if not given.operands and not given.all("config"):
        if not given.overrides:
            raise UsageError(f"which config? usage: {COMMAND.usage}")
        return None, find_target(asked or _DEFAULT_RECIPE, importing=True), None
    config, _ = choose_config(given, COMMAND)
    target, stated = choose_target(given, config)
    return config, target, stated


def _components(params: Any, validation: bool) -> Iterator[tuple[str, Component]]:
    """Yield the datasets to look at, each with where it stands in the config.

    Raises:
        UsageError: there is none.
    """
    has_own = validation and not getattr(params, "val_split", None)
    name = "dataset_val" if has_own else "dataset"
    value = getattr(params, name, None)
    if not value:
        raise UsageError(
            "there is no dataset_val to look at, and no val_split"
            if has_own
            else "this recipe reads no dataset"
        )
    if isinstance(value, (list, tuple)):
        yield from ((f"{name}.{index}", component) for index, component in enumerate(value))
    else:
        yield name, value


def _look(params: Any, components: dict[str, Component], given: Given) -> list[ShownDataset]:
    """Return what is to be shown of each dataset.

    Raises:
        TuneError: the data, or the tokenizer, cannot be used; or no row is called so.
    """
    rows = given.one("rows")
    with importing_quietly():
        from tune.datasets.preview import look_at
    from tune.utils import get_logger

    get_logger("WARNING")
    number, row = (int(rows[:9]), None) if rows is not None and rows.isdecimal() else (_NUM_EXAMPLES, rows)
    if not number:
        raise ConfigError("--rows 0 shows nothing: give how many examples to show, or which row")
    shown = look_at(
        components,
        _build_tokenizer(params),
        max_examples=number,
        row=row,
        reads_all="all" in given.switches,
        val_split=getattr(params, "val_split", None),
        seed=getattr(params, "seed", None) or 0,
        validation="val" in given.switches,
        **(params.data_settings() if hasattr(params, "data_settings") else {}),
    )
    if not shown:
        raise DataError(
            f"no row is called {row}. A row is called by its place, as messages name it (train.jsonl:17, or :17), or "
            "by what its column id holds; a number alone says how many examples to show"
        )
    return shown


def _describe_mixture(params: Any, components: dict[str, Component], shown: list[ShownDataset]) -> str:
    """Return how the datasets are mixed by their weights, where all of them have been read; else ""."""
    from tune.config.slots import WEIGHT
    from tune.data.mixture import Mixture

    given = [components[item.name].kwargs for item in shown]
    weights = [kwargs[WEIGHT] for kwargs in given if WEIGHT in kwargs]
    if len(shown) < 2 or len(weights) < len(shown) or any(item.is_partial for item in shown):
        return ""
    mixture = Mixture(tuple(item.size for item in shown), tuple(weights), params.mix_until)
    names, tokens = zip(*((item.name, item.report.num_tokens) for item in shown))
    return mixture.describe(names, tokens)


def _build_tokenizer(params: Any) -> Any:
    """Return the tokenizer of a run, by its files alone; beside them no weights need be there."""
    from tune.config.instantiate import instantiate
    from tune.errors import CheckpointError
    from tune.utils import expand_path

    checkpointer: Any = instantiate(params.checkpointer, defaults={"output_dir": params.output_dir})
    folder = expand_path(params.checkpointer.kwargs.get("checkpoint_dir") or "")
    try:
        find = getattr(checkpointer, "find_tokenizer_dir", checkpointer.find_model_dir)
        found = find()
    except CheckpointError:
        if not folder.is_dir():
            raise
        found = folder
    return instantiate(params.tokenizer, defaults={"checkpoint_dir": str(found or "")})


def _print_examples(shown: list[ShownDataset], with_ids: bool) -> None:
    has_color = wants_color(sys.stdout)
    legend = f"{paint('learnt', 'learnt')}, {paint('special token', 'reverse')}"
    say(f"\n{legend if has_color else '⟦learnt⟧, ⟨special token⟩'}, ⏎ line end\n")
    for item in shown:
        for title, text in format_examples(item, with_ids, _paint if has_color and not with_ids else None):
            say(f"\n{paint(title, 'bold')}\n{text}\n")


def format_examples(shown: ShownDataset, with_ids: bool, paint: Paint | None) -> Iterator[tuple[str, str]]:
    """Yield a title and the text of each example of a dataset: a token a line `with_ids`, else as `paint` shows it."""
    from tune.data.preview import format_example

    for number, example in enumerate(shown.examples, start=1):
        tokens = example.preview
        text = (
            _table(tokens, paint) if with_ids else format_example(tokens, example.cuts, paint, example.names)
        )
        yield f"{shown.name}, example {number}: {example.describe()}", text


def _table(tokens: list[PreviewToken], paint: Paint | None) -> str:
    """Return a line for each token: its place, id, weight where it is learnt, and text."""
    from tune.data.preview import elide, format_example

    first, left_out, last = elide(tokens)
    rows = [*enumerate(first), *enumerate(last, start=len(tokens) - len(last))]
    lines = [
        f"{place:>6} {token.token_id:>7} {f'{token.weight:g}' if token.is_learnt else '-':>6}  "
        + format_example([token], paint=paint).replace("\n", "")
        for place, token in rows
    ]
    if left_out:
        lines.insert(len(first), f"... {left_out:,} tokens are not shown ...")
    return "\n".join([f"{'place':>6} {'id':>7} {'weight':>6}  text", *lines])


def _paint(text: str, token: PreviewToken) -> str:
    text = paint(text, "learnt") if token.is_learnt else text
    return paint(text, "reverse") if token.is_special else text


COMMAND = Command(
    name="preview",
    summary="Show what the data teaches: examples as the model reads them.",
    description=(
        "Prints the data report, then examples as the model reads them: what is learnt is coloured, "
        "after its weight; special tokens are told from letters that look like them; what max_seq_len cuts off is "
        "said. It takes what `tune run` takes, reads no weights, and only as many rows as it shows: --all reads them "
        "all, so that the report is the run's.\n\n"
        "Exit code: 0, or 2 where the config is not valid or the data cannot be read."
    ),
    examples=(
        ("tune preview tiny/full_finetune", "the first examples of a config's dataset"),
        ("tune preview my.yaml dataset.source=my.jsonl --rows 20", "your own data, more of it"),
        ("tune preview my.yaml --rows my.jsonl:17 --ids", "one row, token by token"),
        ("tune preview my.yaml --all --html preview.html", "the whole report, and a page to hand on"),
        ("tune preview dataset=chat dataset.source=my.jsonl model_checkpoint=DIR", "no config needed"),
    ),
    run=run,
    operands=(
        ("[CONFIG]", "A name from `tune ls`, or a path; none for what the overrides say alone."),
        ("[KEY=VALUE ...]", "Overrides, as for `tune run`."),
    ),
    options=(
        Option(
            ("--rows", "-n"),
            f"How many examples ({_NUM_EXAMPLES}), or one row by its place or its id.",
            "N|ID",
        ),
        Option(("--val",), "Look at what is validated on."),
        Option(("--all",), "Read all rows, for the whole report."),
        Option(("--ids",), "Show each token on a line, with its id."),
        Option(("--json",), "Print all of it as JSON: tokens, labels, weights, pieces of text."),
        Option(("--html",), "Write a page that needs no network and runs no scripts.", "FILE"),
        Option(("--force", "-f"), "Overwrite a FILE that is no preview."),
        *CHOICE,
    ),
    takes_overrides=True,
)
