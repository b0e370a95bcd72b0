"""What stands in a report, where there is no browser to look at it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.report.run_folders import HOSTILE, make_run, write_metrics
from tune.cli.main import main
from tune.errors import DataError, TuneError
from tune.report import write_comparison, write_report
from tune.report.curves import Chart, Line, draw_chart, short_number
from tune.report.run_data import MAX_ROWS, read_run, thin_lines
from tune.report.settings import changed_settings, differing_settings, read_settings

PNG = b"\x89PNG\r\n"


class Tags(HTMLParser):
    """What a browser would make of a page: the elements, and the text outside them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_is_on_the_page(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run")).read_text(encoding="utf-8")
    text = Tags(page).text
    for heading in (
        "What to type next",
        "Settings that differ",
        "Data",
        "Sample answers",
        "Memory",
        "Where it ran",
    ):
        assert heading in text
    assert f"tune chat {tmp_path}" not in text  # nothing is saved yet
    assert "mine.yaml:3" in text
    assert "clip_grad_norm" not in text  # a default
    assert "s3cret" not in page
    assert (tmp_path / "run" / "loss_curve.png").read_bytes().startswith(PNG)


def test_text_from_outside_is_no_markup(tmp_path: Path) -> None:
    plain = Tags(write_report(make_run(tmp_path / "plain"), picture=False).read_text(encoding="utf-8"))
    page = write_report(make_run(tmp_path / "hostile", text=HOSTILE), picture=False).read_text(
        encoding="utf-8"
    )
    hostile = Tags(page)
    assert set(hostile.names) == set(plain.names)
    assert {name for name, _ in hostile.attributes} == {name for name, _ in plain.attributes}
    assert hostile.names.count("script") == 2
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "http:" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https:" not in page


def test_a_page_that_loads_nothing(tmp_path: Path) -> None:
    tags = Tags(write_report(make_run(tmp_path / "run"), picture=False).read_text(encoding="utf-8"))
    policy = next(
        value for name, value in tags.attributes if name == "content" and "default-src" in (value or "")
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not {"src", "href", "srcset", "style", "onload"} & {name for name, _ in tags.attributes}


def test_an_older_run_has_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "old")
    for name in ("run.json", "samples.jsonl", "preview.txt"):
        (folder / name).unlink()
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert "Learning rate" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_run_without_a_line_yet(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_steps=1)
    (folder / "metrics.jsonl").unlink()
    assert "No step has been logged yet" in write_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["warnings", "model", "parameters", "trained", "host", "sessions", "data"])
def test_a_record_of_other_values_costs_its_part(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    record["model"] = model = {"parameters": 7, "trained": 5}
    for value in (None, 3, -0.5, "text", ["text"], [[]], {"a": []}, 10**30):
        (model if name in model else record)[name] = value
        (folder / "run.json").write_text(json.dumps(record))
        assert "</html>" in write_report(folder, picture=False).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "config.yaml", "run.json", "preview.txt"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"[" * 5000, b"{}\n3\n\n[1]\n", b'{"tune_run": 1, "sessions": 2}']
)
def test_a_damaged_file_costs_its_part(tmp_path: Path, name: str, content: bytes) -> None:
    folder = make_run(tmp_path / "run")
    (folder / name).write_bytes(content)
    assert "</html>" in write_report(folder, picture=False).read_text(encoding="utf-8")


def test_a_link_is_not_followed_into_the_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    private = tmp_path / "private.txt"
    private.write_text("--- example 0 ---\nwhat nobody is to see\n")
    (folder / "preview.txt").unlink()
    (folder / "preview.txt").symlink_to(private)
    assert "nobody is to see" not in write_report(folder, picture=False).read_text(encoding="utf-8")


def test_numbers_that_no_screen_has(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_steps=3)
    odd = ["nan", "inf", 1e308, -1e308, 10**400, None, True, [1], 0, -0.0, 5e-324]
    rows = [{"step": 4 + number, "loss": value, "lr": value} for number, value in enumerate(odd)]
    rows += [{"step": "5", "loss": 1}, {"step": -3, "loss": 1}, {"step": 2**70, "loss": 1}]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "The loss was no number in 2 of the lines read, first at step 4." in page
    curves = re.search(r'id="curves">(.*?)</script>', page)
    assert curves
    assert "NaN" not in curves[1]


def test_somebody_elses_page_is_left_alone(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "report.html").write_text("<p>mine</p>")
    with pytest.raises(TuneError, match=r"none of tune's reports"):
        write_report(folder)
    assert (folder / "report.html").read_text() == "<p>mine</p>"
    (folder / "report.html").unlink()
    (folder / "loss_curve.png").write_bytes(PNG)
    with pytest.raises(TuneError, match=r"loss_curve.png is none"):
        write_report(folder)


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError):
        read_run(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert main(["report"]) == 2
    assert capsys.readouterr().err.count("error:") == 3


def test_a_saved_step_stands_for_its_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "step_000020" / "model").mkdir(parents=True)
    assert main(["report", str(folder / "step_000020" / "model")]) == 0
    assert (folder / "report.html").is_file()


def test_runs_beside_one_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / name / "run", lr=lr) for name, lr in (("a", 0.1), ("b", 0.25))]
    out = tmp_path / "both.html"
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    text = Tags(out.read_text(encoding="utf-8")).text
    assert "a/run" in text  # the names tell them apart
    assert "optimizer.lr0.10.25" in text
    assert "clip_grad_norm" not in text
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "no" / "x.html")]) == 2


def write_evaluation(run: Path, name: str, scores: dict[str, float], **told: object) -> None:
    folder = run / "evaluations" / name
    folder.mkdir(parents=True)
    given = {key: {"value": value, "low": value - 0.25, "high": value + 0.1} for key, value in scores.items()}
    result = {
        "tune_evaluation": 1,
        "all": {"num_examples": 40, "scores": given},
        "shares": ["exact_match"],
        **told,
    }
    (folder / "scores.json").write_text(json.dumps(result))


def test_evaluations_of_runs_stand_side_by_side(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in "abc"]
    held = {"data": "held<1>.jsonl", "data_id": "0a"}
    write_evaluation(runs[0], "step_000010_held_0a", {"loss": 9.0}, **held, time="2025-01-01")
    write_evaluation(
        runs[0], "step_000020_held_0a", {"loss": 2.5, "exact_match": 0.5}, **held, time="2025-01-02"
    )
    write_evaluation(runs[1], "step_000020_held_0a", {"loss": 2.25, "exact_match": 0.8}, **held)
    write_evaluation(
        runs[1], "step_000020_held", {"loss": 1.0}, data="held<1>.jsonl"
    )  # another file of this name
    out = tmp_path / "page.html"
    write_comparison(runs[:2], out)
    text = Tags(out.read_text(encoding="utf-8")).text
    assert "abdifferenceloss2.5000 (2.2500 to 2.6000)2.2500 (2.0000 to 2.3500)-0.2500" in text
    assert "exact_match50.0% (25.0% to 60.0%)80.0% (55.0% to 90.0%)+30.0%examples4040" in text
    assert text.count("held<1>.jsonl") == 1
    write_evaluation(runs[2], "step_000020_held_0a", {"loss": 3.0}, **held, is_complete=False)
    write_comparison(runs, out)
    text = Tags(out.read_text(encoding="utf-8")).text
    assert "abcb less ac less a" in text
    assert "interrupted" in text
    for odd in (
        None,
        [],
        {"all": 3},
        {"all": {"scores": {"loss": {"value": "x"}}}, "shares": 1},
        {"data": [1]},
    ):
        file = runs[2] / "evaluations" / "step_000020_held_0a" / "scores.json"
        file.write_text(json.dumps({"tune_evaluation": 1, **held, **odd} if isinstance(odd, dict) else odd))
        write_comparison(runs, out)
        assert "</html>" in out.read_text(encoding="utf-8")


def test_many_further_curves_are_folded_up(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_steps=3)
    rows = [{"step": step, **{f"own_{n}": step * n for n in range(240)}} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(folder, picture=False).read_text(encoding="utf-8")
    seen, _, folded = page.partition("further curves")
    assert [part.count('<svg class="chart"') for part in (seen, folded)] == [
        13,
        200,
    ]  # the first one is drawn twice
    assert "228 further curves, of which 200 are drawn" in page
    numbers = re.findall(r'data-chart="(\d+)"', page)
    assert numbers == [str(number) for number in range(213)]


def test_spikes_and_validations_survive_thinning(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.jsonl", 20_000)
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    spike = json.loads(lines[12_345]) | {"loss": 55.5}
    lines[12_345] = json.dumps(spike).encode()
    kept = [json.loads(line) for line in thin_lines(lines)]
    assert len(kept) <= 1.2 * MAX_ROWS
    assert spike in kept
    steps = [row["step"] for row in kept]
    assert steps == sorted(set(steps))
    assert steps[0] == 1
    assert steps[-1] == 20_000
    assert sum("val_loss" in row for row in kept) >= 200
    assert thin_lines(lines[:100]) == lines[:100]


def test_settings_and_their_origins() -> None:
    text = (
        'a: "x  # y"  # command line: a=x  # y\nb:\n  - _component_: p.q  # f.yaml:2\n    c: 1  # default\n'
        "d: [1, 2]  # default\nhub_token: abc  # command line: hub_token=abc\n"
    )
    settings = {setting.name: (setting.value, setting.origin) for setting in read_settings(text)}
    assert settings == {
        "a": ('"x  # y"', "command line: a=x  # y"),
        "b.0._component_": ("p.q", "f.yaml:2"),
        "b.0.c": ("1", "default"),
        "d": ("[1, 2]", "default"),
        "hub_token": ("***", "***"),
    }
    assert [each.name for each in changed_settings(read_settings(text))] == [
        "a",
        "b.0._component_",
        "hub_token",
    ]
    other = read_settings(text.replace("c: 1", "c: 2"))
    assert differing_settings([read_settings(text), other]) == [("b.0.c", ["1", "2"])]


@pytest.mark.parametrize(
    "values", [[0.0], [3.0, 3.0], [-1.0, 1.0], [1e-9, 1e9], [-5.0, -5.0], [0.0, 1e-30], [1e12, 2e12]]
)
def test_axes_of_any_numbers(values: list[float]) -> None:
    svg, about = draw_chart(Chart("x", [Line("y", list(enumerate(values)))]), 0, 420, 240)
    places = [float(place) for place in re.findall(r'c[xy]="(-?[\d.]+)"', svg)]
    assert len(places) == 2 * len(values)
    assert all(0 <= place <= 420 for place in places)
    assert svg.count('class="tick"') >= 3
    assert about["lines"][0]["points"] == [[step, value] for step, value in enumerate(values)]


def test_short_numbers() -> None:
    assert [short_number(each) for each in (0, 0.02, 2e-5, 1500, 2.5e9, -3)] == [
        "0",
        "0.02",
        "2e-05",
        "1.5k",
        "2.5G",
        "-3",
    ]


def test_without_a_plotting_library_there_is_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run")
    monkeypatch.setattr("tune.report.page.find_spec", lambda name: None)
    assert write_report(folder).is_file()
    assert not (folder / "loss_curve.png").exists()


def test_the_command_line_starts_without_a_plotting_library() -> None:
    script = "import sys, tune.report, tune.cli.main; print([m for m in ('matplotlib', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "matplotlib" not in done.stdout
