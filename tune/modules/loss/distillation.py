"""How far a student's next tokens are from a teacher's: from hidden states of both, piece by piece, or from logits.

Shapes: b batch, s sequence, t target tokens, r targets of one piece, d width (the two models' own), v vocabulary.
p is the student's distribution over the next token, q the teacher's, both at temperature T: softmax(logits / T).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune.errors import ConfigError, TrainingError
from tune.modules.loss.linear_cross_entropy import compute_loss_dtype
from tune.modules.loss.target_rows import target_rows
from tune.modules.loss.two_heads import Head, PiecewiseSum

# Rows of logits in one piece, at least and at most. Both models' stand at once, in fp32, and what is made of them: an
# accelerator gets fewer rows than for cross-entropy.
_CPU_ROWS = (256, 256)
_ROWS_ELSEWHERE = (512, 1024)


class DistillationLoss(nn.Module, ABC):
    """A divergence of the student's next-token distribution from the teacher's, at positions with a target.

    A loss of one's own is a subclass with `divergence`; `sum_from_hidden` then never holds more than a piece of the
    logits. Where one model's output matrix has more rows than the other's (they are padded to round numbers), only the
    rows of both count: no text has the tokens beyond.

    Args:
        ignore_index: label of a position without a target.
        temperature: T. The divergence is multiplied by T^2, so that its gradient keeps its size.  # arXiv:1503.02531, 2
        num_output_chunks: pieces that the target tokens are cut into, at least; more where a piece would grow beyond
            what the device likes (256 rows on a CPU, 1024 elsewhere), and fewer where pieces would be too small.

    Raises:
        ConfigError: the temperature is not above 0, or there are no pieces.
    """

    def __init__(
        self, ignore_index: int = -100, temperature: float = 1.0, num_output_chunks: int = 8
    ) -> None:
        super().__init__()
        if not (temperature > 0.0 and math.isfinite(temperature)):
            raise ConfigError(f"temperature is {temperature}; it must be a number above 0")
        if num_output_chunks < 1:
            raise ConfigError(f"num_output_chunks is {num_output_chunks}; it must be at least 1")
        self.ignore_index = ignore_index
        self.temperature = temperature
        self.num_output_chunks = num_output_chunks

    @abstractmethod
    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the divergence of each row [r], from fp32 log p [r, v] and log q [r, v], for autograd."""

    def per_token(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return T^2 times the divergence of each row [r], fp32, from logits [r, v] of both."""
        student, teacher = (
            F.log_softmax(logits.float() / self.temperature, dim=-1)
            for logits in (student_logits, teacher_logits)
        )
        return self.divergence(student, teacher) * self.temperature**2

    def forward(
        self,
        student_logits: Tensor | Sequence[Tensor],
        teacher_logits: Tensor | Sequence[Tensor],
        labels: Tensor,
        normalize: bool = True,
    ) -> Tensor:
        """Return the mean over targets (or, without `normalize`, the sum) from logits; 0 where there are no targets.

        Args:
            student_logits: [..., v]; or pieces [b, s / n, v] of them.
            teacher_logits: likewise.
            labels: shifted [...]; which positions have a target is all that is read of them.
            normalize: divide by the number of targets.
        """
        if isinstance(student_logits, Tensor) and isinstance(teacher_logits, Tensor):
            pieces = [(student_logits, teacher_logits, labels)]
        else:
            sizes = [piece.shape[1] for piece in student_logits]
            pieces = list(zip(student_logits, teacher_logits, torch.split(labels, sizes, dim=1), strict=True))
        total = torch.zeros((), device=labels.device)
        for student, teacher, wanted in pieces:
            rows = wanted.flatten() != self.ignore_index
            total = total + self.per_token(student.flatten(0, -2)[rows], teacher.flatten(0, -2)[rows]).sum()
        return total / (labels != self.ignore_index).sum().clamp(min=1) if normalize else total

    def sum_from_hidden(
        self,
        student: Head,
        teacher: Head,
        labels: Tensor,
        weights: Tensor | None = None,
        num_targets: int | None = None,
    ) -> Tensor:
        """Return the sum over targets, an fp32 scalar with gradients for the student alone; 0 where there are none.

        Gradients are formed in the forward pass, while a piece's logits are at hand (in fp16 they wait for the loss
        scale, and the logits are made anew).

        Args:
            student: hidden [b, s, d], after the final norm.
            teacher: of the same tokens, whatever its width.
            labels: shifted [b, s]: position i holds the token that should follow it.
            weights: what the divergence at each target is multiplied by [b, s], shifted as the labels; None: 1.
            num_targets: see `target_rows`.

        Raises:
            TrainingError: shapes do not fit.
        """
        shapes = [list(tensor.shape) for head in (student, teacher) for tensor in (head.hidden, head.weight)]
        if any(shape[:-1] != list(labels.shape) for shape in shapes[::2]) or any(
            hidden[-1] != weight[-1] for hidden, weight in (shapes[:2], shapes[2:])
        ):
            raise TrainingError(
                f"hidden states and output matrices of student {shapes[0]}, {shapes[1]} and teacher {shapes[2]}, "
                f"{shapes[3]} do not fit labels {list(labels.shape)}: expected [b, s, d], [v, d] and [b, s]"
            )
        rows = target_rows(labels.reshape(-1), num_targets, self.ignore_index)  # [t]
        factors = None if weights is None else weights.reshape(-1)[rows].float()  # [t]
        flat, flat_teacher = (head.hidden.flatten(0, -2) for head in (student, teacher))  # [b * s, d]
        dtypes = compute_loss_dtype(flat, student.weight), compute_loss_dtype(flat_teacher, teacher.weight)
        num_rows = self.rows_per_piece(rows.shape[0], flat.device)
        softcaps = student.softcap, teacher.softcap
        pieces = PiecewiseSum(self.per_token, rows, factors, num_rows, dtypes, softcaps)
        with torch.autocast(flat.device.type, enabled=False):
            return pieces.run(flat, student.weight, flat_teacher.detach(), teacher.weight.detach())

    def rows_per_piece(self, num_targets: int, device: torch.device) -> int:
        """Return how many targets' logits may stand at once, of `num_targets`."""
        least, most = _CPU_ROWS if device.type == "cpu" else _ROWS_ELSEWHERE
        num_pieces = max(min(self.num_output_chunks, num_targets // least), -(-num_targets // most), 1)
        return max(1, -(-num_targets // num_pieces))

    def extra_repr(self) -> str:
        """What torch prints between the brackets."""
        return f"temperature={self.temperature}, ignore_index={self.ignore_index}"


class ForwardKLLoss(DistillationLoss):
    """Forward KL(q || p) without its constant: - sum q log p, so that its value is the KL and the teacher's entropy.

    The student is drawn to cover all that the teacher may say. The value is that of torchtune's loss of this name:
    where both agree it is the teacher's entropy, not 0. `JensenShannonLoss(beta=0)` has the same gradient, and counts
    from 0.
    """

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return -_product(teacher.exp(), student).sum(-1)


class ReverseKLLoss(DistillationLoss):
    """Reverse KL(p || q) = sum p (log p - log q): the student is drawn to what the teacher finds likely.

    It is MiniLLM's, and the one for texts that the student wrote itself.  # arXiv:2306.08543, 2.1; arXiv:2306.13649, 3
    """

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        both = student.isinf() | teacher.isinf()
        return (student.exp() * (student.masked_fill(both, 0.0) - teacher.masked_fill(both, 0.0))).sum(-1)


class SymmetricKLLoss(DistillationLoss):
    """sym_kd_ratio times the forward KL, without its constant, and 1 - sym_kd_ratio times the reverse KL.

    Args:
        sym_kd_ratio: 1 is `ForwardKLLoss`, 0 `ReverseKLLoss`.
        ignore_index: as for every `DistillationLoss`, and so are the next two.
        temperature: T.
        num_output_chunks: pieces.

    Raises:
        ConfigError: the ratio is not between 0 and 1; or as `DistillationLoss`.
    """

    def __init__(
        self,
        sym_kd_ratio: float = 0.5,
        ignore_index: int = -100,
        temperature: float = 1.0,
        num_output_chunks: int = 8,
    ) -> None:
        super().__init__(ignore_index, temperature, num_output_chunks)
        if not 0.0 <= sym_kd_ratio <= 1.0:
            raise ConfigError(f"sym_kd_ratio is {sym_kd_ratio}; it must lie between 0 and 1")
        self.sym_kd_ratio = sym_kd_ratio

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        forward = ForwardKLLoss.divergence(self, student, teacher)  # type: ignore[arg-type]  # reads nothing of it
        reverse = ReverseKLLoss.divergence(self, student, teacher)  # type: ignore[arg-type]
        return self.sym_kd_ratio * forward + (1.0 - self.sym_kd_ratio) * reverse


class JensenShannonLoss(DistillationLoss):
    """Generalised Jensen-Shannon: beta KL(q || m) + (1 - beta) KL(p || m), with m = beta q + (1 - beta) p.

    At most log 2 for a beta of 0.5. At the ends, where the formula vanishes, it is the KL that it tends to once it is
    divided by beta or 1 - beta: forward KL(q || p) at 0, reverse KL(p || q) at 1.  # arXiv:2306.13649, 2

    Args:
        beta: the teacher's share of the mixture.
        ignore_index: as for every `DistillationLoss`, and so are the next two.
        temperature: T.
        num_output_chunks: pieces.

    Raises:
        ConfigError: beta is not between 0 and 1; or as `DistillationLoss`.
    """

    def __init__(
        self,
        beta: float = 0.5,
        ignore_index: int = -100,
        temperature: float = 1.0,
        num_output_chunks: int = 8,
    ) -> None:
        super().__init__(ignore_index, temperature, num_output_chunks)
        if not 0.0 <= beta <= 1.0:
            raise ConfigError(f"beta is {beta}; it must lie between 0 and 1")
        self.beta = beta

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.beta in (0.0, 1.0):
            one, other = (teacher, student) if self.beta == 0.0 else (student, teacher)
            return _kl(one, other)
        shares = math.log1p(-self.beta), math.log(self.beta)
        # What neither can say is kept off minus infinity, where logaddexp has no slope.
        mixture = torch.logaddexp(*(x.clamp(min=-1e4) + y for x, y in zip((student, teacher), shares)))
        return self.beta * _kl(teacher, mixture) + (1.0 - self.beta) * _kl(student, mixture)


class ForwardKLWithChunkedOutputLoss(ForwardKLLoss):
    """`ForwardKLLoss` under the name torchtune's configs use; every loss here works in pieces."""

    def __init__(
        self, num_output_chunks: int = 8, ignore_index: int = -100, temperature: float = 1.0
    ) -> None:
        super().__init__(ignore_index, temperature, num_output_chunks)


class ReverseKLWithChunkedOutputLoss(ReverseKLLoss):
    """`ReverseKLLoss` under the name torchtune's configs use."""

    def __init__(
        self, num_output_chunks: int = 8, ignore_index: int = -100, temperature: float = 1.0
    ) -> None:
        super().__init__(ignore_index, temperature, num_output_chunks)


class SymmetricKLWithChunkedOutputLoss(SymmetricKLLoss):
    """`SymmetricKLLoss` under the name torchtune's configs use."""

    def __init__(
        self,
        num_output_chunks: int = 8,
        sym_kd_ratio: float = 0.5,
        ignore_index: int = -100,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(sym_kd_ratio, ignore_index, temperature, num_output_chunks)


def _product(probabilities: Tensor, log_probabilities: Tensor) -> Tensor:
    """Return the product, 0 where something is impossible: logits of minus infinity mask entries."""
    return probabilities * log_probabilities.masked_fill(log_probabilities.isinf(), 0.0)


def _kl(one: Tensor, other: Tensor) -> Tensor:
    """Return KL(one || other) of each row [r], from logarithms [r, v]."""
    impossible = one.isinf() | other.isinf()
    return (one.exp() * (one - other).masked_fill(impossible, 0.0)).sum(-1)
