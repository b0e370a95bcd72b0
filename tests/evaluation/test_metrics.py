"""What an answer is worth: the metrics on answers by hand, and beside the package that others measure ROUGE with."""

from __future__ import annotations

import random

import pytest

from tune.evaluation import metrics


def test_exact_and_normalized_match() -> None:
    assert metrics.exact_match(" The cat. \n", "The cat.") == 1.0
    assert metrics.exact_match("the cat.", "The cat.") == 0.0
    assert metrics.normalized_match("a Cat!", "The  cat.") == 1.0
    assert metrics.normalized_match("straße", "STRASSE.") == 1.0
    assert metrics.normalized_match("another cat", "cat") == 0.0  # an article is a word of its own


def test_contains_is_told_about_case() -> None:
    assert metrics.contains("It is Paris, of course", "paris") == 1.0
    assert metrics.contains("It is Paris, of course", "paris", ignore_case=False) == 0.0
    assert metrics.contains("It is Rome", "Paris") == 0.0


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("48/2 = <<48/2=24>>24\n#### 72", True),
        ("She has $1,072? No: $72.00.", True),
        ("72", True),
        ("so 72 clips in all!", True),
        ("72 of 100", False),
        ("-72", False),
        ("seventy-two", False),
        ("", False),
    ],
)
def test_the_last_number_is_compared_as_a_number(answer: str, is_right: bool) -> None:
    assert metrics.number(answer, "24 + 48 = 72.\n#### 72") == float(is_right)


def test_numbers_with_commas_signs_and_fractions() -> None:
    assert metrics.number("1,234,567.", "1234567") == 1.0
    assert metrics.number("it fell by -0.50", "-.5") == 1.0
    assert metrics.number("it fell by \N{MINUS SIGN}5", "-5") == 1.0
    assert metrics.number("it fell by \N{MINUS SIGN}5", "5") == 0.0
    assert metrics.number("x = 3,4", "34") == 0.0  # a list
    assert metrics.number("1,00,000 or 1,2345", "2345") == 1.0
    assert metrics.number("1,00,000", "100000") == 1.0
    assert metrics.number("whatever 3", "no number here") == 0.0  # nor is an answer without one right
    assert metrics.number("none", "no number here") == 0.0


def test_json_is_valid_as_a_whole() -> None:
    assert [metrics.json_valid(text, "") for text in ('{"a": [1, null]}', " 3 ", '"x"')] == [1.0, 1.0, 1.0]
    wrong = ("{'a': 1}", '{"a": NaN}', 'Sure: {"a": 1}', "", "[" * 100_000, '{"a": 1} and more')
    assert [metrics.json_valid(text, "") for text in wrong] == [0.0] * len(wrong)


def test_rouge_l_by_hand() -> None:
    # Lin 2004, 3.1: "police kill the gunman" beside "police killed the gunman" shares 3 of 4 words in order.
    assert metrics.rouge_l("police kill the gunman", "police killed the gunman") == 0.75
    assert metrics.rouge_l("the gunman kill police", "police killed the gunman") == 0.5
    assert metrics.rouge_l("a b", "a b c d", beta=2.0) == pytest.approx(5 * 1 * 0.5 / (0.5 + 4 * 1))
    assert metrics.rouge_l("", "a") == metrics.rouge_l("a", "...") == 0.0
    assert metrics.rouge_l("Дом стоит", "дом стоит.") == 1.0


def test_rouge_l_equals_the_usual_package() -> None:
    scorer = pytest.importorskip(
        "rouge_score.rouge_scorer", reason="comes with lm-eval: pip install tune[eval]"
    )
    reference = scorer.RougeScorer(["rougeL"], use_stemmer=False)
    rng = random.Random(5)
    for _ in range(60):
        one, other = (
            " ".join(rng.choices(["ab", "cd,", "ef!", "gh", "7", "IJ"], k=rng.randint(1, 9)))
            for _ in range(2)
        )
        expected = reference.score(target=other, prediction=one)["rougeL"].fmeasure
        assert metrics.rouge_l(one, other) == pytest.approx(expected, abs=1e-12)
