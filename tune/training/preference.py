"""What a recipe that learns from preferences asks: how many pairs, by which loss, and how it is going."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tune.errors import ConfigError
from tune.modules import TransformerDecoder
from tune.modules.loss import AnswerLogProbs, PreferenceLoss, RewardLoss
from tune.modules.score import last_hidden
from tune.tokenizers import Tokenizer
from tune.training.loss_parts import LossParts
from tune.training.reference import Reference, log_probs_of_rows
from tune.utils import get_logger

__all__ = [
    "PreferenceMetrics",
    "check_preference_data",
    "compare_answers",
    "count_pairs",
    "score_answers",
    "score_text",
]


def check_preference_data(loss_fn: PreferenceLoss | RewardLoss, *datasets: Any) -> None:
    """Check that each dataset holds what a loss learns from, and say what it does not read; None is passed over.

    Raises:
        ConfigError: it does not.
    """
    for dataset in datasets:
        if dataset is None:
            continue
        item = dataset[0]
        is_judged = "verdict" in item
        if not is_judged and sum(position == 0 for position in item.get("input_pos", ())) < 2:
            raise ConfigError(
                f"{dataset.report().source} holds answers without others to compare them with; preferences are read by "
                "dataset=preference (pairs) or dataset=unpaired (answers with a verdict)"
            )
        is_paired = isinstance(loss_fn, RewardLoss) or loss_fn.is_paired
        if is_judged is is_paired:
            wanted = "pairs (dataset=preference)" if is_judged else "judged answers (dataset=unpaired)"
            raise ConfigError(
                f"the loss {type(loss_fn).__name__} learns from {wanted}, and {dataset.report().source} holds "
                f"{'judged answers: loss=kto' if is_judged else 'pairs: loss=dpo, or another of pairs,'} fits them"
            )
        if "margins" in item and not isinstance(loss_fn, RewardLoss):
            get_logger().info(
                f"{dataset.report().source} says by how much each chosen answer is better (margin), which "
                f"{type(loss_fn).__name__} does not read: reward_finetune does"
            )


def count_pairs(batch: Mapping[str, Tensor]) -> int:
    """Return how many pairs, or judged answers, of a batch have something to learn; on the host.

    Raises:
        ConfigError: the batch was not made for preferences.
    """
    if "verdicts" not in batch:
        raise ConfigError("collate_fn gives no `verdicts`: preferences need tune.data.padded_collate_dpo")
    return int((batch["verdicts"] != 0).sum())


def score_answers(model: TransformerDecoder, batch: Mapping[str, Tensor], pad_id: int) -> Tensor:
    """Return the score of every answer of a batch, [2 n] fp32: the chosen ones, then the rejected ones.

    Args:
        model: with a score.
        batch: as `padded_collate_dpo` makes it.
        pad_id: the token that pads, see `last_hidden`.
    """
    hidden = model.hidden(batch["tokens"], input_pos=batch.get("input_pos"))  # [b, s, d]
    last = last_hidden(
        hidden, batch["tokens"], batch["answers"], 2 * len(batch["verdicts"]), pad_id
    )  # [2 n, d]
    return model.unembed(last).squeeze(-1)


@torch.no_grad()
def score_text(model: TransformerDecoder, tokenizer: Tokenizer, text: str) -> float:
    """Return the score of a text as it stands, closed by the tokenizer's EOS."""
    device, was_training = model.tok_embeddings.weight.device, model.training
    tokens = torch.tensor([tokenizer.encode(text, add_bos=True, add_eos=True)], device=device)  # [1, s]
    model.eval()
    hidden = model.hidden(tokens)  # [1, s, d]
    model.train(was_training)
    last = last_hidden(hidden, tokens, torch.zeros_like(tokens), 1, tokenizer.pad_id)
    return float(model.unembed(last))


def compare_answers(
    loss_fn: PreferenceLoss, model: TransformerDecoder, batch: Mapping[str, Tensor], reference: Reference
) -> tuple[AnswerLogProbs, AnswerLogProbs]:
    """Return what the model makes of the chosen and of the rejected answers of a batch, on the device.

    Of judged answers the second are prompts with answers that are not their own: they get no gradient.

    Args:
        loss_fn: says what it needs.
        model: the decoder.
        batch: as `padded_collate_dpo` makes it.
        reference: the model as it was before training.
    """
    known = reference.log_probs(batch)  # [2 n], before the pass that is learnt from
    num = len(batch["verdicts"])
    if loss_fn.is_paired:
        answers = log_probs_of_rows(model, batch, slice(None), 2 * num, loss_fn.needs_text)
        first, second = answers[:num], answers[num:]
    else:
        with torch.no_grad():  # before the pass that is learnt from
            second = log_probs_of_rows(model, batch, slice(num, None), num)
        first = log_probs_of_rows(model, batch, slice(num), num)
    if known is None:
        return first, second
    return first.beside(known[:num]), second.beside(known[num:])


class PreferenceMetrics(LossParts):
    """How a model treats the answers it learns from, in means over the steps of a line, weighed by pairs.

    rewards_chosen, rewards_rejected: as the loss defines them; margin: their difference; accuracy: share of pairs whose
    chosen answer has the higher reward (of judged answers: share of the good ones with a reward above 0, and of the bad
    ones with one that is not); logps_chosen, logps_rejected: log-probabilities of answers, summed over their tokens;
    kl: mean log-ratio of all answers to the reference (of judged ones: of answers to prompts that are not their own).
    It is of the data's answers, and not of ones that the model wrote: an estimate of the KL divergence that may be
    below 0.

    Args:
        mesh: the processes of the run.
    """

    targets = "pairs"

    def add_scores(self, chosen: Tensor, rejected: Tensor, is_pair: Tensor) -> None:
        """Take the rewards of the answers of some pairs, [n]; is_pair is 0 for what only evens out processes."""
        values = {
            "rewards_chosen": chosen,
            "rewards_rejected": rejected,
            "margin": chosen - rejected,
            "accuracy": (chosen > rejected).float(),
        }
        self._add_values({name: (value, is_pair) for name, value in values.items()})

    def add_answers(
        self, loss_fn: PreferenceLoss, first: AnswerLogProbs, second: AnswerLogProbs, verdicts: Tensor
    ) -> None:
        """Take the answers of a micro-batch, as `compare_answers` gives them; verdicts [n]."""
        if loss_fn.is_paired:
            is_pair = (verdicts != 0).float()
            self.add_scores(loss_fn.reward(first).detach(), loss_fn.reward(second).detach(), is_pair)
            values = {"logps_chosen": (first.sums, is_pair), "logps_rejected": (second.sums, is_pair)}
            if first.reference is not None:
                values["kl"] = ((first.ratios + second.ratios) / 2, is_pair)
        else:
            good, bad = (verdicts > 0).float(), (verdicts < 0).float()
            rewards, is_real = loss_fn.reward(first), (second.num_tokens > 0).float()
            is_right = ((rewards > 0) == (verdicts > 0)).float()
            values = {
                "rewards_chosen": (rewards, good),
                "rewards_rejected": (rewards, bad),
                "accuracy": (is_right, good + bad),
                "logps_chosen": (first.sums, good),
                "logps_rejected": (first.sums, bad),
                "kl": (second.ratios, is_real),
            }
        self._add_values(values)

    def _add_values(self, values: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        sums = {
            name: ((value.detach() * counted).sum(), counted.sum())
            for name, (value, counted) in values.items()
        }
        self.add(**sums)

    def _means(self, sums: dict[str, Tensor]) -> dict[str, float]:
        found = super()._means(sums)
        if "margin" not in found and {"rewards_chosen", "rewards_rejected"} <= found.keys():
            found["margin"] = found["rewards_chosen"] - found["rewards_rejected"]
        return found
