"""The student writes, the teacher scores: what is written, how likely it was then, and with which dice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tune.data import find_prompts, padded_collate_sft
from tune.generation import AnsweredBatches, generate, write_answers
from tune.models.llama2 import llama2
from tune.modules import TransformerDecoder
from tune.tokenizers import SentencePieceTokenizer
from tune.utils.mesh import Mesh

VOCABULARY = 600
# A row of two documents and padding, which is a document of its own; and one of one.
ROWS = {
    "tokens": torch.tensor([[1, 40, 41, 42, 1, 50, 51, 0, 0], [1, 60, 61, 62, 63, 64, 65, 66, 67]]),
    "labels": torch.tensor([[-100, -100, 41, 42, -100, 50, 51, -100, -100], [-100] * 5 + [64, 65, -100, 67]]),
    "input_pos": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1], list(range(9))]),
}
PROMPTS = [[1, 40], [1], [1, 60, 61, 62, 63]]


@pytest.fixture(scope="module")
def model() -> TransformerDecoder:
    torch.manual_seed(3)
    model = llama2(VOCABULARY, 2, 4, 24, 64, num_kv_heads=2, intermediate_dim=40)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.train()


@pytest.fixture(scope="module")
def tokenizer(spm_file: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(spm_file)


class Step:
    """A loader of the rows, one by one or together, and the step that is being taken."""

    sampler = None

    def __init__(self, *sizes: int) -> None:
        self.sizes, self.number = sizes, 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        first = 0
        for size in self.sizes:
            yield {name: field[first : first + size] for name, field in ROWS.items()}
            first += size

    def __call__(self) -> int:
        return self.number


def answered(
    model: TransformerDecoder, tokenizer: SentencePieceTokenizer, step: Step, seed: int = 5, **changes: Any
) -> list[dict[str, Tensor]]:
    settings = {"max_new_tokens": 12, "temperature": 1.0, **changes}
    mesh = Mesh(torch.device("cpu"))
    return list(AnsweredBatches(step, step, model, tokenizer, mesh, seed, nullcontext, settings))


def texts(batches: list[dict[str, Tensor]]) -> list[list[int]]:
    """The documents of batches, without what pads them."""
    rows = [
        (tokens, labels)
        for batch in batches
        for tokens, labels in zip(batch["tokens"], batch["labels"], strict=True)
    ]
    return [tokens[: int((labels != -100).nonzero()[-1]) + 1].tolist() for tokens, labels in rows]


def test_prompts_are_what_stands_before_the_first_answer() -> None:
    assert find_prompts(ROWS) == PROMPTS
    assert find_prompts({"tokens": ROWS["tokens"], "labels": ROWS["labels"]}) == [PROMPTS[0], PROMPTS[2]]
    assert find_prompts(padded_collate_sft([{"tokens": [0], "labels": [-100]}])) == []


def test_answers_are_learnt_and_prompts_are_not(model, tokenizer) -> None:
    (batch,) = answered(model, tokenizer, Step(2))
    assert [len(row) for row in (batch["tokens"], batch["labels"])] == [3, 3]
    for prompt, tokens, labels in zip(PROMPTS, batch["tokens"], batch["labels"], strict=True):
        start = len(prompt)
        assert tokens[:start].tolist() == prompt
        assert (labels[:start] == -100).all()
        rest = labels[start:]
        written = rest[rest != -100]
        assert 0 < len(written) <= 12
        assert torch.equal(written, tokens[start : start + len(written)])
    assert model.training


def test_the_token_that_ends_an_answer_is_learnt(model) -> None:
    whole = generate(model, PROMPTS[2], max_new_tokens=9, temperature=1.0, seed=11)
    stop = whole[4]
    first = whole.index(stop)
    answers = write_answers(
        model, [PROMPTS[2], PROMPTS[0]], [11, 12], max_new_tokens=9, stop_ids=[stop, whole[0] + 1]
    )
    assert answers[0] == whole[: first + 1]
    (alone,) = write_answers(model, [PROMPTS[0]], [12], max_new_tokens=9, stop_ids=[stop, whole[0] + 1])
    assert answers[1] == alone


def test_log_probs_while_writing_are_those_of_training(model) -> None:
    """Through caches, token by token and in a batch; and at once, as the loss reads them: to the last bits of fp32."""
    seen: list[Tensor] = []
    unembed = model.unembed
    model.unembed = lambda hidden: seen.append(unembed(hidden)) or seen[-1]  # type: ignore[method-assign, func-returns-value]
    try:
        answers = write_answers(model, PROMPTS, [1, 2, 3], max_new_tokens=20)
    finally:
        del model.unembed
    steps = torch.stack([logits[:, 0].log_softmax(-1) for logits in seen], dim=1)  # [b, s, v]
    for row, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        tokens = torch.tensor([prompt + answer])
        with torch.no_grad():
            hidden = model.hidden(tokens)[0, len(prompt) - 1 : -1]  # [s, d]
        trained = F.linear(hidden, model.output_weight).log_softmax(-1)
        wanted = torch.tensor(answer)[:, None]
        torch.testing.assert_close(
            steps[row, : len(answer)].gather(1, wanted), trained.gather(1, wanted), rtol=0, atol=2e-6
        )
        torch.testing.assert_close(steps[row, : len(answer)], trained, rtol=0, atol=4e-6)


def test_a_share_of_the_steps_learns_from_the_data(model, tokenizer) -> None:
    """Drawn by seed and step: the batches of a step are written together, or not at all."""
    step = Step(1, 1)
    written = []
    for step.number in range(60):
        batches = answered(model, tokenizer, step, share=0.3, max_new_tokens=1)
        is_data = [batch["tokens"].shape == (1, 9) and "input_pos" in batch for batch in batches]
        assert is_data[0] == is_data[1]
        written.append(not is_data[0])
    assert 9 <= sum(written) <= 27  # four deviations from 18
    step.number = -1
    assert "input_pos" not in answered(model, tokenizer, step, share=0.3, max_new_tokens=1)[0]


def test_dice_follow_from_seed_step_and_prompt(model, tokenizer) -> None:
    step = Step(2)
    first = texts(answered(model, tokenizer, step))
    assert texts(answered(model, tokenizer, step)) == first
    # However the step is cut up, and whatever the global dice do.
    torch.manual_seed(99)
    assert texts(answered(model, tokenizer, Step(1, 1))) == first
    assert torch.randint(10**9, ()).item() == torch.randint(10**9, (), generator=seeded(99)).item()
    assert texts(answered(model, tokenizer, step, seed=6)) != first
    later = Step(2)
    later.number = 1
    assert texts(answered(model, tokenizer, later)) != first
    greedy = texts(answered(model, tokenizer, later, temperature=0.0))
    assert greedy == texts(answered(model, tokenizer, step, temperature=0.0))


def test_the_same_prompt_twice_gets_two_answers(model, tokenizer, monkeypatch) -> None:
    twice = {name: field[1:].repeat(2, 1) for name, field in ROWS.items()}
    monkeypatch.setattr(Step, "__iter__", lambda self: iter([twice]))
    one, other = texts(answered(model, tokenizer, Step()))
    assert one != other
    assert one[:5] == other[:5] == PROMPTS[2]


def test_a_batch_without_prompts_has_nothing_to_learn(model, tokenizer, monkeypatch) -> None:
    empty = {"tokens": torch.zeros(2, 3, dtype=torch.int64), "labels": torch.full((2, 3), -100)}
    monkeypatch.setattr(Step, "__iter__", lambda self: iter([empty]))
    (batch,) = answered(model, tokenizer, Step())
    assert batch["tokens"].shape == batch["labels"].shape == (1, 1)
    assert batch["labels"].item() == -100


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
