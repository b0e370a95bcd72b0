"""Published tasks, as the lm-evaluation-harness asks and scores them, with a model of ours to answer.

This module needs the package `lm-eval`; import it where tasks are asked for.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from typing import Any, TypeVar

import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tune.errors import ConfigError, TokenizerError, TuneError, first_line
from tune.evaluation.harness_results import read_results
from tune.evaluation.rounds import in_rounds
from tune.evaluation.scores import Outcome, add_intervals
from tune.modules import TransformerDecoder
from tune.tokenizers import Tokenizer
from tune.utils.lost_connection import is_lost_connection
from tune.utils.mesh import Mesh

__all__ = ["OurLM", "find_tasks", "run_tasks"]

# Of token ids, with `max_new_tokens`, `stop`, `temperature`, `top_k` and `top_p`: the texts that go on from them.
Generate = Callable[..., list[str]]
R = TypeVar("R")
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
        mesh: processes that each hold the model, and are asked the same: batches are shared out among them. The harness
            need not know of it.
        is_stopped: tells, on all processes alike, whether to end.
    """

    def __init__(
        self,
        model: TransformerDecoder,
        tokenizer: Tokenizer,
        generate: Generate,
        batch_size: int,
        max_length: int | None = None,
        mesh: Mesh | None = None,
        is_stopped: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.generate = model, tokenizer, generate
        self.batch_size = batch_size
        self._mesh, self._is_stopped = mesh or Mesh(), is_stopped
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

    def _in_batches(
        self, places: Sequence[int], content: Callable[[int], Any], work: Callable[[Sequence[int]], list[R]]
    ) -> Iterator[tuple[int, R]]:
        """Yield each place with what `work` makes of it; `content` tells what is asked there, the same everywhere."""
        asked = hashlib.blake2b(repr([content(place) for place in places]).encode()).digest()
        if len(set(self._mesh.gather_to_all(asked))) > 1:
            raise TuneError("a task asks each process for something else: run it in one process")
        starts = range(0, len(places), self.batch_size)
        batches = [places[start : start + self.batch_size] for start in starts]
        for batch, found in in_rounds(batches, work, self._mesh, self._is_stopped):
            yield from zip(batch, found, strict=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation after its context, and whether greedy decoding says it."""
        order = sorted(
            range(len(requests)), key=lambda place: -len(requests[place][1]) - len(requests[place][2])
        )
        work = lambda batch: self._score([requests[place][1:] for place in batch])  # noqa: E731
        found = dict(self._in_batches(order, lambda place: requests[place][1:], work))
        return [found[place] for place in range(len(requests))]

    @torch.no_grad()
    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        texts = [(context + wanted)[-(self.max_length + 1) :][:-1] for context, wanted in pairs]
        tokens = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)  # [b, s]
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text)] = torch.tensor(text)
        hidden = self.model.hidden(tokens.to(self._device))  # [b, s, d]
        found = []
        for (_, continuation), text, row in zip(pairs, texts, hidden, strict=True):
            wanted = torch.tensor(continuation, device=self._device)  # [t]
            # Row by row: all logits of a batch need not stand at once.
            logits = self.model.unembed(row[None, len(text) - len(wanted) : len(text)])[0].float()  # [t, v]
            chosen = logits.log_softmax(-1).gather(-1, wanted[:, None])  # [t, 1]
            found.append((float(chosen.sum()), bool((logits.argmax(-1) == wanted).all())))
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
            how |= {"max_new_tokens": settings["max_gen_toks"]}
            how |= {"stop": [text for text in settings["until"] if text]}
            work = partial(self._answer, prompts, how)
            for place, text in self._in_batches(order, prompts.__getitem__, work):
                found[place] = text
        return found

    def _answer(
        self, prompts: Mapping[int, list[int]], how: Mapping[str, Any], batch: Sequence[int]
    ) -> list[str]:
        return self.generate([prompts[place] for place in batch], **how)

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
        if is_lost_connection(str(error)):
            raise
        raise TuneError(
            f"the lm-evaluation-harness cannot run {', '.join(tasks)}: {type(error).__name__}: {first_line(error)}. "
            "Most tasks fetch their data from the hub"
        ) from error
    if found is None:  # in each machine's first process alone the harness sums up
        return {}, []
    scores, outcomes = read_results(found)
    add_intervals(scores, outcomes, seed)
    return scores, outcomes
