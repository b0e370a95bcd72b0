"""A stranger's file does not choose where a run writes, and reads no secret out of the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune.config import resolve
from tune.recipes.params.full_finetune import FullFinetuneParams
from tune.recipes.params.generate import GenerateParams
from tune.utils.paths import get_recipes_dir

BASE = "dataset: {_component_: alpaca}\nlr: 1e-3\nmodel_checkpoint: m\n"
JSONL = "tune.training.metric_logging.JSONLLogger"


def _codes(text: str, *overrides: str, output_dir: str = "out") -> list[tuple[str, str]]:
    whole = f"{BASE}output_dir: {output_dir}\n{text}\n"
    resolution = resolve(FullFinetuneParams, text=whole, overrides=overrides)
    assert all(item.source.line or item.source.kind == "cli" for item in resolution.errors)
    return [(item.code, item.path) for item in resolution.errors]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (f"metric_logger: {{_component_: {JSONL}, log_dir: /any, overwrite: true}}", "metric_logger.log_dir"),
        ("metric_logger: {_component_: disk, log_dir: elsewhere}", "metric_logger.log_dir"),
        ("metric_logger: {_component_: disk, log_dir: ../out}", "metric_logger.log_dir"),
        ("metric_logger: {_component_: disk, log_dir: out/../x}", "metric_logger.log_dir"),
        ("metric_logger: {_component_: disk, log_dir: '${output_dir}/../x'}", "metric_logger.log_dir"),
        ("metric_logger: {_component_: disk, log_dir: out2}", "metric_logger.log_dir"),
        ("metric_logger: {_component_: disk, log_dir: ~/x}", "metric_logger.log_dir"),
        ("metric_logger: {_component_: wandb, log_dir: /any}", "metric_logger.log_dir"),
        ("metric_logger: {_component_: tensorboard, log_dir: /any}", "metric_logger.log_dir"),
        ("profiler: {_component_: setup_torch_profiler, output_dir: traces}", "profiler.output_dir"),
        ("data_cache_dir: /any", "data_cache_dir"),
        ("data_cache_dir: ~/.ssh", "data_cache_dir"),
    ],
)
def test_a_file_chooses_no_place_outside(text: str, path: str) -> None:
    assert _codes(text) == [("writes-outside", path)]


def test_the_person_at_the_command_line_does() -> None:
    assert _codes("", "metric_logger={_component_: disk, log_dir: /any}") == []
    assert _codes("metric_logger: {_component_: disk, log_dir: /any}", "metric_logger.log_dir=/other") == []
    assert _codes("", "profiler={_component_: setup_torch_profiler, output_dir: traces}") == []
    assert _codes("", "output_dir=/any/where") == []
    assert _codes("", "data_cache_dir=/any/where") == []
    for fine in ("off", "''", "null", "out/cache"):
        assert _codes(f"data_cache_dir: {fine}") == []
    # What the file says of another folder does not follow.
    inside = "metric_logger: {_component_: disk, log_dir: out/logs}"
    assert _codes(inside) == []
    assert _codes(inside, "output_dir=mine") == [("writes-outside", "metric_logger.log_dir")]


def test_the_forms_of_torchtunes_configs_stay_valid() -> None:
    text = (
        "metric_logger: {_component_: torchtune.training.metric_logging.DiskLogger, log_dir: '${output_dir}/logs'}\n"
        "profiler: {_component_: torchtune.training.setup_torch_profiler, output_dir: '${output_dir}/profiling'}\n"
        "checkpointer: {_component_: torchtune.training.FullModelHFCheckpointer, checkpoint_dir: m, "
        "output_dir: /tmp/elsewhere}"
    ).replace("checkpoint_dir: m, ", "")
    assert _codes(text, output_dir="/tmp/torchtune/run") == []


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "..", ".", "''", "a\\b"])
def test_a_loggers_filename_is_a_bare_name(name: str) -> None:
    found = _codes(f"metric_logger: {{_component_: disk, filename: {name}}}")
    assert found == [("bad-path", "metric_logger.filename")]
    name = name.strip("'")
    assert _codes("metric_logger: disk", f"metric_logger.filename={name}") == found


@pytest.mark.parametrize(
    "place",
    [
        *(
            "/",
            "//",
            "/tmp/..",
            "bundled:x",
            "bundled:tiny_llama/a",
            "bundled:../..",
            "~nosuchuser/x",
            "$HOME/x",
        ),
        *("${oc.env:HOME}/../../..", "/data/$USER/x", "'a\0b'", str(get_recipes_dir() / "x")),
    ],
)
def test_output_dirs_that_nobody_means(place: str) -> None:
    place = place.strip("'")
    assert [code for code, _ in _codes("", f"output_dir={place}")] in ([["bad-path"], ["bad-encoding"]])


def test_the_home_is_chosen_by_its_owner_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "me").mkdir()
    for place in ("~/", str(tmp_path), str(tmp_path / "me")):
        assert _codes("", output_dir=place) == [("writes-outside", "output_dir")]
        assert _codes("", f"output_dir={place}") == []
    monkeypatch.chdir(tmp_path / "me")
    assert _codes("", output_dir=".") == [("writes-outside", "output_dir")]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert _codes("", output_dir=".") == []


def test_generate_writes_answers_where_it_is_run() -> None:
    text = "model_checkpoint: m\nprompt: p\noutput_file: {}\n"
    for file, codes in (
        ("a.jsonl", []),
        ("b/a.jsonl", []),
        ("/any/x", ["writes-outside"]),
        ("../x", ["writes-outside"]),
    ):
        found = resolve(GenerateParams, text=text.format(file))
        assert [item.code for item in found.errors] == codes
    assert resolve(GenerateParams, text=text.format("x"), overrides=["output_file=/any/x"]).ok


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("HF_TOKEN", "x"), ("WANDB_API_KEY", "x"), ("AWS_SECRET_ACCESS_KEY", "x"), ("DB_PASSWORD", "x")),
        *(
            ("MINE", "hf_abcdefghijklmnopqrstu"),
            ("PROXY", "http://me:secret@host:1"),
            ("COPY", "the token's value"),
        ),
        ("HF_TOKEN", None),
    ],
)
def test_secrets_are_not_read(name: str, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_TOKEN", "the token's value")
    monkeypatch.delenv(name, raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)
    for text in (f"sample_prompts: ['${{oc.env:{name}}}']", f"sample_prompts: ['a ${{oc.env:{name},no}} b']"):
        resolution = resolve(
            FullFinetuneParams, text=f"{BASE}output_dir: o\ngenerate_every_n_steps: 1\n{text}\n"
        )
        assert [item.code for item in resolution.errors] == ["secret-variable"]
        assert value is None or len(value) < 2 or value not in resolution.report()


def test_other_variables_are_typed_by_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("STEPS", "7")
    monkeypatch.delenv("UNSET", raising=False)
    text = (
        BASE + "output_dir: ${oc.env:HOME}/out\nsave_every_n_steps: ${oc.env:STEPS}\n"
        "batch_size: ${oc.env:UNSET,3}\nseed: ${oc.env:UNSET,null}\n"
    )
    params = resolve(FullFinetuneParams, text=text).params
    assert params is not None
    assert (params.output_dir, params.save_every_n_steps) == ("/home/me/out", 7)
    assert (params.batch_size, params.seed) == (3, None)
    wrong = resolve(FullFinetuneParams, text=BASE + "output_dir: ${oc.env:UNSET}/x\nseed: ${HOME}\n")
    assert [(item.code, item.suggestion) for item in wrong.errors] == [
        ("dangling-reference", None),
        ("dangling-reference", "${oc.env:HOME}"),
    ]
