"""The figures of an evaluation as tables of text: for a terminal, and for whoever reads scores.json to show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

from tune.evaluation import metrics
from tune.evaluation.scores import LOSS, PERPLEXITY
from tune.utils.escape import escape_control

__all__ = ["SHARES", "Table", "draw_tables", "make_tables", "verdicts"]

SHARES = frozenset(metrics.__all__)
_MAX_GROUPS = 100
_MAX_WIDTH = 40


class Table(TypedDict):
    """Rows of text under their headings; the first column holds names, the others figures."""

    title: str
    head: list[str]
    rows: list[list[str]]


def make_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return what is worth seeing of an evaluation: the scores, beside those of another model if there are any; groups.

    Args:
        result: `all`, and `groups` by name, each a summary with `scores`; where there is another model, with `before`,
            the scores of that, and `differences`. `group_by` names the column.
    """
    names = list(result["all"]["scores"])
    tables = [
        _comparison(result["all"], names) if "before" in result["all"] else _scores(result["all"], names)
    ]
    groups: Mapping[str, Any] = result.get("groups") or {}
    if groups:
        shown = [*groups.items()][:_MAX_GROUPS]
        rows = [[name, f"{each['num_examples']:,}", *_cells(each, names)] for name, each in shown]
        more = f", the first {_MAX_GROUPS} of {len(groups):,}" if len(groups) > _MAX_GROUPS else ""
        head = [str(result.get("group_by") or "group"), "examples", *map(_title, names)]
        tables.append(Table(title=f"By {head[0]}{more}", head=head, rows=rows))
    return tables


def verdicts(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each score whose difference may be chance alone."""
    for name, each in summary.get("differences", {}).items():
        if not each["is_clear"]:
            number = each["num_pairs"]
            examples = "1 example does" if number == 1 else f"{number:,} examples do"
            why = "it has no interval" if number == 1 else "the interval contains zero"
            yield f"{_title(name)}: {why}, so {examples} not tell which model is better."


def draw_tables(tables: Sequence[Table]) -> str:
    """Return tables as plain text, columns side by side; what comes from outside cannot disturb a terminal."""
    return "\n\n".join("\n".join(_draw(table)) for table in tables)


def _scores(summary: Mapping[str, Any], names: Sequence[str]) -> Table:
    scores = summary["scores"]
    rows = [
        [
            _title(name),
            _figure(name, scores[name]["value"]),
            _interval(name, scores[name]),
            _basis(name, scores[name]),
        ]
        for name in names
    ]
    return Table(title="", head=["", "score", "95% interval", "over"], rows=rows)


def _comparison(summary: Mapping[str, Any], names: Sequence[str]) -> Table:
    rows = []
    for name in names:
        before = summary["before"].get(name, {}).get("value")
        found = summary["differences"].get(name)
        cells = [_title(name), _figure(name, before), _figure(name, summary["scores"][name]["value"])]
        if found is None:
            cells += [""] * 5
        else:
            ends = (_signed(name, found[end]) for end in ("low", "high"))
            cells += [
                _signed(name, found["difference"]),
                " to ".join(ends) if found["num_pairs"] > 1 else "-",
            ]
            cells += [f"{found[count]:,}" for count in ("wins", "losses", "ties")]
        rows.append(cells)
    head = ["", "before", "after", "difference", "95% interval", "better", "worse", "same"]
    return Table(title="", head=head, rows=rows)


def _cells(summary: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        after = _figure(name, summary["scores"].get(name, {}).get("value"))
        if "before" in summary:
            after = f"{_figure(name, summary['before'].get(name, {}).get('value'))} -> {after}"
        yield after


def _title(name: str) -> str:
    return name if "/" in name else name.rpartition(".")[2].replace("_", " ")


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if name in SHARES else f"{value:,.4g}" if name == PERPLEXITY else f"{value:.4f}"


def _interval(name: str, score: Mapping[str, Any]) -> str:
    if score.get("low") is None or score.get("high") is None:
        return "-"
    return f"{_figure(name, score['low'])} to {_figure(name, score['high'])}"


def _signed(name: str, value: float) -> str:
    return f"{value:+.1%}" if name in SHARES else f"{value:+.4f}"


def _basis(name: str, score: Mapping[str, Any]) -> str:
    """Return over how much a score is the mean, and its standard error where that is known."""
    what = "token" if name in (LOSS, PERPLEXITY) else "answer"
    error = f", standard error {score['stderr']:.4f}" if "stderr" in score else ""
    return f"{score['count']:,} {what}{'s' * (score['count'] != 1)}{error}"


def _draw(table: Table) -> Iterator[str]:
    rows = [[escape_control(cell)[:_MAX_WIDTH] for cell in row] for row in (table["head"], *table["rows"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if table["title"]:
        yield escape_control(table["title"])
    for row in rows:
        first, *others = (
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        )
        yield "   ".join([f"  {first}", *others]).rstrip()
