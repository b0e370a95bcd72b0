from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tune.errors import GenerationError
from tune.generation import Sampling, make_generator, sample_token, token_probabilities

PROBABILITIES = [0.05, 0.4, 0.1, 0.25, 0.2]
LOGITS = torch.tensor([PROBABILITIES]).log() + 3.7  # an offset that must not matter


def probabilities(**settings_: float | int | None) -> list[float]:
    settings_ = {"temperature": 1.0, **settings_}
    return token_probabilities(LOGITS, Sampling(**settings_))[0].tolist()  # type: ignore[arg-type]


def test_greedy_takes_the_first_of_equal_maxima() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    assert sample_token(logits).tolist() == [1, 0]
    assert token_probabilities(logits, Sampling()).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    assert sample_token(logits[0]).tolist() == 1


def test_plain_sampling_is_softmax_with_temperature() -> None:
    assert probabilities() == pytest.approx(PROBABILITIES)
    squared = [p**2 for p in PROBABILITIES]
    assert probabilities(temperature=0.5) == pytest.approx([p / sum(squared) for p in squared])


def test_top_k_keeps_k_and_renormalises() -> None:
    assert probabilities(top_k=2) == pytest.approx([0, 0.4 / 0.65, 0, 0.25 / 0.65, 0])
    assert probabilities(top_k=1) == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("top_k", [5, 6, 10**9])
def test_top_k_of_the_vocabulary_or_more_keeps_everything(top_k: int) -> None:
    assert probabilities(top_k=top_k) == pytest.approx(PROBABILITIES)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1e-9, [1]), (0.39, [1]), (0.41, [1, 3]), (0.64, [1, 3]), (0.66, [1, 3, 4]), (0.96, [0, 1, 2, 3, 4])],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: list[int]) -> None:
    result = probabilities(top_p=top_p)
    assert [index for index, p in enumerate(result) if p > 0] == kept
    assert sum(result) == pytest.approx(1.0)


def test_top_p_sees_what_temperature_and_top_k_left() -> None:
    # After top_k=2 the likeliest token holds 0.4/0.65 = 0.615 of the mass, so 0.6 needs no second one.
    assert probabilities(top_k=2, top_p=0.6) == [0, 1, 0, 0, 0]
    assert probabilities(top_p=0.6)[3] > 0
    # And temperature comes first: at 0.5 the likeliest token holds 0.16/0.275 = 0.58.
    assert probabilities(temperature=0.5, top_p=0.55) == [0, 1, 0, 0, 0]


def test_top_p_of_one_keeps_every_token_of_a_large_vocabulary() -> None:
    logits = torch.randn(1, 50_021, generator=make_generator(0)) * 4
    kept = token_probabilities(logits, Sampling(1.0, top_p=1.0)) > 0
    assert bool(kept.all())


def test_ties_are_broken_by_token_id_at_every_cut() -> None:
    logits = torch.zeros(2, 7)
    assert token_probabilities(logits, Sampling(1.0, top_k=3))[1].tolist() == pytest.approx(
        [1 / 3] * 3 + [0] * 4
    )
    assert token_probabilities(logits, Sampling(1.0, top_p=0.5))[0].tolist() == pytest.approx(
        [0.25] * 4 + [0] * 3
    )


@settings(max_examples=60)
@given(
    scores=st.lists(st.sampled_from([-9.0, -1.5, 0.0, 0.25, 0.25, 3.0, 40.0]), min_size=2, max_size=11),
    temperature=st.sampled_from([1e-30, 0.3, 1.0, 7.0, 1e30]),
    top_k=st.one_of(st.none(), st.integers(1, 14)),
    top_p=st.one_of(st.none(), st.floats(1e-6, 1.0)),
)
def test_any_setting_keeps_the_likeliest_token(
    scores: list[float], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    result = token_probabilities(torch.tensor([scores]), Sampling(temperature, top_k, top_p))[0]
    assert float(result.sum()) == pytest.approx(1.0, abs=1e-5)
    kept = int((result > 0).sum())
    assert 1 <= kept <= (top_k or len(scores))
    assert float(result[scores.index(max(scores))]) == float(result.max())


@settings(max_examples=60)
@given(
    scores=st.lists(st.integers(-2, 2), min_size=1, max_size=30),
    top_k=st.integers(1, 32),
    top_p=st.floats(0.05, 1.0),
)
def test_top_k_among_many_equals_is_a_stable_ranking(scores: list[int], top_k: int, top_p: float) -> None:
    result = token_probabilities(torch.tensor([scores]).float(), Sampling(1.0, top_k, top_p))[0].tolist()
    ranking = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:top_k]
    mass = sum(math.exp(scores[i]) for i in ranking)
    expected, before = set(), 0.0
    for i in ranking:
        if abs(before - top_p) < 1e-5:
            return  # on the edge, rounding decides
        if before < top_p:
            expected.add(i)
        before += math.exp(scores[i]) / mass
    assert {i for i, p in enumerate(result) if p > 0} == expected


def test_matches_the_filters_of_transformers() -> None:
    from transformers.generation.logits_process import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = torch.randn(3, 97, generator=make_generator(5))
    for temperature, top_k, top_p in [(0.7, 97, 0.8), (1.3, 11, 0.95), (1.0, 40, 0.3)]:
        scores = TemperatureLogitsWarper(temperature)(None, logits)
        scores = TopKLogitsWarper(top_k)(None, scores)
        scores = TopPLogitsWarper(top_p)(None, scores)
        ours = token_probabilities(logits, Sampling(temperature, top_k, top_p))
        torch.testing.assert_close(ours, scores.softmax(-1))


def chi_square(counts: list[int], expected: list[float]) -> float:
    total = sum(counts)
    return sum((count - total * p) ** 2 / (total * p) for count, p in zip(counts, expected, strict=True) if p)


def test_draws_follow_the_distribution() -> None:
    num_draws = 20_000
    for seed, settings_ in enumerate([{}, {"top_k": 3}, {"top_p": 0.8}, {"temperature": 2.0}]):
        expected = probabilities(**settings_)
        drawn = sample_token(
            LOGITS.expand(num_draws, -1), **{"temperature": 1.0, **settings_}, generator=make_generator(seed)
        )
        counts = torch.bincount(drawn, minlength=5).tolist()
        assert all(count == 0 for count, p in zip(counts, expected, strict=True) if p == 0)
        # 4 degrees of freedom at most: above 23.5 once in 10,000 seeds, and the seeds are fixed.
        assert chi_square(counts, expected) < 23.5


def test_a_generator_repeats_and_leaves_the_global_one_alone() -> None:
    logits = torch.zeros(1, 1009)
    before = torch.get_rng_state()
    draws = [
        [int(sample_token(logits, temperature=1.0, generator=g)) for _ in range(5)]
        for g in two_generators(3, 3)
    ]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) > 1
    other = [int(sample_token(logits, temperature=1.0, generator=make_generator(4))) for _ in range(5)]
    assert other != draws[0]
    assert torch.equal(torch.get_rng_state(), before)


def two_generators(first: int, second: int) -> list[torch.Generator]:
    return [make_generator(first), make_generator(second)]


def test_one_generator_per_row_makes_rows_independent() -> None:
    logits = torch.randn(3, 211, generator=make_generator(1))
    together = sample_token(logits, temperature=1.0, generator=[make_generator(seed) for seed in (7, 8, 9)])
    alone = [int(sample_token(logits[i], temperature=1.0, generator=make_generator(7 + i))) for i in range(3)]
    assert together.tolist() == alone
    with pytest.raises(GenerationError, match="2 generators were given for 3 rows"):
        sample_token(logits, temperature=1.0, generator=two_generators(1, 2))


def test_an_unseeded_generator_differs_each_time() -> None:
    assert make_generator(None).initial_seed() != make_generator(None).initial_seed()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_an_error_not_a_token(bad: float, temperature: float) -> None:
    logits = torch.randn(2, 13, generator=make_generator(0))
    logits[1, 4] = bad
    with pytest.raises(GenerationError, match="not finite"):
        sample_token(logits, temperature=temperature, top_k=2)


def test_banned_tokens_are_never_drawn() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0]]).expand(4000, -1)
    assert set(sample_token(logits, temperature=1.0, generator=make_generator(2)).tolist()) == {1, 3}
    with pytest.raises(GenerationError, match="not finite"):
        sample_token(torch.full((1, 3), -math.inf))


@pytest.mark.parametrize(
    ("settings_", "number"),
    [
        ({"temperature": -0.1}, "-0.1"),
        ({"temperature": math.nan}, "nan"),
        ({"temperature": math.inf}, "inf"),
        ({"top_k": 0}, "0"),
        ({"top_p": 0.0}, "0.0"),
        ({"top_p": 1.01}, "1.01"),
    ],
)
def test_settings_out_of_range_say_what_is_allowed(settings_: dict[str, float], number: str) -> None:
    name = next(iter(settings_))
    with pytest.raises(GenerationError, match=f"{name} is {number}; it must be"):
        Sampling(**settings_)  # type: ignore[arg-type]


def test_a_seed_torch_cannot_take_is_refused() -> None:
    with pytest.raises(GenerationError, match="seed is -1"):
        make_generator(-1)
