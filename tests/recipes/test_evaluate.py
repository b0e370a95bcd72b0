"""Scores of a run: its loss is the one that it validated on itself, and it is asked as it was taught."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.distributed.launching import launch
from tune import evaluation, models
from tune.cli.main import main
from tune.datasets import instruct_dataset
from tune.errors import ConfigError, DataError, TuneError
from tune.evaluation import metrics
from tune.generation import generate
from tune.models.llama2 import llama2_tokenizer
from tune.recipes.evaluate import recipe_main
from tune.recipes.full_finetune import recipe_main as train
from tune.recipes.params.evaluate import EvaluateParams
from tune.recipes.params.full_finetune import FullFinetuneParams

RUN = "evaluations/step_000006_validation"


@pytest.fixture(scope="module")
def trained(
    run_values_in: Callable[[Path], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run of six steps that validates on five of its 23 examples; step 2 is saved, too."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    values = run_values_in(folder) | {"val_split": 5, "save_every_n_steps": 2, "model": MODEL}
    assert train(FullFinetuneParams(**values)) == 0
    return folder


MODEL = {
    "_component_": "tune.models.llama2.llama2",
    "vocab_size": 600,
    "num_layers": 1,
    "num_heads": 2,
    "embed_dim": 24,
    "intermediate_dim": 40,
    "max_seq_len": 64,
}


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run, to write into."""
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def score(folder: Path, **changes: Any) -> int:
    settings = {"device": "cpu", "dtype": "fp32", "max_new_tokens": 7, "log_level": "WARNING", **changes}
    return recipe_main(EvaluateParams(model_checkpoint=str(folder), **settings))


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    return found


def folder_of(run: Path, data: str) -> Path:
    """Return the folder of the evaluation of the last step on data of that name."""
    (found,) = (run / "evaluations").glob(f"step_000006_{data}_*")
    return found


def answers_of(folder: Path, name: str = "answers.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_the_loss_is_that_of_the_run_itself(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(run, metrics=None) == 0
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    scores = result_of(run / RUN)["all"]["scores"]
    assert scores["loss"]["value"] == pytest.approx(logged["val_loss"], rel=1e-6)
    assert scores["perplexity"]["value"] == pytest.approx(logged["val_perplexity"], rel=1e-6)
    out = capsys.readouterr().out
    assert out.startswith("5 examples of ")
    assert f"{logged['val_loss']:.4f}" in out
    assert not (run / RUN / "answers.jsonl").exists()
    assert f"{logged['val_loss']:.4f}</td>" in (run / "report.html").read_text()


def test_neither_batch_nor_packing_changes_a_loss(
    run: Path, data_file: Path, spm_file: Path, tmp_path: Path
) -> None:
    found = []
    for number, (size, packed) in enumerate([(1, False), (23, False), (4, True)]):
        dataset = {"_component_": "instruct", "source": str(data_file), "packed": packed, "max_seq_len": 60}
        output = tmp_path / str(number)
        assert score(run, dataset=dataset, batch_size=size, output_dir=str(output)) == 0
        found.append(sorted(answers_of(output), key=lambda row: row["place"]))
    for one, *others in zip(*found, strict=True):
        for other in others:
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
            assert (other["answer"], other["num_targets"]) == (one["answer"], one["num_targets"])
    tokenizer = llama2_tokenizer(str(spm_file))
    item = instruct_dataset(tokenizer, source=str(data_file))[0]
    logits = models.from_checkpoint(run / "latest" / "model")(torch.tensor([item["tokens"]]))[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(item["labels"][1:]), reduction="sum")
    row = next(row for row in found[0] if row["place"].endswith(".jsonl:1"))
    assert row["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_answers_are_to_what_was_taught(
    run: Path, data_file: Path, spm_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("exact_match", {"_component_": "rouge_l", "beta": 2.0})
    assert score(run, data=str(data_file), metrics=chosen, limit=11, json=True, batch_size=3) == 0
    result = json.loads(capsys.readouterr().out)
    rows = answers_of(folder_of(run, "questions"))
    source = [json.loads(line) for line in data_file.read_text().splitlines()][:11]
    model = models.from_checkpoint(run / "latest" / "model")
    tokenizer = llama2_tokenizer(str(spm_file))
    dataset = instruct_dataset(tokenizer, source=str(data_file))
    for row, given in zip(rows, source, strict=True):
        assert row["values"] == given
        assert row["reference"] == given["answer"]
        asked = dataset.render_prompt(given["question"])
        ids = tokenizer.encode(asked, add_eos=False)
        answer = generate(model, ids, max_new_tokens=7, stop_ids=sorted(tokenizer.stop_ids))
        assert row["answer"] == tokenizer.decode(answer).strip()
        assert row["num_tokens"] == len(answer)
        assert row["scores"] == {
            "exact_match": metrics.exact_match(row["answer"], given["answer"]),
            "rouge_l": metrics.rouge_l(row["answer"], given["answer"], beta=2.0),
        }
    mean = sum(row["scores"]["rouge_l"] for row in rows) / 11
    found = result["all"]["scores"]["rouge_l"]
    low, high = evaluation.mean_interval([row["scores"]["rouge_l"] for row in rows], seed=1234)
    assert found == {"value": pytest.approx(mean), "count": 11, "low": low, "high": high}
    assert result["is_complete"]


def test_processes_share_the_work_and_change_nothing(run: Path, data_file: Path, tmp_path: Path) -> None:
    settings = [str(run), f"data={data_file}", "--against", str(run / "step_000002"), "batch_size=3"]
    settings += ["metrics=[exact_match,rouge_l]", "device=cpu", "max_new_tokens=5", "temperature=0.7"]
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # how sums are rounded
    try:
        assert main(["eval", *settings, f"output_dir={tmp_path / 'one'}"]) == 0
    finally:
        torch.set_num_threads(before)
    done = launch(2, "evaluate", *settings, f"output_dir={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("23 examples of ")  # once
    assert done.stdout.count("before    after") == 1
    one, two = (result_of(tmp_path / name) for name in ("one", "two"))
    assert one | {"time": ""} == two | {"time": ""}
    for name in ("answers.jsonl", "answers_before.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_data_of_one_name_has_folders_of_its_own(run: Path, data_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / data_file.name
    other.parent.mkdir()
    shutil.copy(data_file, other)
    for rows in (data_file, other, data_file.parent / "." / data_file.name):
        assert score(run, data=str(rows), metrics=None, limit=2) == 0
    folders = sorted((run / "evaluations").glob("step_000006_questions_*"))
    assert {result_of(folder)["data"] for folder in folders} == {str(data_file), str(other)}
    assert len(folders) == 2
    # And models of one name that no run is known of.
    for number, model in enumerate((tmp_path / "a/model", tmp_path / "b/model")):
        shutil.copytree(run / "latest" / "model", model)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            dataset = {"_component_": "instruct", "source": str(data_file)}
            assert score(model, dataset=dataset, metrics=None, limit=2) == 0
        assert len(list((tmp_path / "out/evaluations").glob("model_questions_*"))) == number + 1


def test_two_models_side_by_side_by_group(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question": f"walk {n}", "answer": "the other side", "kind": "<b>" if n % 3 else "other"}
        for n in range(7)
    ]
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", str(run), f"data={held}", "--against", str(run / "step_000002"), "group_by=kind"]
    assert main([*words, "device=cpu", "max_new_tokens=3"]) == 0
    out, folder = capsys.readouterr().out, folder_of(run, "held")
    result, firsts, seconds = (
        result_of(folder),
        answers_of(folder, "answers_before.jsonl"),
        answers_of(folder),
    )
    found = result["all"]["differences"]["loss"]
    sums = [
        sum(row["loss"] for row in each) / sum(row["num_targets"] for row in each)
        for each in (firsts, seconds)
    ]
    assert found["difference"] == pytest.approx(sums[1] - sums[0], abs=1e-9)
    assert found["wins"] == sum(
        one["loss"] > other["loss"] for one, other in zip(firsts, seconds, strict=True)
    )
    assert result["all"]["before"]["loss"]["value"] == pytest.approx(sums[0])
    assert [result["groups"][name]["num_examples"] for name in ("<b>", "other")] == [4, 3]
    assert "the interval contains zero, so 7 examples do not tell" in out  # none is right with either
    assert "By kind" in out
    assert "&lt;b&gt;" in (run / "report.html").read_text()
    # The same data again, for the loss alone: nothing stays that the new scores are not of.
    assert main(["eval", str(run), f"data={held}", "metrics=null", "device=cpu"]) == 0
    assert [path.name for path in folder.iterdir()] == ["scores.json"]


def test_an_interrupted_evaluation_keeps_its_answers(
    run: Path, data_file: Path, own_metrics: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    own_metrics.left = 7
    words = [
        "eval",
        str(run),
        f"data={data_file}",
        "metrics=own_metrics.until_ctrl_c",
        "--trust",
        "own_metrics",
    ]
    assert main([*words, "batch_size=4", "device=cpu", "max_new_tokens=3"]) == 130
    folder = folder_of(run, "questions")
    assert len(answers_of(folder)) >= 4
    result = result_of(folder)
    assert not result["is_complete"]
    assert result["all"]["scores"]["own_metrics.until_ctrl_c"]["count"] == 7
    assert "Interrupted: 7 of 23 examples were answered." in capsys.readouterr().out


@pytest.fixture
def own_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Functions of one's own, in a package of their own."""
    lines = [
        "left = 0",
        "def until_ctrl_c(answer: str, reference: str) -> float:",
        "    global left",
        "    left -= 1",
        "    if left < 0:",
        "        raise KeyboardInterrupt",
        "    return 0.5",
        "def broken(answer: str, reference: str) -> float:",
        "    return answer.index('never there')",
    ]
    (tmp_path / "own_metrics.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    import own_metrics

    yield own_metrics
    del sys.modules["own_metrics"]


def test_a_metric_of_ones_own_is_named_when_it_fails(
    run: Path, own_metrics: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(run), "metrics=own_metrics.broken", "--trust", "own_metrics", "device=cpu"]) == 1
    assert "the metric own_metrics.broken fails on the answer" in capsys.readouterr().err
    assert main(["eval", str(run), "metrics=os.system"]) == 2
    assert "os.system lies in the package os, which is not trusted" in capsys.readouterr().err


def test_what_cannot_be_scored_says_so(run: Path, data_file: Path, tmp_path: Path) -> None:
    for wrong, error, message in (
        (
            {"group_by": "kind"},
            ConfigError,
            "group_by=kind: .*:1 has no such column; it has question, answer",
        ),
        ({"against": "base"}, ConfigError, "against=base needs a run that began with a model"),
    ):
        with pytest.raises(error, match=message):
            score(run, data=str(data_file), **wrong)
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "river walk"}\n')
    bare = {"_component_": "text_completion", "source": str(text)}
    with pytest.raises(ConfigError, match="no example asks anything"):
        score(run, dataset=bare)
    assert score(run, dataset=bare, metrics=None) == 0
    with pytest.raises(ConfigError, match="no run is known that trained this model: give held-out rows"):
        score(Path(shutil.copytree(run / "latest" / "model", tmp_path / "elsewhere")))
    (tmp_path / "scores.json").write_text("{}")
    with pytest.raises(DataError, match=r"scores\.json holds no scores of ours"):
        score(run, output_dir=str(tmp_path))


def test_weights_that_are_no_numbers_end_it(run: Path, data_file: Path) -> None:
    folder = Path(shutil.copytree(run / "latest" / "model", run.parent / "broken"))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][:] = 3e38
    save_file(tensors, file, metadata={"format": "pt"})
    settings = {"data": str(data_file), "limit": 5, "output_dir": str(run.parent / "out")}
    with pytest.raises(TuneError, match="the loss of 5 of 5 examples is no number, first of "):
        score(folder, **settings)
    with pytest.raises(TuneError, match="the model's logits are not finite"):
        score(folder, compute_loss=False, **settings)


def test_a_prompt_without_room_counts_as_wrong(run: Path, tmp_path: Path) -> None:
    rows = [{"question": "walk " * 70, "answer": "river"}, {"question": "walk", "answer": "river"}]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score(run, data=str(tmp_path / "long.jsonl"), compute_loss=False) == 0
    first, _ = answers_of(folder_of(run, "long"))
    assert (first["answer"], first["stop_reason"], first["scores"]) == (
        "",
        "prompt_too_long",
        {"exact_match": 0.0},
    )


def test_what_is_left_out_or_cut_is_told(run: Path, tmp_path: Path) -> None:
    rows = [{"question": "walk", "answer": "river " * n} for n in (1, 2, 90, 0)]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        DataError, match=r"mixed\.jsonl:4: .*(\n.*)+goes with dataset=instruct dataset\.source="
    ):
        score(run, data=str(tmp_path / "mixed.jsonl"), metrics=None)
    dataset = {"_component_": "instruct", "source": str(tmp_path / "mixed.jsonl"), "on_bad_rows": "drop"}
    for settings, told in (
        ({"max_seq_len": 30, "on_too_long": "drop"}, "1 example was left out, being longer"),
        ({"max_seq_len": 60}, "The answer of 1 example may be cut"),
    ):
        assert (
            score(run, dataset={**dataset, **settings}, metrics=None, output_dir=str(tmp_path / "out")) == 0
        )
        notes = result_of(tmp_path / "out")["notes"]
        assert [note.split(": ")[0] for note in notes] == [
            "1 row was left out, first",
            notes[1].split(": ")[0],
        ]
        assert told in notes[1]


def test_options_with_dashes_stand_for_parameters(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["run", "evaluate", str(tmp_path), "--dry-run"]
    for given, shown in (
        (["--against", "base", "--json"], ["against: base", "json: true"]),
        (["--json", "data=x.jsonl", "--against=DIR"], ["against: DIR", "json: true", "data: x.jsonl"]),
    ):
        assert main([*words, *given]) == 0
        out = capsys.readouterr().out
        assert all(each in out for each in shown)
    assert main(["eval", "--json", str(tmp_path), "--dry-run"]) == 0  # the folder is not the switch's value
    assert f"checkpoint_dir: {tmp_path}" in capsys.readouterr().out
    assert main([*words, "--against"]) == 2
    assert "--against needs a value" in capsys.readouterr().err
    assert main(["generate", str(tmp_path), "prompt=x", "--json"]) == 2
