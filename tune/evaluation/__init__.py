"""What a model is worth: its loss on held-out examples, and its answers beside references; beside another model's."""

from __future__ import annotations

from tune.evaluation.answer_scores import AnswerScores, build_metrics
from tune.evaluation.bootstrap import Difference, mean_interval, paired_difference
from tune.evaluation.held_out_loss import batches_by_length, example_losses
from tune.evaluation.questions import Question, find_question
from tune.evaluation.rounds import in_rounds
from tune.evaluation.run_data import HeldOut, find_base, find_held_out, find_shortcomings, find_tokenizer
from tune.evaluation.scores import (
    Metric,
    Outcome,
    begin_outcome,
    compare,
    note_losses,
    score_answer,
    summarize,
    summarize_groups,
)
from tune.evaluation.tables import SHARES, draw_tables, make_tables, verdicts

__all__ = [
    "SHARES",
    "AnswerScores",
    "Difference",
    "HeldOut",
    "Metric",
    "Outcome",
    "Question",
    "batches_by_length",
    "begin_outcome",
    "build_metrics",
    "compare",
    "draw_tables",
    "example_losses",
    "find_base",
    "find_held_out",
    "find_question",
    "find_shortcomings",
    "find_tokenizer",
    "in_rounds",
    "make_tables",
    "mean_interval",
    "note_losses",
    "paired_difference",
    "score_answer",
    "summarize",
    "summarize_groups",
    "verdicts",
]
