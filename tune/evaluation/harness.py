"""Published tasks, as the lm-evaluation-harness asks and scores them, with a model of ours to answer.

This module needs the package `lm-eval`; import it where tasks are asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tune.errors import ConfigError, TokenizerError, TuneError, first_line
from tune.evaluation.scores import Outcome
from tune.modules import TransformerDecoder
from tune.tokenizers import Tokenizer

__all__ = ["OurLM", "find_tasks", "run_tasks"]

# Of token ids, with `max_new_tokens`, `stop`, `temperature`, `top_k` and `top_p`: the texts that go on from them.
Generate = Callable[..., list[str]]
_SAMPLING = ("temperature", "top_k", "top_p")
_IGNORED = ("do_sample", "until", "max_gen_toks")
_MAX_GEN_TOKS = 256  # the harness's, where a task does not say


class OurLM(TemplateLM):  # type: ignore[misc]  # the package is untyped
    """A decoder and its tokenizer as the harness calls them; its numbers are those of its own class `hf`.

    Args:
        model: in eval mode.
        tokenizer: of the model.
        generate: continues prompts greedily, or as it is told.
        batch_size: sequences that go through the model together.
        max_length: tokens of the longest sequence; what is longer loses its beginning. None: the model's.
    """

    def __init__(
        self,
        model: TransformerDecoder,
        tokenizer: Tokenizer,
        generate: Generate,
        batch_size: int,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.generate = model, tokenizer, generate
        self.batch_size = batch_size
        self.max_length = min(max_length or model.config.max_seq_len, model.config.max_seq_len)
        self._device = next(model.parameters()).device

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        bos = self.tokenizer.bos_id
        return self.tokenizer.eos_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's caches, of which we use none."""
        return "tune"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text; special tokens written out in it, as a chat template does, are meant as such."""
        ids = self.tokenizer.encode(
            string, add_bos=add_special_tokens is not False, add_eos=False, parse_special=True
        )
        bos = list(self.tokenizer.bos_ids)
        # A text that begins with it already gets no second one.
        doubled = add_special_tokens is None and bos and ids[: 2 * len(bos)] == bos * 2
        return ids[len(bos) :] if doubled else ids

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation after its context, and whether greedy decoding says it."""
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        order = sorted(
            range(len(requests)), key=lambda place: -len(requests[place][1]) - len(requests[place][2])
        )
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            texts = [
                (requests[place][1] + requests[place][2])[-(self.max_length + 1) :][:-1] for place in places
            ]
            tokens = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)  # [b, s]
            for row, text in zip(tokens, texts, strict=True):
                row[: len(text)] = torch.tensor(text)
            hidden = self.model.hidden(tokens.to(self._device))  # [b, s, d]
            for place, text, row in zip(places, texts, hidden, strict=True):
                wanted = torch.tensor(requests[place][2], device=self._device)  # [t]
                # Row by row: all logits of a batch need not stand at once.
                logits = self.model.unembed(row[None, len(text) - len(wanted) : len(text)])[
                    0
                ].float()  # [t, v]
                chosen = logits.log_softmax(-1).gather(-1, wanted[:, None])  # [t, 1]
                found[place] = float(chosen.sum()), bool((logits.argmax(-1) == wanted).all())
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text as a whole, long ones window by window."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        counts = []
        for request in requests:
            pairs = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [(None, *make_disjoint_window(pair)) for pair in pairs]
            windows += own
            counts.append(len(own))
        values = iter(self._loglikelihood_tokens(windows))
        return [sum(next(values)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the model goes on to say after each context, until one of the request's texts."""
        found = [""] * len(requests)
        by_settings: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            by_settings.setdefault(repr(request.args[1]), []).append(place)
        for places in by_settings.values():
            settings = normalize_gen_kwargs(requests[places[0]].args[1], _MAX_GEN_TOKS)
            room = self.max_length - settings["max_gen_toks"]
            if room < 1:
                raise ConfigError(
                    f"the task asks for {settings['max_gen_toks']} tokens, and the model's longest sequence has "
                    f"{self.max_length}"
                )
            if unknown := sorted(settings.keys() - {*_SAMPLING, *_IGNORED}):
                raise ConfigError(f"the task samples with {', '.join(unknown)}, which tune does not know")
            prompts = {place: self.tok_encode(requests[place].args[0])[-room:] for place in places}
            order = sorted(places, key=lambda place: -len(prompts[place]))
            how = {name: settings[name] for name in _SAMPLING if settings.get(name) is not None}
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                texts = self.generate(
                    [prompts[place] for place in batch],
                    max_new_tokens=settings["max_gen_toks"],
                    stop=[text for text in settings["until"] if text],
                    **how,
                )
                for place, text in zip(batch, texts, strict=True):
                    found[place] = text
        return found

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as text in the tokenizer's template."""
        if not add_generation_prompt:
            raise ConfigError(
                "the task begins answers itself, which is not to be had in a chat template here"
            )
        written = self.tokenizer.apply_chat_template(chat_history, add_generation_prompt=True, tokenize=False)
        return str(written)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the source of the template, which the harness notes down."""
        template = self.tokenizer.chat_template
        if template is None:
            raise TokenizerError("the tokenizer has no chat template: set apply_chat_template=false")
        return template.source


def find_tasks(tasks: Sequence[str], include_path: str | None) -> Any:
    """Return what knows the tasks.

    Raises:
        ConfigError: there is no task of one of the names.
    """
    # Nothing is to be read from the hub but what the tasks name.
    if include_path is not None:
        own = TaskManager(include_path=include_path, include_defaults=False)
        if set(tasks) <= set(own.all_subtasks):
            return own  # the harness's own files are thousands, and take seconds to look through
    manager = TaskManager(include_path=include_path)
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise ConfigError(
            f"the lm-evaluation-harness has no task {', '.join(unknown)}: `lm-eval ls tasks` lists them"
        )
    return manager


def run_tasks(
    lm: OurLM,
    tasks: Sequence[str],
    manager: Any,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    seed: int = 1234,
) -> tuple[dict[str, dict[str, Any]], list[Outcome]]:
    """Return the scores of some tasks, by `task/metric`; and what became of each of their documents.

    Args:
        lm: the model.
        tasks: names, also of groups.
        manager: from `find_tasks`.
        limit: documents of each task at most.
        num_fewshot: examples before each question; None: as the task says.
        apply_chat_template: write questions in the tokenizer's chat template.
        seed: of the few examples and of whatever else the harness draws.

    Raises:
        TuneError: a task's data cannot be read, or a task fails.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with redirect_stdout(sys.stderr):  # ours is for the scores
            found = simple_evaluate(
                model=lm,
                tasks=list(tasks),
                num_fewshot=num_fewshot,
                limit=limit,
                apply_chat_template=apply_chat_template,
                task_manager=manager,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
                bootstrap_iters=1000,
            )
    except TuneError:
        raise
    except Exception as error:
        raise TuneError(
            f"the lm-evaluation-harness cannot run {', '.join(tasks)}: {type(error).__name__}: {first_line(error)}. "
            "Most tasks fetch their data from the hub"
        ) from error
    scores: dict[str, dict[str, Any]] = {}
    for task, results in found["results"].items():
        for key, value in results.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            name = f"{task}/{metric}" if kind == "none" else f"{task}/{metric} ({kind})"
            spread = results.get(f"{metric}_stderr,{kind}")
            scores[name] = {"value": float(value), "count": _count(found, task)}
            if isinstance(spread, float):
                scores[name]["stderr"] = spread
    return scores, [
        _outcome(task, sample) for task, samples in found["samples"].items() for sample in samples
    ]


def _count(found: Mapping[str, Any], task: str) -> int:
    """Return the documents of a task; of a group those of all its tasks."""
    members = found.get("group_subtasks", {}).get(task) or [task]
    return sum(found["n-samples"][each]["effective"] for each in members if each in found["n-samples"])


def _outcome(task: str, sample: Mapping[str, Any]) -> Outcome:
    kind = sample.get("filter", "none")
    end = "" if kind == "none" else f" ({kind})"
    names = [name for name in sample.get("metrics", ()) if isinstance(sample.get(name), (int, float))]
    asked = sample["arguments"][0][0] if sample.get("arguments") else ""
    return Outcome(
        f"{task}:{sample['doc_id']}{end}",
        prompt=asked if isinstance(asked, str) else "",
        reference=str(sample.get("target", "")),
        answer=str(sample.get("filtered_resps", "")),
        scores={f"{task}/{name}{end}": float(sample[name]) for name in names},
    )
