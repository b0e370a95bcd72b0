"""Log-probabilities of whole answers, and what several micro-batches and processes know of them.

Shapes: b rows, s sequence, n answers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tune.modules.decoder import TransformerDecoder
from tune.modules.loss.log_probs import target_log_probs
from tune.modules.loss.preference import AnswerLogProbs

_NO_TARGET = -100


def answer_log_probs(
    model: TransformerDecoder,
    tokens: Tensor,
    targets: Tensor,
    answers: Tensor,
    num_answers: int,
    input_pos: Tensor | None = None,
    *,
    reads_text: bool = False,
    num_targets: int | None = None,
) -> AnswerLogProbs:
    """Return the log-probabilities of the answers in a batch, each summed over its target tokens.

    Args:
        model: the decoder.
        tokens: [b, s].
        targets: what each position should say next, -100 where that is no part of an answer. [b, s]
        answers: the number of the answer that a token belongs to, prompts included; -1 for padding. [b, s]
        num_answers: of the batch. Where each row holds one answer, and no `input_pos` is given, they are the rows.
        input_pos: positions, which begin anew with each answer, where rows hold several. [b, s]
        reads_text: also give the mean over prompt and answer, of the first half of the answers.
        num_targets: how many targets there are (with `reads_text`, those of `with_text`), where the host knows; None:
            the device is waited for.
    """
    of_answers = targets != _NO_TARGET  # [b, s]
    if reads_text:
        targets = with_text(tokens, targets, answers, num_answers)
    logps = target_log_probs(model, model.hidden(tokens, input_pos=input_pos), targets, num_targets)  # [b, s]

    def total(values: Tensor) -> Tensor:
        if input_pos is None:
            return values.sum(1)  # [b], which is [n]
        sums = torch.zeros(num_answers, dtype=values.dtype, device=values.device)
        return sums.index_add(0, answers.clamp(min=0).flatten(), values.flatten())  # [n]

    of_text = targets != _NO_TARGET
    means = total(logps) / total(of_text.float()).clamp(min=1) if reads_text else None
    sums = total(torch.where(of_answers, logps, 0.0) if reads_text else logps)
    return AnswerLogProbs(sums, total(of_answers.float()), text_means=means)


def with_text(tokens: Tensor, targets: Tensor, answers: Tensor, num_answers: int) -> Tensor:
    """Return the targets with those of whole texts, prompts included, in the first half of the answers.

    Arguments as of `answer_log_probs`.
    """
    following = torch.full_like(tokens, _NO_TARGET)
    same = (answers[:, 1:] == answers[:, :-1]) & (answers[:, 1:] >= 0)
    following[:, :-1] = torch.where(same, tokens[:, 1:], _NO_TARGET)  # none after the last token of a text
    return torch.where(answers < num_answers // 2, following, targets)
