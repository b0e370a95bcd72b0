"""A recipe called from Python returns how its run ended; what the package shows of itself."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tune
from tune.errors import ConfigError
from tune.recipes.full_finetune import recipe_main
from tune.training.progress import Progress
from tune.utils import get_logger

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"max_steps": 2, "batch_size": 3, "log_level": "WARNING"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "[rows] null.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"Say {n}.", "completion": str(n)}) + "\n" for n in range(9))
    )
    return path


def test_tune_run_returns_how_the_run_ended(rows: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"_component_": "instruct", "source": rows}
    settings = {
        **SHORT,
        "output_dir": Path("out"),
        "dataset": data,
        "optimizer.weight_decay": 0.25,
        "lr": "1e-3",
    }
    result = tune.run("full_finetune", settings, config="tiny/full_finetune")
    assert (result.exit_code, result.status, result.step, result.num_steps) == (0, "finished", 2, 2)
    assert result.loss == json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[-1])["loss"]
    assert result.report is not None
    assert result.report.is_file()
    assert result.model == Path("out/latest/model")
    assert "weight_decay: 0.25" in (tmp_path / "out/config.yaml").read_text()
    # Its record tells the command that does the same.
    assert result.record["command"].startswith("tune run full_finetune --config ")
    assert sys.argv != result.record["command"]


def test_recipe_main_takes_settings_and_words(rows: Path, tmp_path: Path) -> None:
    words = ["--config", "tiny/full_finetune", f"output_dir={tmp_path / 'a'}", f"dataset.source={rows}"]
    words += [f"{key}={value}" for key, value in SHORT.items()]
    settings = {**SHORT, "output_dir": tmp_path / "b", "dataset.source": str(rows)}
    first, second = recipe_main(words), recipe_main(settings, config="tiny/full_finetune")
    assert first.loss == second.loss
    assert second.output_dir == tmp_path / "b"


def test_wrong_settings_are_raised_all_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        tune.run("full_finetune", {"max_stps": 3, "epochs": "two", "lr": 1e-3}, config="tiny/full_finetune")
    assert "max_stps" in str(error.value)
    assert "epochs takes a whole number, not 'two'" in str(error.value)
    with pytest.raises(ConfigError, match="no configuration can hold"):
        tune.run("full_finetune", {"lr": print})
    with pytest.raises(ConfigError, match="optimizer"):
        recipe_main({"optimizer": {"_component_": "os.system", "command": "true"}})


@pytest.mark.parametrize("text", ["[a]", "null", "~", '"x"', "${seed}", "", " a ", "no", "12"])
def test_a_text_from_python_stays_that_text(text: str) -> None:
    from tune.config.recipe_main import _as_text
    from tune.config.resolve import resolve
    from tune.recipes.params.generate import GenerateParams

    overrides = [f"prompt={_as_text('prompt', text)}", f"stop={_as_text('stop', [text or 'x'])}"]
    resolution = resolve(GenerateParams, overrides=[*overrides, "model_checkpoint=bundled:tiny_llama"])
    assert resolution.params is not None, resolution.report()
    assert resolution.params.prompt == text


def test_a_notebook_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stderr", shown)
    get_logger("INFO")
    with Progress(4) as progress:
        progress.advance()
        progress.show(1, {"loss": 2.5})
    assert "1/4" in shown.getvalue()
    assert "step 1/4 | loss 2.5000" in shown.getvalue()


def test_the_package_tells_what_there_is_without_torch() -> None:
    code = (
        "import sys, tune; assert 'torch' not in sys.modules; tune.errors; tune.config;"
        "assert 'torch' not in sys.modules; assert {'models', 'run'} <= set(dir(tune));"
        "assert tune.models.from_checkpoint and 'tune.models' in tune.__doc__"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="no attribute 'modls'"):
        _ = tune.modls


def test_the_wheel_leaves_the_name_recipes_to_the_user(tmp_path: Path) -> None:
    """Built and unpacked elsewhere, with a folder and a file of that name where it runs."""
    pytest.importorskip("setuptools")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "out", "tests", "build", "*.egg-info", "__pycache__", ".*_cache"
    )
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    subprocess.run([*pip, str(source)], check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")
    tops = {path.name for path in (tmp_path / "site").iterdir() if path.suffix != ".dist-info"}
    assert tops == {"tune", "recipes"}  # the second is another name for what lies below the first
    assert (tmp_path / "site/tune/py.typed").is_file()
    here = tmp_path / "here"
    (here / "recipes").mkdir(parents=True)
    for name in ("recipes/__init__.py", "recipes.py"):
        (here / name).write_text("raise SystemExit('the user has recipes, too')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    told = {"cwd": here, "env": environment, "check": True, "capture_output": True, "text": True}
    subprocess.run([sys.executable, "-m", "tune", "cp", "generate", "mine.py"], **told)
    words = ["model_checkpoint=bundled:tiny_llama", "prompt=Hello", "max_new_tokens=1", "device=cpu"]
    subprocess.run([sys.executable, "mine.py", *words], **told)
