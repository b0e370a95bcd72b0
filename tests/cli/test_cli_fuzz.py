"""Whatever is typed, the answer is an exit code and a sentence, never a traceback."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.components import trusting
from tune.cli.main import COMMANDS, main
from tune.cli.recipe_lookup import read_params_path
from tune.errors import TuneError

WORDS = [
    *COMMANDS,
    "full_finetune",
    "generate",
    "finetune_llm.py",
    "llama2/7B_full",
    "tiny/full_finetune.yaml",
    "my.yaml",
    "broken.yaml",
    "mine.py",
    "folder",
    "--config",
    "--config=my.yaml",
    "-c",
    "--override",
    "-o",
    "--remove",
    "--trust",
    "--json",
    "--recipe",
    "--to",
    "--help",
    "-h",
    "--version",
    "--names",
    "--words",
    "--",
    "-",
    "--preflight=1",
    "--nproc_per_node",
    "1",
    "lr=1e-4",
    "optimizer=SGD",
    "optimizer._component_=torch.hub.load",
    "~lr",
    "~",
    "=",
    "a=",
    "a.b.c.0=[1, {x: y}]",
    'x={"',
    "optimizer.lr",
    "os.system",
    "",
    "\0",
    "\udcff",
    "../..",
    "ä=漢",
]
words = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=12)), max_size=7)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what looks like a model's name is not asked for
    (tmp_path / "my.yaml").write_text("recipe: full_finetune\nlr: 1e-4\n")
    (tmp_path / "broken.yaml").write_text("a: [1\nb: {\n")
    (tmp_path / "mine.py").write_text("from tune.recipes.params.generate import GenerateParams\n")
    (tmp_path / "folder").mkdir()
    return tmp_path


@settings(max_examples=250)
@given(words)
def test_any_command_line_gets_an_answer(folder: Path, arguments: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    with trusting(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*arguments, "--dry-run"])  # nothing is to be run here, whatever it is
    assert code in (0, 1, 2), (arguments, err.getvalue())
    assert "Traceback" not in err.getvalue()
    assert (code == 0) or err.getvalue() or '"ok": false' in out.getvalue()


@settings(max_examples=100)
@given(
    st.one_of(
        st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
    )
)
def test_any_file_can_be_looked_at_as_a_recipe(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "recipe.py"
    file.write_bytes(content)
    with contextlib.suppress(TuneError):
        read_params_path(file)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5000,
        "x = " + "-" * 100_000 + "1",
        "\0",
        "# coding: nothing\n",
        "def recipe_main(params: " + "[" * 3000,
    ],
    ids=["brackets", "signs", "null", "coding", "annotation"],
)
def test_hostile_recipes_are_refused_in_bounded_time(tmp_path: Path, text: str) -> None:
    file = tmp_path / "recipe.py"
    file.write_text(text)
    with pytest.raises(TuneError, match="not valid Python"):
        read_params_path(file)
