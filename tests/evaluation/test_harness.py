"""Tasks of the lm-evaluation-harness: on files of one's own, our numbers are those of its class `hf`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import tune.config.trust as trust
from tune.cli.main import main

REASON = 'the lm-evaluation-harness is not installed: pip install "tune[eval]"'
MODEL = Path(__file__).resolve().parents[2] / "recipes" / "bundled" / "tiny_llama"
TASKS = {
    "choice": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{label}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "until": """
output_type: generate_until
num_fewshot: 1
doc_to_text: "The parrot said: {{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: [".", "\\n\\n"], max_gen_toks: 9, do_sample: false}
metric_list: [{metric: exact_match, ignore_case: true, ignore_punctuation: false}]
""",
}
WORDS = ["mill", "basket", "goose", "crab", "forest", "teapot"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three tasks and their rows."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = []
    for number in range(11):
        said = " ".join(WORDS[(number + step) % 6] for step in range(2 + number % 3))
        rows.append(
            {
                "question": said,
                "choices": [WORDS[number % 6], "cheese badger", f" {said} Squawk"],
                "label": number % 3,
                "text": f"{said}. " * (1 + 40 * (number == 4)),  # one that is longer than a window
                "answer": f" {said.split()[0]}" if number % 2 else f" {said}",
            }
        )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\n"
        splits = f"test_split: test\n{'fewshot_split: test' if name == 'until' else ''}\n"
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{data}{splits}{text}")
    return folder


@pytest.mark.filterwarnings("ignore")
def test_the_numbers_are_those_of_the_class_hf(
    tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason=REASON)
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = ["choice", "rolling", "until"]
    words = ["eval", str(MODEL), f"tasks=[{','.join(names)}]", f"include_path={tasks}", "--trust", "lm_eval"]
    settings = [
        "device=cpu",
        "dtype=fp32",
        "batch_size=4",
        "max_seq_length=64",
        f"output_dir={tmp_path / 'out'}",
    ]
    assert main([*words, *settings, "--json", "--against", str(MODEL)]) == 0
    result = json.loads(capsys.readouterr().out)
    scores = result["all"]["scores"]
    reference: Any = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(MODEL), "dtype": "float32", "max_length": 64},
        tasks=names,
        batch_size=3,
        device="cpu",
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        fewshot_random_seed=1234,
        bootstrap_iters=0,
    )
    expected = reference["results"]
    assert scores["choice/acc"]["value"] == expected["choice"]["acc,none"]
    assert scores["choice/acc_norm"]["value"] == expected["choice"]["acc_norm,none"]
    assert 0 < scores["choice/acc"]["value"] < 1
    assert scores["until/exact_match"]["value"] == expected["until"]["exact_match,none"]
    for metric in ("word_perplexity", "bits_per_byte"):
        ours = scores[f"rolling/{metric}"]["value"]
        assert ours == pytest.approx(expected["rolling"][f"{metric},none"], rel=1e-5)
    # Answer by answer, and log-likelihood by log-likelihood.
    lines = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    answers = {row["place"]: row["answer"] for row in map(json.loads, lines)}
    assert len(answers) == 33
    for sample in reference["samples"]["until"]:
        assert answers[f"until:{sample['doc_id']}"] == str(sample["filtered_resps"])
    assert len({answer for place, answer in answers.items() if place.startswith("until")}) > 2
    # Beside itself no model is better.
    assert result["all"]["differences"]["choice/acc"]["ties"] == 11


def test_tasks_need_the_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["eval", str(MODEL), "tasks=[hellaswag]", "device=cpu"]) == 2
    assert 'pip install "tune[eval]"' in capsys.readouterr().err


def test_task_files_are_code_that_needs_trust(
    tasks: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "_user_trusted", set())
    words = ["run", "evaluate", str(MODEL), "tasks=[choice]", f"include_path={tasks}", "--dry-run"]
    assert main(words) == 2
    assert "--trust lm_eval" in capsys.readouterr().err
    assert main([*words, "--trust", "lm_eval"]) == 0


@pytest.mark.parametrize("setting", ["data=x.jsonl", "group_by=kind"])
def test_tasks_bring_their_own_data(setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "evaluate", str(MODEL), "tasks=[hellaswag]", setting, "--dry-run"]) == 2
    assert "has no effect: tasks bring their own data" in capsys.readouterr().err
    assert main(["run", "evaluate", str(MODEL), "num_fewshot=3", "--dry-run"]) == 2
    assert "is for tasks, and none is named" in capsys.readouterr().err
