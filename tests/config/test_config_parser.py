"""TuneArgumentParser in both its forms, `parse`, and the process around them."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

import tune.config
from tune import utils
from tune.config import TuneArgumentParser, json_schema, log_config, parse, resolution_of
from tune.config.diagnostics import Diagnostic
from tune.config.params import check_params, param
from tune.config.recipe_main import params_class_of
from tune.config.slots import OPTIMIZER
from tune.errors import TrainingError

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Params:
    """Parameters of a test."""

    output_dir: str = param("", required=True, help="Where to.")
    batch_size: int = param(2, minimum=1, help="Sequences.", group="Data")
    optimizer: tune.config.Component = param("SGD", slot=OPTIMIZER, help="Optimizer.")
    lr: float | None = param(None, short_for="optimizer.lr", help="Rate.")

    def __post_init__(self) -> None:
        check_params(self)

    def cross_checks(self) -> Iterator[Diagnostic]:
        return iter(())


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "c.yaml"
    path.write_text("recipe: mine\noutput_dir: out\nbatch_size: 3\nlr: 2e-5\n")
    return str(path)


def test_it_is_an_argparse_parser_where_old_recipes_look() -> None:
    assert issubclass(TuneArgumentParser, argparse.ArgumentParser)
    assert utils.TuneArgumentParser is TuneArgumentParser


def test_the_historic_form_gives_plain_values(config: str) -> None:
    parser = utils.TuneArgumentParser(
        description="Historic.", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args, rest = parser.parse_known_args(
        [
            "lr=1e-4",
            "--config",
            config,
            "--override",
            "a.b=yes",
            "flag=true",
            "--override",
            "n=010",
            "seed=null",
        ]
    )
    assert vars(args) == {
        "output_dir": "out",
        "batch_size": 3,
        "lr": 1e-4,
        "a": {"b": "yes"},
        "flag": True,
        "n": 10,
        "seed": None,
    }
    assert rest == []


def test_the_historic_recipe_snippet(tmp_path: Path) -> None:
    script = tmp_path / "custom_recipe.py"
    script.write_text(
        textwrap.dedent(
            """\
            import argparse
            from dataclasses import dataclass, fields
            from tune import utils

            @dataclass
            class MyParams:
                model: str = None
                lr: float = None

                def __post_init__(self):
                    for field in fields(self):
                        if getattr(self, field.name) is None:
                            raise TypeError(f"{field.name} needs to be set")

            parser = utils.TuneArgumentParser(
                description="Custom.", formatter_class=argparse.RawDescriptionHelpFormatter
            )
            args, _ = parser.parse_known_args()
            params = MyParams(**vars(args))
            print(params)
            """
        )
    )
    (tmp_path / "c.yaml").write_text("model: llama2_7b\nlr: 2e-5\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return start(str(script), *arguments, cwd=tmp_path)

    done = run("--config", "c.yaml", "--override", "lr=3e-4")
    assert (done.returncode, done.stdout) == (0, "MyParams(model='llama2_7b', lr=0.0003)\n"), done.stderr
    assert run("model=x").returncode == 1
    assert "TypeError: lr needs to be set" in run("model=x").stderr
    bad = run("--config", "c.yaml", "--override", "lr")
    assert bad.returncode == 2
    assert "override-without-value" in bad.stderr
    assert "Traceback" not in bad.stderr


@dataclass
class Plain:
    lr: float
    model: str = "llama2_7b"
    tags: list[str] | None = None


def test_a_plain_dataclass_gets_typed_values(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("lr: 1\nmodel: 1.10\n")
    parser = TuneArgumentParser(params=Plain)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args(["--config", str(tmp_path / "c.yaml"), "tags=[a, b]", "steps=5"])
    assert args.steps == 5
    del args.steps
    assert Plain(**vars(args)) == Plain(lr=1.0, model="1.10", tags=["a", "b"])


def test_what_a_plain_dataclass_cannot_take_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("modell: llama2_7b\ntags: 3\n")
    with pytest.raises(SystemExit) as caught:
        TuneArgumentParser(params=Plain).parse_args(["--config", str(file)])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "there is no parameter 'modell'; did you mean model?" in said
    assert f"{file}:1:1" in said
    assert "tags takes a list of texts or null, not '3'" in said
    assert "lr is required" in said
    # An option of the script's own may be what sets a field.
    parser = TuneArgumentParser(params=Plain)
    parser.add_argument("--lr", type=float, required=True)
    assert Plain(**vars(parser.parse_args(["--lr", "0.5"]))) == Plain(0.5)


def start(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_added_options_take_their_defaults_from_the_config(config: str) -> None:
    def parser() -> TuneArgumentParser:
        made = TuneArgumentParser()
        made.add_argument("--batch-size", dest="batch_size", type=int, required=True)
        made.add_argument("--mode", choices=["a", "b"], default="a")
        made.add_argument("--tags", nargs="*", default=[])
        return made

    args, _ = parser().parse_known_args(["--config", config])
    assert (args.batch_size, args.mode, args.tags) == (3, "a", [])
    args, _ = parser().parse_known_args(["--config", config, "--batch-size", "9", "mode=b"])
    assert (args.batch_size, args.mode) == (9, "b")
    with pytest.raises(SystemExit) as caught:
        parser().parse_known_args(["--config", config, "mode=c"])
    assert caught.value.code == 2
    for wrong in ([], ["batch_size=many"]):
        with pytest.raises(SystemExit):
            parser().parse_known_args(wrong)
    # a parser used twice does not remember the first config
    one = parser()
    one.parse_known_args(["--config", config, "mode=b"])
    assert one.parse_known_args(["--batch-size", "1"])[0].mode == "a"


def test_what_nobody_knows_is_handed_back_and_mentioned(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, rest = TuneArgumentParser().parse_known_args(["--config", config, "--strange", "word"])
    assert rest == ["--strange", "word"]
    assert "--strange word" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "mention"),
    [
        (["--conf", "x.yaml"], "did you mean --config"),
        (["--overide", "lr=1"], "did you mean --override"),
        (["--config", "a", "--config", "b"], "given twice"),
        (["--config"], "expected one argument"),
        (["--trust", "not a package"], "--trust"),
        (["--config", "missing.yaml"], "config-not-found"),
        (["--override", "lr"], "override-without-value"),
        (["--remove", "lr"], "nothing-to-remove"),
        (["a=${b}", "b=${a}"], "cyclic-reference"),
    ],
)
def test_bad_usage_ends_with_code_2(
    arguments: list[str], mention: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for make in (TuneArgumentParser().parse_known_args, TuneArgumentParser(params=Params).parse_params):
        with pytest.raises(SystemExit) as caught:
            make(arguments)
        assert caught.value.code == 2
        assert mention in capsys.readouterr().err


def test_the_one_call_form(config: str) -> None:
    parser = TuneArgumentParser(params=Params)
    params = parser.parse_params(["batch_size=5", "--config", config, "--override", "optimizer=AdamW"])
    assert params == Params(output_dir="out", batch_size=5, optimizer="AdamW", lr=2e-5)  # type: ignore[arg-type]
    resolution = resolution_of(params)
    assert resolution is not None
    assert resolution.recipe == "mine"
    with pytest.raises(AttributeError):
        params.batch_size = 3


def test_the_one_call_form_reports_all_that_is_wrong(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        TuneArgumentParser(params=Params).parse_params(
            ["--config", config, "batch_size=x", "--lr", "3", "stray", "--override", "batchsize=2"]
        )
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.count("error[") == 4
    assert "lr=3" in err


def test_dry_run_prints_the_resolved_parameters(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        TuneArgumentParser(params=Params).parse_params(["--config", config, "--dry-run"])
    assert caught.value.code == 0
    assert "batch_size: 3" in capsys.readouterr().out


def test_help_lists_the_parameters() -> None:
    text = TuneArgumentParser(params=Params).format_help()
    assert "  output_dir (str)      Where to. [required]\n" in text
    assert "Sequences. [default: 2; at least 1]" in text


def test_parse_reads_the_annotation(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @parse
    def recipe_main(params: Params) -> int:
        return params.batch_size

    assert params_class_of(recipe_main) is Params
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--config", config, "batch_size=8"])
    assert recipe_main() == 8
    assert recipe_main(Params(output_dir="x", batch_size=4)) == 4


def test_parse_without_a_dataclass_gives_attributes(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @parse
    def recipe_main(cfg):  # type: ignore[no-untyped-def]
        return cfg

    monkeypatch.setattr(
        sys, "argv", ["recipe.py", "--config", config, "optimizer={_component_: SGD, lr: 1}", "a.b=2"]
    )
    cfg: Any = recipe_main()
    assert (cfg.batch_size, cfg.a.b, cfg["lr"]) == (3, 2, 2e-5)
    assert cfg.optimizer == {"_component_": "SGD", "lr": 1}


def test_an_explained_failure_is_one_block(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @parse
    def recipe_main(params: Params) -> int:
        raise TrainingError("no GPU here; set device=cpu")

    monkeypatch.setattr(sys, "argv", ["recipe.py", "--config", config])
    with pytest.raises(SystemExit) as caught:
        recipe_main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: no GPU here; set device=cpu\n"
    with pytest.raises(TrainingError):
        recipe_main(Params(output_dir="x"))


def test_json_schema_is_draft_07_and_fits_the_checks() -> None:
    schema = json_schema(Params)
    json.dumps(schema)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert schema["required"] == ["output_dir"]
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {"recipe", *(field.name for field in fields(Params))}
    assert schema["properties"]["batch_size"]["anyOf"][0] == {"type": "integer", "minimum": 1}
    assert schema["properties"]["optimizer"]["default"] == "SGD"


def test_log_config_says_everything(config: str, caplog: pytest.LogCaptureFixture) -> None:
    import logging

    params = TuneArgumentParser(params=Params).parse_params(["--config", config])
    logger = logging.getLogger("test_log_config")
    with caplog.at_level("INFO", logger.name):
        log_config("mine", params, logger)
    assert "batch_size: 3" in caplog.text
    assert "c.yaml:3" in caplog.text


def test_public_names_are_what_they_seem() -> None:
    for name in tune.config.__all__:
        assert getattr(tune.config, name) is not None
    importlib.import_module("tune.config.instantiate")
    importlib.import_module("tune.config.resolve")
    assert callable(tune.config.resolve)
    assert callable(tune.config.instantiate)
    with pytest.raises(AttributeError):
        tune.config.nothing  # noqa: B018
