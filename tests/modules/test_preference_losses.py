"""Preference losses by hand, log-probabilities by autograd on whole logits, and answers that share rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tune.errors import ConfigError
from tune.models.llama2 import llama2
from tune.modules import TransformerDecoder
from tune.modules.loss import (
    AnswerLogProbs,
    answer_log_probs,
    linear_cross_entropy,
    log_probs,
    target_log_probs,
)
from tune.modules.loss.preference import (
    DPOLoss,
    HingeLoss,
    IPOLoss,
    KTOLoss,
    ORPOLoss,
    PairwiseLoss,
    RobustLoss,
    RSOLoss,
    SigmoidNormLoss,
    SimPOLoss,
)

B, S, V = 3, 11, 37


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


@pytest.fixture
def pair() -> tuple[AnswerLogProbs, AnswerLogProbs]:
    """4 tokens at -6, which were -7 to the reference, and -1.6 with the prompt; 5 tokens at -10, which were -9."""
    chosen = AnswerLogProbs(*map(torch.tensor, ([-6.0], [4.0], [-7.0], [-1.6])))
    return chosen, AnswerLogProbs(*map(torch.tensor, ([-10.0], [5.0], [-9.0])))


ODDS = (-1.5 - math.log(1 - math.exp(-1.5))) - (-2.0 - math.log(1 - math.exp(-2.0)))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # D = (-6 + 7) - (-10 + 9) = 2; per token 1 / 4 + 1 / 5 = 0.45; without a reference -1.5 and -2
        (DPOLoss(beta=0.5), -log_sigmoid(1.0)),
        (DPOLoss(beta=0.5, label_smoothing=0.1), -0.9 * log_sigmoid(1.0) - 0.1 * log_sigmoid(-1.0)),
        (DPOLoss(beta=0.5, sft_weight=0.4), -log_sigmoid(1.0) + 0.4 * 1.5),
        (
            RobustLoss(beta=0.5, label_smoothing=0.1),
            (-0.9 * log_sigmoid(1.0) + 0.1 * log_sigmoid(-1.0)) / 0.8,
        ),
        (HingeLoss(beta=0.2), 1 - 0.4),
        (HingeLoss(beta=0.5), 0.0),
        (RSOLoss(gamma=0.2), 1 - 0.4),
        (IPOLoss(beta=0.25), (0.45 - 2.0) ** 2),
        (SigmoidNormLoss(beta=2.0), -log_sigmoid(0.9)),
        (SimPOLoss(beta=2.0, gamma=0.3), -log_sigmoid(2.0 * 0.5 - 0.3)),
        (
            SimPOLoss(beta=2.0, gamma=0.3, label_smoothing=0.2),
            -0.8 * log_sigmoid(0.7) - 0.2 * log_sigmoid(-0.7),
        ),
        (ORPOLoss(beta=0.3), 1.6 - 0.3 * log_sigmoid(ODDS)),
        (ORPOLoss(beta=0.3, train_on_prompt=False), 1.5 - 0.3 * log_sigmoid(ODDS)),
    ],
    ids=repr,
)
def test_one_pair_by_hand(
    pair: tuple[AnswerLogProbs, AnswerLogProbs], loss: PairwiseLoss, expected: float
) -> None:
    assert loss(*pair).tolist() == pytest.approx([expected], rel=1e-6, abs=1e-7)
    filler = loss.losses(*pair, torch.tensor([0]), lambda tensor: tensor)
    assert filler.tolist() == [0.0]


def test_judged_answers_by_hand() -> None:
    # log-ratios 1, -1, 3 of answers; mismatched ones 0.6 and 0.2, so that z is 0.4; the last has nothing to learn
    answers = AnswerLogProbs(*map(torch.tensor, ([-6.0, -10.0, -5.0], [4.0, 5.0, 0.0], [-7.0, -9.0, -8.0])))
    others = AnswerLogProbs(*map(torch.tensor, ([-2.0, -3.0, 9.0], [2.0, 2.0, 0.0], [-2.6, -3.2, 0.0])))
    loss = KTOLoss(beta=0.5, desirable_weight=1.25, undesirable_weight=0.75)
    found = loss.losses(answers, others, torch.tensor([1, -1, 0]), lambda tensor: tensor)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    expected = [1.25 * (1 - sigmoid(0.5 * (1 - 0.4))), 0.75 * (1 - sigmoid(0.5 * (0.4 + 1))), 0.0]
    assert found.tolist() == pytest.approx(expected)
    # z is never below 0, and is that of all processes: another one has two at -5
    assert float(loss.baseline(others, lambda sums: sums + torch.tensor([-10.0, 2.0]))) == 0.0


@pytest.mark.parametrize("loss", [DPOLoss(), DPOLoss(label_smoothing=0.2), RobustLoss(), SigmoidNormLoss()])
def test_the_reference_itself_loses_log_2(loss: PairwiseLoss) -> None:
    sums = torch.randn(5) * 100
    same = AnswerLogProbs(sums, torch.full((5,), 7.0), sums.clone())
    assert loss(same, same).tolist() == pytest.approx([math.log(2)] * 5, rel=1e-6)


def test_an_answer_that_is_certain_has_finite_odds() -> None:
    sums = torch.tensor([0.0], requires_grad=True)
    certain = AnswerLogProbs(sums, torch.tensor([4.0]))
    other = AnswerLogProbs(torch.tensor([-8.0]), torch.tensor([4.0]))
    loss = ORPOLoss(train_on_prompt=False)(certain, other)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert sums.grad is not None
    assert torch.isfinite(sums.grad).all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DPOLoss(beta=0.0), "loss.beta is 0, expected above 0"),
        (lambda: DPOLoss(label_smoothing=0.6), "loss.label_smoothing is 0.6"),
        (lambda: RobustLoss(label_smoothing=0.5), "below 0.5"),
        (lambda: SimPOLoss(gamma=-1.0), "loss.gamma is -1"),
        (lambda: KTOLoss(desirable_weight=-1.0), "loss.desirable_weight"),
        (lambda: IPOLoss(sft_weight=-0.1), "loss.sft_weight"),
    ],
)
def test_settings_that_make_no_sense(make, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


@pytest.fixture
def model() -> TransformerDecoder:
    torch.manual_seed(0)
    return llama2(V, 2, 4, 24, 64, num_kv_heads=2, intermediate_dim=40)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, V, (B, S), generator=torch.Generator().manual_seed(1))
    targets = tokens.roll(-1, 1)
    targets[:, :4], targets[:, -1], targets[1] = -100, -100, -100  # a row without any
    return tokens, targets


@pytest.mark.parametrize("trains_output", [True, False])
@pytest.mark.parametrize("cap", [None, 2.5])
def test_log_probs_in_pieces_equal_whole_logits(
    model: TransformerDecoder,
    batch: tuple[Tensor, Tensor],
    trains_output: bool,
    cap: float | None,
    monkeypatch,
) -> None:
    monkeypatch.setattr(linear_cross_entropy, "_CPU_ROWS", (4, 4))  # several pieces, the last one smaller
    object.__setattr__(model.config, "final_softcap", cap)
    assert model.output is not None
    model.output.weight.requires_grad_(trains_output)
    tokens, targets = batch
    factors = torch.randn(B, S)

    def gradients(values: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        (values * factors).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    ours = target_log_probs(model, model.hidden(tokens), targets)
    whole = model(tokens).log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    whole = torch.where(targets >= 0, whole, 0.0)
    torch.testing.assert_close(ours, whole)
    expected = gradients(whole)
    found = gradients(ours)
    assert found.keys() == expected.keys()
    assert ("output.weight" in found) is trains_output
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_the_kernel_gives_the_same(
    model: TransformerDecoder, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")  # which is interpreted here
    tokens, targets = batch
    factors = torch.randn(B, S)
    found = []
    for uses_kernel in (False, True):
        monkeypatch.setattr(log_probs, "has_kernel", lambda logits, uses=uses_kernel: uses)
        model.zero_grad()
        values = target_log_probs(model, model.hidden(tokens), targets)
        (values * factors).sum().backward()
        found.append([values.detach(), *(weight.grad.clone() for weight in model.parameters())])
    for plain, by_kernel in zip(*found, strict=True):
        torch.testing.assert_close(by_kernel, plain, rtol=1e-4, atol=1e-5)


def test_a_batch_without_targets_has_zero_gradients(
    model: TransformerDecoder, batch: tuple[Tensor, Tensor]
) -> None:
    tokens, targets = batch
    target_log_probs(model, model.hidden(tokens), torch.full_like(targets, -100)).sum().backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.parameters())


def test_bf16_keeps_sums_in_fp32(model: TransformerDecoder, batch: tuple[Tensor, Tensor]) -> None:
    tokens, targets = batch
    model.to(torch.bfloat16)
    ours = target_log_probs(model, model.hidden(tokens), targets)
    assert ours.dtype == torch.float32
    whole = model(tokens).float().log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(ours, torch.where(targets >= 0, whole, 0.0), rtol=1e-5, atol=1e-5)


def test_answers_in_one_row_equal_answers_in_rows(
    model: TransformerDecoder, batch: tuple[Tensor, Tensor]
) -> None:
    tokens, targets = batch
    rows = torch.arange(B)[:, None].expand(B, S).clone()
    apart = answer_log_probs(model, tokens[::2], targets[::2], rows[:2], 2, reads_text=True)
    joined = [tensor[::2].reshape(1, 2 * S) for tensor in (tokens, targets)]
    positions = torch.arange(S).repeat(2)[None]
    number = torch.arange(2).repeat_interleave(S)[None]
    together = answer_log_probs(model, joined[0], joined[1], number, 2, positions, reads_text=True)
    torch.testing.assert_close(together.sums, apart.sums)
    torch.testing.assert_close(together.num_tokens, apart.num_tokens)
    assert together.text_means is not None
    assert apart.text_means is not None
    torch.testing.assert_close(together.text_means[:1], apart.text_means[:1])
    logits = model(tokens[:1]).log_softmax(-1)[0, :-1]
    mean = logits.gather(1, tokens[0, 1:, None]).mean()
    torch.testing.assert_close(apart.text_means[0], mean)
