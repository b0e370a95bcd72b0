"""The page in a real browser: nothing is complained of, curves are seen, and they say their values when pointed at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report.chromium import Browser, find_chromium
from tests.report.run_folders import HOSTILE, make_run
from tune.report import write_comparison, write_report

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed here")

# The curves that can be seen, each with its length on the screen.
SEEN = """[...document.querySelectorAll("svg.chart path.curve")]
  .filter(path => path.getBoundingClientRect().width > 100).map(path => path.getTotalLength())"""
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
CENTRE = """(() => { const svg = [...document.querySelectorAll("svg.chart")].find(s => s.getBoundingClientRect().width);
  svg.scrollIntoView({block: "center"});
  const box = svg.getBoundingClientRect(); return [box.left + box.width / 2, box.top + box.height / 2] })()"""
TIP = '(() => { const tip = document.getElementById("tip"); return tip.hidden ? "" : tip.innerText })()'
COLOURS = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    browser = Browser(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("seen") / "run", num_steps=300)
    return write_report(folder, picture=False)


@pytest.mark.parametrize("width", [1280, 400])
def test_curves_are_seen_and_say_their_values(browser: Browser, page: Path, width: int) -> None:
    browser.errors.clear()
    browser.requests.clear()
    browser.open(page, width)
    lengths = browser.run(SEEN)
    assert len(lengths) == 9  # loss and validation, lr, perplexity, norm, two speeds, memory, share
    assert min(lengths) > 100
    assert browser.run(TOO_WIDE) <= 0  # nothing sticks out to the side
    assert browser.run(TIP) == ""
    x, y = browser.run(CENTRE)
    browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    lines = browser.run(TIP).split("\n")
    assert 130 < int(lines[0].removeprefix("step ")) < 155  # of 300; left of the curve stand the numbers
    assert lines[1].startswith("loss: ")
    assert lines[2].startswith("validation loss: ")
    browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert browser.run(TIP) == ""
    assert browser.errors == []
    assert browser.requests == [page.as_uri()]  # nothing is loaded from anywhere


def test_the_arrow_keys_walk_along_a_curve(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    browser.run('document.querySelector("svg.chart").focus()')
    for _ in range(2):
        browser.ask("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", code="ArrowRight")
    assert browser.run(TIP).startswith("step 2\n")


def test_light_and_dark(browser: Browser, page: Path) -> None:
    browser.open(page, 1280, "light")
    light = browser.run(COLOURS)
    browser.open(page, 1280, "dark")
    dark = browser.run(COLOURS)
    assert light != dark
    brightness = [sum(map(int, each[4:-1].split(", "))) for each in (*light, *dark)]
    assert brightness[0] > 600 > 300 > brightness[1]
    assert brightness[2] < 150 < 500 < brightness[3]


def test_hostile_text_is_seen_and_does_nothing(browser: Browser, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "<b>run</b>&", num_steps=4, text=HOSTILE)
    browser.errors.clear()
    browser.open(write_report(folder, picture=False), 1280)
    assert browser.run("typeof window.broken") == "undefined"
    assert browser.run("document.querySelectorAll('img, iframe, b > b, a').length") == 0
    assert browser.run("document.querySelectorAll('script').length") == 2  # our own
    assert browser.run("document.body.innerText").count("<script>window.broken") >= 6
    assert browser.errors == []


def test_runs_laid_over_one_another(browser: Browser, tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, num_steps=20, lr=lr) for name, lr in (("a", 0.1), ("b", 0.2), ("c", 0.3))
    ]
    write_comparison(runs, tmp_path / "both.html")
    browser.errors.clear()
    browser.open(tmp_path / "both.html", 1280)
    assert len(browser.run(SEEN)) == 3 * 9
    x, y = browser.run(CENTRE)
    browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert [line[:3] for line in browser.run(TIP).split("\n")[1:]] == ["a: ", "b: ", "c: "]
    assert browser.errors == []
