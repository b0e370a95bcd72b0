"""Score a model: its loss on held-out examples, and its answers beside references; alone, or beside another model.

    tune eval OUTPUT_DIR                                 # on what the run validates on
    tune eval OUTPUT_DIR data=held_out.jsonl metrics=[exact_match,rouge_l] group_by=kind
    tune eval OUTPUT_DIR --against base                  # before and after
    tune eval checkpoints/Qwen3-0.6B data=test.jsonl metrics=number --json
    tune run --nproc_per_node 8 evaluate OUTPUT_DIR      # batches shared out among processes

Examples are read, written in their template and masked as in training. Answers go to answers.jsonl, scores to
scores.json beside it, in the run's folder, whose report.html shows them. The table alone goes to standard output.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

import tune.config
from tune import evaluation
from tune.checkpoints.run_folder import Trained, locate_trained
from tune.config import Component, instantiate
from tune.data import DataReport
from tune.datasets.documents import read_documents
from tune.errors import ConfigError
from tune.evaluation import HeldOut, Metric, Outcome, results
from tune.generation import generate_texts, load_model, load_tokenizer, stream_texts
from tune.recipes.params.evaluate import EvaluateParams
from tune.report import write_report
from tune.training import StopRequest, init_mesh
from tune.utils import expand_path, get_device, get_dtype, get_logger
from tune.utils.escape import escape_control
from tune.utils.exclusions import Choices
from tune.utils.mesh import Mesh

CHECKPOINTER = Component("tune.training.FullModelCheckpointer")
AUTO_MODEL, AUTO_TOKENIZER = Component("tune.models.auto"), Component("tune.tokenizers.auto")


@dataclass
class Scored:
    """A model, and what it has on each example, as far as that is known.

    Args:
        found: the folders that it is read from.
        model, checkpointer, tokenizer: what reads it.
        mesh: the processes, which each hold the model and share the batches; the first one writes.
        is_stopped: tells, on all of them alike, whether to end; None for one process, which Ctrl-C ends at once.
        outcomes: of the examples.
        report: what was read of the data; None for tasks.
        scores: of tasks, as the harness has them.
    """

    found: Trained
    model: Component
    checkpointer: Component
    tokenizer: Component
    mesh: Mesh
    is_stopped: Callable[[], bool] | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    report: DataReport | None = None
    scores: dict[str, dict[str, Any]] | None = None

    def open(self) -> tuple[Any, Any]:
        """Return the checkpointer and the tokenizer: it takes no time to find out that one of them is missing."""
        where: Any = {"checkpoint_dir": self.found.model, "adapter_checkpoint": self.found.adapter}
        checkpointer = instantiate(self.checkpointer, **where)
        return checkpointer, load_tokenizer(checkpointer, self.tokenizer)

    def load(self, checkpointer: Any, dtype_name: str | None) -> Any:
        """Return the model with its weights."""
        device = self.mesh.device
        # Half precision is what a GPU is built for; on most CPUs it is slower than fp32.
        dtype = get_dtype(dtype_name or ("fp32" if device.type == "cpu" else "bf16"), device)
        return load_model(checkpointer, self.model, device, dtype)

    def share(self, what: str, batches: Sequence[Any], work: Callable[[Any], Any]) -> Iterator[Any]:
        """Yield each batch with what `work` makes of it, with a bar on a terminal for as long as that takes."""
        with tqdm(total=sum(map(len, batches)), desc=what, disable=None, leave=False, file=sys.stderr) as bar:
            for batch, found in evaluation.in_rounds(batches, work, self.mesh, self.is_stopped):
                yield batch, found
                bar.update(len(batch))


def score_examples(params: EvaluateParams, scored: Scored, held_out: HeldOut, file: Path) -> None:
    """Measure a model's loss on each example, and what its answers are worth."""
    metrics = evaluation.build_metrics(params.metrics)
    checkpointer, tokenizer = scored.open()
    how: Any = {"val_split": held_out.val_split, "seed": held_out.seed, "limit": params.limit}
    documents, report = read_documents(held_out.components, tokenizer, **how)
    scored.report = report
    scored.outcomes += [
        evaluation.begin_outcome(one.item, tokenizer, one.place, one.values, params.group_by)
        for one in documents
    ]
    for each in evaluation.find_shortcomings(report):
        get_logger().warning(each)
    if metrics and not any(each.prompt_ids for each in scored.outcomes):
        raise ConfigError(
            "no example asks anything: all of its text is learnt, as bare text is, or with train_on_input. Give "
            "data with answers (data=FILE), or metrics=null for the loss alone"
        )
    model = scored.load(checkpointer, params.dtype)
    scored.mesh.from_rank_zero(partial(results.make_room, file))
    if params.compute_loss:
        items = [document.item for document in documents]

        def measure(places: list[int]) -> list[tuple[float, int]]:
            batch = [items[place] for place in places]
            return evaluation.example_losses(model, batch, padding_idx=tokenizer.pad_id)

        batches = evaluation.batches_by_length(items, params.batch_size)
        evaluation.note_losses(scored.outcomes, scored.share("loss", batches, measure))
    if metrics:
        answer(params, model, tokenizer, metrics, scored, file)


def answer(
    params: EvaluateParams,
    model: Any,
    tokenizer: Any,
    metrics: Mapping[str, Metric],
    scored: Scored,
    file: Path,
) -> None:
    """Let the model answer what is asked, batch by batch, each written down as soon as it is known."""
    size, room = params.batch_size, model.config.max_text_len
    how: dict[str, Any] = {"max_new_tokens": params.max_new_tokens, "temperature": params.temperature}
    how |= {"seed": params.seed, "stop": params.stop or (), "use_cache": params.enable_kv_cache}

    def say(batch: Sequence[Outcome]) -> list[tuple[str, int, str | None]]:
        fitting = [each.prompt_ids for each in batch if len(each.prompt_ids) < room]
        with ExitStack() as stack:
            streams = map(stack.enter_context, stream_texts(model, tokenizer, fitting, **how))
            said = iter([("".join(each).strip(), each.num_tokens, each.stop_reason) for each in streams])
        return [next(said) if len(each.prompt_ids) < room else ("", 0, "prompt_too_long") for each in batch]

    asked = [each for each in scored.outcomes if each.prompt_ids]
    batches = [asked[start : start + size] for start in range(0, len(asked), size)]
    with results.open_answers(file if scored.mesh.is_rank_zero else None) as answers:
        for batch, said in scored.share("answers", batches, say):
            for each, what in zip(batch, said, strict=True):
                each.answer, each.num_tokens, each.stop_reason = what
                if scored.mesh.is_rank_zero:
                    each.scores = evaluation.score_answer(metrics, each.answer, each.reference)
                    results.write_answer(answers, each)
    if too_long := sum(each.stop_reason == "prompt_too_long" for each in asked):
        get_logger().warning(f"{too_long:,} prompts leave no room for an answer: it counts as empty.")


def score_tasks(params: EvaluateParams, scored: Scored, file: Path) -> None:
    """Run published tasks on a model; their data, questions and scores are the harness's."""
    if find_spec("lm_eval") is None:
        raise ConfigError(
            'tasks need the lm-evaluation-harness: pip install "tune[eval]" (or pip install lm-eval)'
        )
    from tune.evaluation import harness

    tasks: Any = params.tasks
    manager = harness.find_tasks(tasks, params.include_path)
    checkpointer, tokenizer = scored.open()
    model = scored.load(checkpointer, params.dtype)

    generate = partial(generate_texts, model, tokenizer, seed=params.seed, use_cache=params.enable_kv_cache)
    processes: Any = {"mesh": scored.mesh, "is_stopped": scored.is_stopped}
    lm = harness.OurLM(model, tokenizer, generate, params.batch_size, params.max_seq_length, **processes)
    how: Any = {"limit": params.limit, "num_fewshot": params.num_fewshot, "seed": params.seed}
    how |= {"apply_chat_template": params.apply_chat_template}
    scored.scores, scored.outcomes = harness.run_tasks(lm, tasks, manager, **how)
    with results.open_answers(file if scored.mesh.is_rank_zero else None) as answers:
        for each in scored.outcomes:
            results.write_answer(answers, each)


def find_models(params: EvaluateParams, **processes: Any) -> list[Scored]:
    """Return the model that is scored, and the other one, if there is one."""
    place: Any = params.checkpointer.kwargs
    found = locate_trained(place["checkpoint_dir"], place.get("adapter_checkpoint"))
    tokenizer = evaluation.find_tokenizer(found.run, params.tokenizer)
    models = [Scored(found, params.model, params.checkpointer, tokenizer, **processes)]
    if params.against is not None:
        is_base = params.against == "base"
        other = locate_trained(evaluation.find_base(found.run) if is_base else params.against)
        # What a run began with is asked as the run asks.
        tokenizer = evaluation.find_tokenizer(found.run if is_base else other.run, AUTO_TOKENIZER)
        models.append(Scored(other, AUTO_MODEL, CHECKPOINTER, tokenizer, **processes))
    return models


def run(params: EvaluateParams) -> int:
    """Score the model, and the other one; write and show what came of it, also of a part. Return the exit code."""
    log = get_logger(params.log_level)
    with ExitStack() as stack:
        mesh = init_mesh(get_device(params.device), Choices(enable_fsdp=False))
        stack.callback(mesh.close)
        # Several processes end together, after the round that they are in.
        asked = StopRequest(mesh, "finishing what is in progress, then stopping")
        stop = stack.enter_context(asked) if mesh.world_size > 1 else None
        is_stopped = stop.agreed if stop is not None else None
        models = find_models(params, mesh=mesh, is_stopped=is_stopped)
        found, held_out, tasks = models[0].found, None, params.tasks or ()
        if not tasks:
            given = (params.dataset,) if isinstance(params.dataset, Component) else params.dataset
            held_out = HeldOut(given) if given else evaluation.find_held_out(found.run, params.data)
        what = results.name_tasks(tasks, params.include_path) if held_out is None else held_out.id
        folder = results.choose_dir(found.run, found.adapter or found.model, *what)
        folder = folder if params.output_dir is None else expand_path(params.output_dir)
        mesh.from_rank_zero(partial(results.refuse_foreign, folder / results.SCORES))
        code = 0
        try:
            for scored, file in zip(models, (results.ANSWERS, results.ANSWERS_BEFORE)):
                if held_out is None:
                    score_tasks(params, scored, folder / file)
                else:
                    score_examples(params, scored, held_out, folder / file)
        except KeyboardInterrupt:
            code = (stop.exit_code if stop is not None else 0) or 130
            models = [one for one in models if any(e.scores or e.loss is not None for e in one.outcomes)]
            log.warning("Interrupted." if models else "Interrupted before anything was scored.")
        if mesh.is_rank_zero and models:
            if len(models) == 1:
                results.make_room(folder / results.ANSWERS_BEFORE)
            show(params, folder, models, what[1], is_complete=code == 0)
        return code


def show(
    params: EvaluateParams, folder: Path, models: Sequence[Scored], data_id: str, is_complete: bool
) -> None:
    """Write scores.json and the run's page, and print the scores."""
    found, report = models[0].found, models[0].report
    after, before = models[0].outcomes, models[1].outcomes if len(models) > 1 else []
    by_group = params.group_by is not None
    summary = evaluation.summarize_groups(after, before, params.seed, by_group)
    if (scores := models[0].scores) is not None:
        summary["all"] |= {"scores": scores}
        if before:
            summary["all"] |= {"before": models[1].scores}
    notes = [*evaluation.verdicts(summary["all"]), *(evaluation.find_shortcomings(report) if report else ())]
    if before and sum(each.num_targets for each in after) != sum(each.num_targets for each in before):
        notes.append("The two tokenizers cut the text differently: their losses per token do not compare.")
    if not is_complete:
        num_done = sum(bool(each.scores) for each in after)
        notes.append(f"Interrupted: {num_done:,} of {len(after):,} examples were answered.")
    data = ", ".join(params.tasks or ()) if report is None else report.source
    result = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": str(found.adapter or found.model),
        "against": params.against,
        "data": data,
        "data_id": data_id,
        "shares": sorted(evaluation.SHARES & summary["all"]["scores"].keys()),
        "group_by": params.group_by,
        "is_complete": is_complete,
        **summary,
    }
    tables = evaluation.make_tables(result)
    text = results.write_scores(folder / results.SCORES, {**result, "tables": tables, "notes": notes})
    if params.json:
        print(text)
    else:
        number = len(after)
        print(
            f"{number:,} example{'s' * (number != 1)} of {escape_control(data)}\n\n{evaluation.draw_tables(tables)}"
        )
        print("".join(f"\n{note}" for note in notes), end="\n" * bool(notes))
    get_logger().info(f"Answers and scores: {folder}")
    if found.run is not None and folder.parent.parent == found.run:
        get_logger().info(f"Report: {write_report(found.run, picture=False)}")


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
