"""A params dataclass in a file of one's own has the tools that ours have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tune.cli.main import main
from tune.config import ParamsError
from tune.recipes.params.full_finetune import FullFinetuneParams

MINE = """
from dataclasses import dataclass

import tune.config
from tune.recipes.params.full_finetune import FullFinetuneParams


@dataclass(frozen=True)
class MyParams(FullFinetuneParams):
    ema_decay: float = tune.config.param(0.9, minimum=0.0, maximum=1.0, help="Kept share of the average.")


{main}

if __name__ == "__main__":
    recipe_main()
"""
PARSED = "@tune.config.parse\ndef recipe_main(params: MyParams) -> None:\n    print('ran', params.ema_decay)"
PLAIN = (
    "def recipe_main() -> None:\n"
    "    params = tune.config.TuneArgumentParser(params=MyParams).parse_params()\n"
    "    print('ran', params.ema_decay)"
)


@pytest.fixture(params=[PARSED, PLAIN], ids=["parsed", "plain"])
def mine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE.format(main=request.param))
    return "./mine.py"


def test_a_dry_run_resolves_and_runs_nothing(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", mine, "--config", "tiny/full_finetune", "--dry-run", "output_dir=out"]
    assert main([*arguments, "ema_decay=0.7"]) == 0
    said = capsys.readouterr().out
    assert "ema_decay: 0.7" in said
    assert "ran" not in said.split()
    assert main([*arguments, "ema_decay=1.7"]) == 2
    assert "ema_decay must be between 0 and 1, not 1.7" in capsys.readouterr().err


def test_a_config_is_validated_for_it(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("ema_decay: two\n")
    assert main(["validate", "mine.yaml", "--recipe", mine, "--json"]) == 2
    errors = json.loads(capsys.readouterr().out)["errors"]
    assert ("wrong-type", "ema_decay") in {(error["code"], error["path"]) for error in errors}


def test_its_parameters_are_described(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", mine, "ema_decay"]) == 0
    assert "Kept share of the average." in capsys.readouterr().out
    assert main(["schema", mine]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert "ema_decay" in schema["properties"]


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("import no_such_module\n", "", "cannot be imported: ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)\n", "", "cannot be imported: SystemExit: 3"),
        ("", "recipe_main()\n", "would run if it were imported"),
        ("", "done = recipe_main()\n", "would run if it were imported"),
    ],
)
def test_a_file_that_cannot_be_imported(
    before: str, after: str, says: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(before + MINE.format(main=PARSED) + after)
    assert main(["schema", "./mine.py"]) == 2
    assert says in capsys.readouterr().err


def test_what_a_file_sets_up_at_its_top_is_no_run(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = Path("mine.py").read_text()
    Path("mine.py").write_text("import logging\nlogging.getLogger('mine').setLevel('ERROR')\n" + content)
    assert main(["describe", mine, "ema_decay"]) == 0
    assert "Kept share of the average." in capsys.readouterr().out


UNKNOWN_TO_THE_PARSER = """
from dataclasses import dataclass

import tune.config


@dataclass
class MyParams:
    lr: float
    model: str


def recipe_main() -> None:
    args, _ = tune.config.TuneArgumentParser().parse_known_args()
    print("ran", MyParams(**vars(args)).lr)
    dict(**vars(args), lr=1)


recipe_main()
"""


def test_keys_of_a_dataclass_that_the_parser_was_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(UNKNOWN_TO_THE_PARSER)
    for arguments, says in (
        (["lr=1", "model=x", "rate=3"], ["rate is no parameter"]),
        ([], ["lr is required", "model is required"]),
    ):
        assert main(["run", "./mine.py", *arguments]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        for text in says:
            assert text in said
    # What goes wrong elsewhere is the file's own affair.
    assert main(["run", "./mine.py", "lr=1", "model=x"]) == 1
    assert "multiple values for keyword argument 'lr'" in capsys.readouterr().err


def test_what_is_no_parameter_is_said_in_our_words() -> None:
    with pytest.raises(ParamsError, match=r"batchsize is no parameter; did you mean batch_size\?"):
        FullFinetuneParams(output_dir="out", batchsize=3)  # type: ignore[call-arg]
    with pytest.raises(ParamsError, match="output_dir is required"):
        FullFinetuneParams()
