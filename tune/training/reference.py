"""The model as it was before training, which preference losses compare with."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tune.checkpoints import load_adapter
from tune.config.component import Component
from tune.config.instantiate import instantiate
from tune.data import shift_labels
from tune.data.cache import open_cache
from tune.errors import ConfigError
from tune.modules import TransformerDecoder
from tune.modules.loss import AnswerLogProbs, PreferenceLoss, answer_log_probs
from tune.modules.peft import FrozenLinear, adapter_parameters, has_token_rows, reset_adapters
from tune.modules.peft.torchtune_functions import disable_adapter
from tune.training.batches import NUM_TARGETS, NUM_TEXT_TARGETS, to_device
from tune.training.distributed.sharded_model import reshard
from tune.training.precision import Precision
from tune.training.precomputed import cached_log_probs
from tune.training.saving.fingerprint import hash_dataset, hash_weight_files
from tune.utils.mesh import Mesh
from tune.utils.sharding import local_part

__all__ = ["Reference"]


class Reference:
    """Log-probabilities of answers under the model as it was before training.

    Beside adapters it is the model itself: with its adapters switched off where they begin anew, and with those it
    began with where they were trained before. Where all weights are trained it is a frozen copy, sharded as they are.
    Log-probabilities that a batch brings along are taken as they are, and then no copy is needed.

    Args:
        model: on the meta device, with its adapters; before it is set up to be recomputed, compiled or sharded.
        loss_fn: says whether it compares with a reference at all.
        precomputed: whether batches bring the log-probabilities along.
    """

    def __init__(self, model: TransformerDecoder, loss_fn: PreferenceLoss, precomputed: bool = False) -> None:
        self._model = model
        self._needed = loss_fn.needs_reference
        self._copy: TransformerDecoder | None = None
        self._first: dict[str, Tensor] = {}
        if self._needed and not precomputed and not adapter_parameters(model):
            self._copy = copy.deepcopy(model).requires_grad_(False).eval()

    def models(self) -> list[TransformerDecoder]:
        """Return the model, and the frozen copy of it where there is one: both are set up alike."""
        return [self._model, *([] if self._copy is None else [self._copy])]

    def blocks(self) -> list[nn.Module]:
        """Return the blocks of these models."""
        return [block for model in self.models() for block in model.layers]

    def load(self, checkpointer: Component, device: torch.device) -> None:
        """Fill the copy, if there is one, from the checkpoint that a config names."""
        if self._copy is not None:
            reader: Any = instantiate(checkpointer, defaults={"output_dir": ""})
            reader.load_into(self._copy, reader.find_model_dir(), device=device)

    def precompute(
        self,
        checkpointer: Component,
        loaders: Sequence[Any],
        precision: Precision,
        mesh: Mesh,
        cache_dir: str | None,
    ) -> None:
        """Give each example of some loaders the log-probabilities of its answers, once and for all.

        The model is filled with the reference's weights where they have to be computed. They are kept in the cache of
        the tokenized data, by the weights, the data and the precision.

        Args:
            checkpointer: reads the reference's weights.
            loaders: from `build_loader`.
            precision: of the run.
            mesh: the processes of the run.
            cache_dir: as `open_cache` takes it.

        Raises:
            ConfigError: beside new adapters rows of new tokens are trained, too, so that the reference is no base.
        """
        if not self._needed:
            return
        if has_token_rows(self._model):
            raise ConfigError(
                "precompute_reference: beside the adapters rows of new tokens are trained, which the reference has as "
                "they are at first; set it to false"
            )
        reader: Any = instantiate(checkpointer, defaults={"output_dir": ""})
        folder = reader.find_model_dir()
        model = self._model
        # 4-bit weights are there once they are loaded, and what is computed is looked for before: which are to be.
        quantized = [
            name for name, m in model.named_modules() if isinstance(m, FrozenLinear) and m.quantize_base
        ]

        def load() -> None:
            reader.load_into(model, folder, device=mesh.device)

        def compute(batch: Mapping[str, Tensor]) -> Tensor:
            with precision.autocast(), self._as_before():
                moved = to_device(batch, mesh.device)
                return log_probs_of_rows(model, moved, slice(None), 2 * len(batch["verdicts"])).sums

        cache = open_cache(cache_dir)
        for loader in loaders:
            about = mesh.from_rank_zero(partial(_describe, folder, loader.examples))
            facts = f"{about}|{precision}|{model.config}|{quantized}"
            loader.examples.reference = cached_log_probs(loader, facts, compute, load, cache, mesh)
        reshard(model)  # what is gathered is neither to be filled nor to be stepped

    @torch.no_grad()
    def load_adapters(self, first: Path | None, saved: Path | None, base: Path) -> None:
        """Give the model its adapters, and note what they were at first, where that is more than nothing.

        Args:
            first: the adapter that this run goes on from; None: new ones.
            saved: what a saved step of this run has learnt.
            base: where the model was read from.
        """
        reset_adapters(self._model, torch.float32)
        if first is not None:
            load_adapter(self._model, first, base=base)
        if self._needed and (first is not None or has_token_rows(self._model)):
            self._first = {
                name: local_part(weight).clone() for name, weight in adapter_parameters(self._model).items()
            }
        if saved is not None:
            load_adapter(self._model, saved, base=base)

    def log_probs(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Return the summed log-probability of every answer of a batch, [2 n] fp32; None where the loss needs none."""
        if not self._needed:
            return None
        if "reference" in batch:
            return batch["reference"]
        with torch.no_grad(), self._as_before() as model:
            num_answers = 2 * len(batch["verdicts"])
            return log_probs_of_rows(model, batch, slice(None), num_answers).sums

    @contextmanager
    def _as_before(self) -> Iterator[TransformerDecoder]:
        if self._copy is not None:
            yield self._copy
            return
        model, was_training = self._model, self._model.training
        model.eval()  # nothing is dropped of the reference
        try:
            with self._first_adapters() if self._first else disable_adapter(model):
                yield model
        finally:
            model.train(was_training)

    @contextmanager
    def _first_adapters(self) -> Iterator[None]:
        """Put the adapters that the model began with in the place of those that are trained."""
        reshard(self._model)  # what is gathered would be computed with
        weights = {name: local_part(weight) for name, weight in adapter_parameters(self._model).items()}
        trained = {name: weight.clone() for name, weight in weights.items()}
        try:
            for name, weight in weights.items():
                weight.copy_(self._first[name])
            yield
        finally:
            reshard(self._model)
            for name, weight in weights.items():
                weight.copy_(trained[name])


def _describe(weights: Path, examples: Any) -> str:
    """Return what changes when weights or any example do."""
    return f"{hash_weight_files(weights)}|{hash_dataset(examples, max(len(examples), 1))}"


def log_probs_of_rows(
    model: TransformerDecoder,
    batch: Mapping[str, Tensor],
    rows: slice,
    num_answers: int,
    reads_text: bool = False,
) -> AnswerLogProbs:
    """Return what a model makes of the answers in some rows of a batch; arguments as of `answer_log_probs`."""
    positions, counts = batch.get("input_pos"), batch.get(NUM_TEXT_TARGETS if reads_text else NUM_TARGETS)
    return answer_log_probs(
        model,
        batch["tokens"][rows],
        shift_labels(batch["labels"])[rows],
        batch["answers"][rows],
        num_answers,
        None if positions is None else positions[rows],
        reads_text=reads_text,
        num_targets=None if counts is None else int(counts[rows].sum()),
    )
