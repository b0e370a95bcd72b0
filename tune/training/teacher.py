"""A model that is learnt from: frozen, in the precision of the products, with the student's vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune.config.component import Component
from tune.config.instantiate import instantiate
from tune.data import DataReport
from tune.errors import ConfigError
from tune.modules import TransformerDecoder
from tune.modules.loss import DistillationLoss, Head, LossFromHidden
from tune.modules.peft import FrozenLinear, drop_adapters, freeze
from tune.tokenizers import Tokenizer, holds_tokenizer, require_same_vocabulary
from tune.training.building import build_on_meta
from tune.training.compilation import compile_blocks
from tune.training.distributed.frozen_base import shard_dim_of_base
from tune.training.distributed.sharded_model import shard_model
from tune.training.saving.fingerprint import hash_weight_files
from tune.training.vocabulary import check_tokenizer_fits
from tune.utils import get_logger
from tune.utils.mesh import Mesh

__all__ = ["PlannedDistillation", "Teacher"]

# Of a process's memory, what a teacher may take that every process holds whole: a student is to fit beside it.
_SHARE = 0.25


class Teacher:
    """A model that is learnt from: frozen, in eval mode, and on the meta device until it is loaded.

    Args:
        component: its builder and arguments.
        checkpointer: reads its weights: class and arguments.
        tokenizer: its own: builder and arguments.
        dtype: of its weights.
        quantize: keep the blocks' matrices in 4 bits from when they are loaded.

    Attributes:
        model: the decoder.
        model_dir: of its weights.
        shard_dim: processes that it is cut over.
    """

    def __init__(
        self,
        component: Component,
        checkpointer: Component,
        tokenizer: Component,
        *,
        dtype: torch.dtype,
        quantize: bool = False,
    ) -> None:
        self._checkpointer = instantiate(checkpointer)
        self._tokenizer = tokenizer
        self._dtype = dtype
        self.shard_dim = 1
        self.model_dir: Path = self._checkpointer.find_model_dir()
        self.model = build_on_meta(component, self.model_dir, dtype)
        # Of a lora_ builder there is the model, of a qlora_ one in 4 bits: adapters that nobody trains add nothing.
        parts = [module for module in self.model.modules() if isinstance(module, FrozenLinear)]
        self._is_quantized = quantize or any(part.quantize_base for part in parts)
        drop_adapters(self.model)
        freeze(self.model, self._is_quantized)

    def prepare(
        self,
        student: TransformerDecoder,
        tokenizer: Tokenizer,
        report: DataReport,
        mesh: Mesh,
        *,
        required: bool,
    ) -> None:
        """Check that the teacher fits the student, and choose over how many processes it is cut.

        Every process must call this; arguments as for `check_fits` and `choose_shards`.
        """
        self.check_fits(student, tokenizer, report)
        self.choose_shards(mesh, required)

    def check_fits(self, student: TransformerDecoder, tokenizer: Tokenizer, report: DataReport) -> None:
        """Refuse other tokens than the student's; warn of texts longer than the teacher was made for.

        The numbers of rows may differ: embeddings are padded. Where the tokenizer is to be the one beside the weights,
        and there is none, the numbers of rows are compared, and a warning says so.

        Args:
            student: which learns.
            tokenizer: the student's.
            report: of the data.

        Raises:
            ConfigError: the vocabularies differ.
        """
        is_beside = self._tokenizer.path == "tune.tokenizers.auto" and not self._tokenizer.kwargs.get("path")
        if not is_beside or holds_tokenizer(self.model_dir):
            own = instantiate(self._tokenizer, defaults={"checkpoint_dir": str(self.model_dir)})
            require_same_vocabulary(tokenizer, own)
        elif (rows := self.model.config.vocab_size) != student.config.vocab_size:
            raise ConfigError(
                f"the teacher has {rows} tokens and the student {student.config.vocab_size}, and there is no tokenizer "
                f"in {self.model_dir} by which they could be compared: set teacher_tokenizer.path to the teacher's"
            )
        else:
            get_logger().warning(
                f"There is no tokenizer in {self.model_dir}: that the teacher's {rows} tokens are the student's is "
                "taken for granted. Set teacher_tokenizer.path to have them compared."
            )
        check_tokenizer_fits(tokenizer, self.model.config, report)

    def choose_shards(self, mesh: Mesh, required: bool) -> None:
        """Choose over how many processes the teacher is cut: each holds it whole where that takes a quarter of it.

        Every process must call this. 4-bit weights are never cut.

        Args:
            mesh: the processes of the run.
            required: shards were asked for.
        """
        required = required and not self._is_quantized
        self.shard_dim = shard_dim_of_base(self.model, mesh, required=required, share=_SHARE)

    def place(self, mesh: Mesh, compiled: bool, cpu_offload: bool) -> None:
        """Make room for the weights, or this process's part of them.

        Args:
            mesh: the processes of the run.
            compiled: compile the blocks.
            cpu_offload: shards wait in host memory.
        """
        if compiled:
            compile_blocks(self.model.layers)
        if self.shard_dim > 1:
            shard_model(self.model, mesh, cpu_offload=cpu_offload)

    def load(self, device: torch.device) -> None:
        """Read the weights, of each process its part."""
        self._checkpointer.load_into(self.model, self.model_dir, device=device)

    @torch.no_grad()
    def head(self, tokens: Tensor, mask: Tensor | None = None, input_pos: Tensor | None = None) -> Head:
        """Return what the teacher's logits for tokens [b, s] are made of; arguments as in `TransformerDecoder`."""
        return Head.of(self.model, self.model.hidden(tokens, mask=mask, input_pos=input_pos))

    def hash_weights(self) -> str:
        """Return a short text that changes when the weights are others."""
        return hash_weight_files(self.model_dir)

    def sizes(self) -> dict[str, Any]:
        """Return what `PlannedRun` is to know of it."""
        return {"frozen_model": self.model, "frozen_shard_dim": self.shard_dim}

    def planned(self, loss_fn: nn.Module, kd_loss: DistillationLoss) -> PlannedDistillation:
        """Return both losses of a student, on a teacher of this size that is not there, for a plan of the memory."""
        config = self.model.config
        return PlannedDistillation(loss_fn, kd_loss, config.embed_dim, config.vocab_size, self._dtype)


class PlannedDistillation(LossFromHidden):
    """A student's two losses with a teacher of certain sizes, of which nothing is there: for a plan of the memory.

    Args:
        loss_fn: the loss on the data's answers.
        kd_loss: the divergence from the teacher.
        teacher_dim: its width.
        teacher_rows: of its output matrix.
        dtype: of its hidden states.
    """

    def __init__(
        self,
        loss_fn: nn.Module,
        kd_loss: DistillationLoss,
        teacher_dim: int,
        teacher_rows: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.loss_fn = loss_fn
        self.kd_loss = kd_loss
        self.teacher_dim, self.teacher_rows = teacher_dim, teacher_rows
        self.dtype = dtype

    def forward(
        self,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        softcap: float | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the sum of both, of no meaning, from hidden [b, s, d], weight [v, d], labels [b, s]."""
        taught = hidden.new_zeros(*labels.shape, self.teacher_dim, dtype=self.dtype)
        # The matrix is one of the teacher's weights, which are counted as such.
        matrix = hidden.new_zeros(1, self.teacher_dim, dtype=self.dtype).expand(self.teacher_rows, -1)
        student = Head(hidden, weight, softcap)
        total = self.kd_loss.sum_from_hidden(student, Head(taught, matrix, softcap), labels, weights)
        if isinstance(self.loss_fn, LossFromHidden):
            loss: Tensor = self.loss_fn(hidden, weight, labels, softcap)
        else:
            loss = self.loss_fn(F.linear(hidden, weight).flatten(0, 1).float(), labels.flatten())
        return total + loss

    def rows_per_piece(self, num_targets: int, device: torch.device) -> int:
        """Return how many targets' logits stand at once."""
        return self.kd_loss.rows_per_piece(num_targets, device)
