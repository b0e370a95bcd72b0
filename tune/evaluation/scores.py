"""What a model is worth on some examples: the means of what each of them has, beside those of another model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tune.errors import ConfigError, DataError, TuneError
from tune.evaluation.bootstrap import mean_interval, paired_difference
from tune.evaluation.questions import find_question
from tune.tokenizers import Tokenizer

__all__ = [
    "LOSS",
    "Metric",
    "Outcome",
    "add_intervals",
    "begin_outcome",
    "compare",
    "note_losses",
    "score_answer",
    "summarize",
    "summarize_groups",
]

LOSS, PERPLEXITY = "loss", "perplexity"
_ALWAYS = ("place", "prompt", "reference", "answer")
# Of two texts: an answer, and what it should have been.
Metric = Callable[[str, str], float]


@dataclass
class Outcome:
    """What became of one example.

    Args:
        place: of its row.
        group: what the column to group by holds; "" where there is none.
        values: further columns of its row.
        prompt_ids: what is asked, as the model reads it; empty where nothing is.
        prompt, reference: the same as text, and the answer it has.
        answer: what the model says; None as long as it has said nothing.
        num_tokens: of the answer.
        stop_reason: why it ended there.
        scores: by metric.
        loss: summed over its targets, in nats; None where it was not measured.
        num_targets: tokens of it that are learnt.
    """

    place: str
    group: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    prompt_ids: list[int] = field(default_factory=list, repr=False)
    prompt: str = ""
    reference: str = ""
    answer: str | None = None
    num_tokens: int = 0
    stop_reason: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    loss: float | None = None
    num_targets: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return it as a line of answers.jsonl."""
        given = asdict(replace(self, prompt_ids=[]))
        return {
            name: value for name, value in given.items() if name in _ALWAYS or value not in (None, "", {}, [])
        }


def begin_outcome(
    item: Mapping[str, Sequence[Any]],
    tokenizer: Tokenizer,
    place: str,
    values: Mapping[str, Any],
    group_by: str | None = None,
) -> Outcome:
    """Return what is known of an example before any model has seen it.

    Args:
        item: `tokens` and `labels`, of one document.
        tokenizer: the one that made it.
        place: of its row.
        values: of its row, by column.
        group_by: the column whose value is its group.

    Raises:
        ConfigError: there is no such column.
    """
    if group_by is not None and group_by not in values:
        names = ", ".join(map(str, values)) or "none that are known"
        raise ConfigError(f"group_by={group_by}: {place} has no such column; it has {names}")
    outcome = Outcome(place, "" if group_by is None else str(values[group_by]), values)
    question = find_question(item, tokenizer)
    if question is not None:
        outcome.prompt_ids, outcome.reference = question.prompt, question.reference
        outcome.prompt = tokenizer.decode(question.prompt)
    return outcome


def note_losses(
    outcomes: Sequence[Outcome], batches: Iterable[tuple[Sequence[int], Sequence[tuple[float, int]]]]
) -> None:
    """Note the loss of each example, as `example_losses` gives them; none before all are known.

    Of some alone the mean would mislead: the longest are measured first.

    Args:
        outcomes: of the examples.
        batches: places in them, each with a loss and its number of targets.

    Raises:
        TuneError: a loss is no number.
    """
    for places, losses in list(batches):
        for place, (loss, num_targets) in zip(places, losses, strict=True):
            outcomes[place].loss, outcomes[place].num_targets = loss, num_targets
    broken = [each for each in outcomes if not math.isfinite(each.loss or 0.0)]
    if broken:
        raise TuneError(
            f"the loss of {len(broken):,} of {len(outcomes):,} examples is no number, first of {broken[0].place}: the "
            "weights are broken, or overflow in this dtype. Try dtype=fp32."
        )


def score_answer(metrics: Mapping[str, Metric], answer: str, reference: str) -> dict[str, float]:
    """Return what each metric says of an answer.

    Raises:
        DataError: a metric of one's own gives no number, or fails.
    """
    scores = {}
    for name, metric in metrics.items():
        try:
            score = float(metric(answer, reference))
        except Exception as error:
            raise DataError(
                f"the metric {name} fails on the answer {answer[:80]!r} beside {reference[:80]!r}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not math.isfinite(score):
            raise DataError(f"the metric {name} is {score} for {answer[:80]!r} beside {reference[:80]!r}")
        scores[name] = score
    return scores


def summarize(outcomes: Sequence[Outcome], seed: int = 0) -> dict[str, Any]:
    """Return the means of some examples: `scores` by name, each a value and over how many examples (or targets).

    The loss is that per target, over all of them, as in training; beside it stands its perplexity. `low` and `high` are
    the ends of the interval by `mean_interval`, None where there is none.

    Args:
        outcomes: of the examples.
        seed: of the resamples.
    """
    scores: dict[str, dict[str, float | None]] = {}
    for name in _names(outcomes):
        values, weights = zip(*(_value(each, name) for each in outcomes if _has(each, name)))
        mean = sum(v * w for v, w in zip(values, weights)) / sum(weights)
        ends = mean_interval(values, weights if name == LOSS else None, seed=seed) or (None, None)
        scores[name] = {"value": mean, "count": sum(weights), "low": ends[0], "high": ends[1]}
        if name == LOSS:
            scores[PERPLEXITY] = {key: _exp(scores[name][key]) for key in ("value", "low", "high")}
            scores[PERPLEXITY]["count"] = sum(weights)
    return {"num_examples": len(outcomes), "scores": scores}


def add_intervals(scores: Mapping[str, dict[str, Any]], outcomes: Sequence[Outcome], seed: int) -> None:
    """Give each score that is the mean of its examples' the ends of its interval, as `summarize` does."""
    for name, score in scores.items():
        values = [each.scores[name] for each in outcomes if name in each.scores]
        is_mean = values and math.isclose(
            sum(values) / len(values), score["value"], rel_tol=1e-9, abs_tol=1e-12
        )
        ends = mean_interval(values, seed=seed) if is_mean else None
        score["low"], score["high"] = ends or (None, None)


def summarize_groups(
    after: Sequence[Outcome], before: Sequence[Outcome], seed: int, by_group: bool
) -> dict[str, Any]:
    """Return `all` and `groups` by name: each what `summarize` says of a model; with another one's scores as `before`.

    Args:
        after: of the model.
        before: of the other one; empty where there is none.
        seed: of the resamples, see `compare`.
        by_group: whether there are groups.
    """

    def of(group: str | None) -> dict[str, Any]:
        one, other = ([each for each in both if group in (None, each.group)] for both in (after, before))
        summary = summarize(one, seed)
        if other:
            summary |= {"before": summarize(other, seed)["scores"], "differences": compare(other, one, seed)}
        return summary

    groups = sorted({each.group for each in after}) if by_group else []
    return {"all": of(None), "groups": {group: of(group) for group in groups}}


def compare(before: Sequence[Outcome], after: Sequence[Outcome], seed: int) -> dict[str, dict[str, Any]]:
    """Return, by metric, how the same examples fare with two models, see `paired_difference`.

    Examples are paired by the place of their row; of one with several by their order there. Those that only one of the
    models has, since its tokenizer makes a row longer, take no part.
    """
    firsts, seconds = _by_place(before), _by_place(after)
    pairs = [(firsts[place], second) for place, second in seconds.items() if place in firsts]
    found = {}
    for name in [name for name in _names(after) if name in _names(before)]:
        both = [pair for pair in pairs if all(_has(each, name) for each in pair)]
        if not both:
            continue
        one, one_weights = zip(*(_value(first, name) for first, _ in both))
        other, other_weights = zip(*(_value(second, name) for _, second in both))
        difference = paired_difference(
            one, other, one_weights, other_weights, lower_is_better=name == LOSS, seed=seed
        )
        found[name] = {"num_pairs": len(both), **asdict(difference), "is_clear": difference.is_clear}
    return found


def _by_place(outcomes: Iterable[Outcome]) -> dict[tuple[str, int], Outcome]:
    seen: Counter[str] = Counter()
    found = {}
    for outcome in outcomes:
        found[outcome.place, seen[outcome.place]] = outcome
        seen[outcome.place] += 1
    return found


def _names(outcomes: Iterable[Outcome]) -> list[str]:
    """Return what was measured, the loss first."""
    names = dict.fromkeys(name for each in outcomes for name in each.scores)
    return [*([LOSS] if any(_has(each, LOSS) for each in outcomes) else []), *names]


def _has(outcome: Outcome, name: str) -> bool:
    return (outcome.loss is not None and outcome.num_targets > 0) if name == LOSS else name in outcome.scores


def _exp(value: float | None) -> float | None:
    return math.exp(value) if value is not None and value < 709 else None


def _value(outcome: Outcome, name: str) -> tuple[float, int]:
    """Return what an example has, and how much it counts."""
    if name != LOSS:
        return outcome.scores[name], 1
    assert outcome.loss is not None
    return outcome.loss / outcome.num_targets, outcome.num_targets
