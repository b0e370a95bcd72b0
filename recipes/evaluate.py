"""Score a model: its loss on held-out examples, and its answers beside references; alone, or beside another model.

    tune eval OUTPUT_DIR                                 # on what the run validates on
    tune eval OUTPUT_DIR data=held_out.jsonl metrics=[exact_match,rouge_l] group_by=kind
    tune eval OUTPUT_DIR --against base                  # before and after
    tune eval checkpoints/Qwen3-0.6B data=test.jsonl metrics=number --json

Examples are read, written in their template and masked as in training. Answers go to answers.jsonl, scores to
scores.json beside it, in the run's folder, whose report.html shows them. The table alone goes to standard output.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

import tune.config
from recipes.params.evaluate import EvaluateParams
from tune import evaluation
from tune.checkpoints.run_folder import Trained, locate_trained
from tune.config import Component, import_component, instantiate
from tune.datasets.documents import read_documents
from tune.errors import ConfigError, TuneError
from tune.evaluation import Metric, Outcome
from tune.evaluation.results import (
    ANSWERS,
    ANSWERS_BEFORE,
    SCORES,
    choose_dir,
    open_answers,
    refuse_foreign,
    write_scores,
)
from tune.generation import load_model, load_tokenizer, stream_texts
from tune.report import write_report
from tune.utils import expand_path, get_device, get_dtype, get_logger

CHECKPOINTER = Component("tune.training.FullModelCheckpointer")


class Scored:
    """A model, and what it has on each example, as far as that is known.

    Args:
        params: what to measure.
        parts: the components of model, checkpointer and tokenizer.
        found: the folders they are read from.
        held_out: the examples.
    """

    def __init__(
        self,
        params: EvaluateParams,
        parts: tuple[Component, Component, Component],
        found: Trained,
        held_out: evaluation.HeldOut,
    ) -> None:
        self.params = params
        model, reader, tokenizer = parts
        checkpointer = instantiate(reader, checkpoint_dir=found.model, adapter_checkpoint=found.adapter)
        # The data first: it takes no time to find out that something is wrong with it.
        self.tokenizer = load_tokenizer(checkpointer, tokenizer)
        where: Any = {"val_split": held_out.val_split, "seed": held_out.seed, "limit": params.limit}
        self.documents, self.report = read_documents(held_out.components, self.tokenizer, **where)
        self.outcomes = [
            evaluation.begin_outcome(one.item, self.tokenizer, one.place, one.values, params.group_by)
            for one in self.documents
        ]
        device = get_device(params.device)
        # Half precision is what a GPU is built for; on most CPUs it is slower than fp32.
        dtype = get_dtype(params.dtype or ("fp32" if device.type == "cpu" else "bf16"), device)
        self.model: Any = load_model(checkpointer, model, device, dtype)

    def measure_losses(self) -> None:
        """Find the loss of each example; of some alone none is noted, for the longest are measured first."""
        found: list[tuple[int, float, int]] = []
        items = [document.item for document in self.documents]
        batches = evaluation.example_losses(
            self.model, items, batch_size=self.params.batch_size, padding_idx=self.tokenizer.pad_id
        )
        for batch in show_progress("loss", batches, len(items)):
            found += batch
        for place, loss, num_targets in found:
            self.outcomes[place].loss, self.outcomes[place].num_targets = loss, num_targets
        broken = [each for each in self.outcomes if not math.isfinite(each.loss or 0.0)]
        if broken:
            raise TuneError(
                f"the loss of {len(broken):,} of {len(items):,} examples is no number, first of {broken[0].place}: the "
                "weights are broken, or overflow in this dtype. Try dtype=fp32."
            )

    def answer(self, metrics: Mapping[str, Metric], file: IO[str]) -> None:
        """Let the model answer what is asked, batch by batch, each written down as soon as it is known."""
        asked, room = [each for each in self.outcomes if each.prompt_ids], self.model.config.max_text_len
        if not asked:
            raise ConfigError(
                "no example asks anything: all of its text is learnt, as bare text is, or with train_on_input. Give "
                "data with answers (data=FILE), or metrics=null for the loss alone"
            )
        size = self.params.batch_size
        batches = [asked[start : start + size] for start in range(0, len(asked), size)]
        for batch in show_progress("answers", batches, len(asked)):
            self._answer_batch([each for each in batch if len(each.prompt_ids) < room])
            for each in batch:
                if each.answer is None:
                    each.answer, each.stop_reason = "", "prompt_too_long"
                each.scores = evaluation.score_answer(metrics, each.answer, each.reference)
                file.write(json.dumps(each.to_json(), ensure_ascii=False, default=str) + "\n")
            file.flush()

    def _answer_batch(self, batch: Sequence[Outcome]) -> None:
        streams = stream_texts(
            self.model,
            self.tokenizer,
            [each.prompt_ids for each in batch],
            max_new_tokens=self.params.max_new_tokens,
            temperature=self.params.temperature,
            seed=self.params.seed,
            stop=self.params.stop or (),
            use_cache=self.params.enable_kv_cache,
        )
        with ExitStack() as stack:
            for stream in streams:
                stack.push(stream)
            for each, stream in zip(batch, streams, strict=True):
                each.answer = "".join(stream).strip()
                each.num_tokens, each.stop_reason = stream.num_tokens, stream.stop_reason


def show_progress(what: str, batches: Iterable[Any], total: int) -> Iterator[Any]:
    """Yield batches, with a bar on a terminal for as long as that takes."""
    with tqdm(total=total, desc=what, disable=None, leave=False, file=sys.stderr) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def build_metrics(params: EvaluateParams) -> dict[str, Metric]:
    """Return the metrics by name; of a function of one's own that is its dotted path."""
    several = (params.metrics,) if isinstance(params.metrics, Component) else params.metrics or ()
    built: dict[str, Metric] = {}
    for one in several:
        name = one.path.removeprefix("tune.evaluation.metrics.")
        built[name] = partial(import_component(one.path), **one.kwargs)
    return built


def score(
    params: EvaluateParams,
    parts: tuple[Component, Component, Component],
    found: Trained,
    held_out: evaluation.HeldOut,
    file: Path,
    scored: list[Scored],
) -> None:
    """Measure a model, and give its memory back; from the first moment on it is the last one of `scored`."""
    metrics = build_metrics(params)
    one = Scored(params, parts, found, held_out)
    scored.append(one)
    for number, what in (
        (one.report.num_lost, "is lost"),
        (one.report.num_truncated - one.report.num_lost, "may be cut"),
    ):
        if number:
            limit = one.report.max_seq_len
            get_logger().warning(
                f"The answer of {number:,} of the examples read {what}: max_seq_len is {limit}."
            )
    if params.compute_loss:
        one.measure_losses()
    if metrics:
        with open_answers(file) as answers:
            one.answer(metrics, answers)
    one.model = None
    too_long = sum(outcome.stop_reason == "prompt_too_long" for outcome in one.outcomes)
    if too_long:
        get_logger().warning(
            f"{too_long:,} prompts leave no room for an answer, which counts as an empty one."
        )


def run(params: EvaluateParams) -> int:
    """Score the model, and the other one; write and show what came of it, also of a part. Return the exit code."""
    log = get_logger(params.log_level)
    place: Any = params.checkpointer.kwargs
    found = locate_trained(place["checkpoint_dir"], place.get("adapter_checkpoint"))
    given = (params.dataset,) if isinstance(params.dataset, Component) else params.dataset
    held_out = evaluation.HeldOut(given) if given else evaluation.find_held_out(found.run, params.data)
    against = evaluation.find_base(found.run) if params.against == "base" else params.against
    other = None if against is None else locate_trained(against)
    if params.output_dir is not None:
        folder = expand_path(params.output_dir)
    else:
        folder = choose_dir(found.run, found.adapter or found.model, held_out.name)
    refuse_foreign(folder / SCORES)
    scored: list[Scored] = []
    code = 0
    try:
        tokenizer = evaluation.find_tokenizer(found.run, params.tokenizer)
        parts = params.model, params.checkpointer, tokenizer
        score(params, parts, found, held_out, folder / ANSWERS, scored)
        if other is not None:
            # What a run began with is asked as the run asks.
            run_of_other = found.run if params.against == "base" else other.run
            tokenizer = evaluation.find_tokenizer(run_of_other, Component("tune.tokenizers.auto"))
            parts = Component("tune.models.auto"), CHECKPOINTER, tokenizer
            score(params, parts, other, held_out, folder / ANSWERS_BEFORE, scored)
    except KeyboardInterrupt:
        code = 130
        scored = [one for one in scored if any(each.scores or each.loss is not None for each in one.outcomes)]
        log.warning("Interrupted." if scored else "Interrupted before anything was scored.")
        if not scored:
            return code
    after, before = scored[0].outcomes, scored[1].outcomes if len(scored) > 1 else []
    result = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": str(found.adapter or found.model),
        "against": against,
        "data": scored[0].report.source,
        "group_by": params.group_by,
        "is_complete": code == 0,
        **evaluation.summarize_groups(after, before, params.seed, params.group_by is not None),
    }
    show(params, folder, result, scored, found.run)
    return code


def show(
    params: EvaluateParams, folder: Path, result: dict[str, Any], scored: Sequence[Scored], run: Path | None
) -> None:
    """Write scores.json and the run's page, and print the scores."""
    tables = evaluation.make_tables(result)
    notes = list(evaluation.verdicts(result["all"]))
    first, *others = (sum(each.num_targets for each in one.outcomes) for one in scored)
    if any(count != first for count in others):
        notes.append("The two tokenizers cut the text differently: their losses per token do not compare.")
    num_done = sum(bool(each.scores) for each in scored[0].outcomes)
    if not result["is_complete"]:
        notes.append(f"Interrupted: {num_done:,} of {len(scored[0].outcomes):,} examples were answered.")
    result |= {"tables": tables, "notes": notes}
    text = write_scores(folder / SCORES, result)
    if params.json:
        print(text)
    else:
        number = result["all"]["num_examples"]
        print(
            f"{number:,} example{'s' * (number != 1)} of {result['data']}\n\n{evaluation.draw_tables(tables)}"
        )
        print("".join(f"\n{note}" for note in notes), end="\n" * bool(notes))
    get_logger().info(f"Answers and scores: {folder}")
    if run is not None and folder.parent.parent == run:
        get_logger().info(f"Report: {write_report(run, picture=False)}")


@tune.config.parse
def recipe_main(params: EvaluateParams) -> int:
    """Score a model; the table goes to standard output."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character shows a question mark; it must not end the run.
        sys.stdout.reconfigure(errors="replace")
    try:
        return run(params)
    except BrokenPipeError:
        # Whoever was reading has seen enough (`| head`); Python would complain when it flushes once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as the shell reports it for other commands


if __name__ == "__main__":
    sys.exit(recipe_main())
