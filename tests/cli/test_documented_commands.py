"""What the README and the docs tell to type is understood as it stands.

Recipes are judged with what is given, without a run (`--dry-run`); of other commands, name and options are looked up.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from tune.cli.catalogue import find_recipe

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
CONFIG = """recipe: full_finetune
output_dir: out
model_checkpoint: base
dataset:
  _component_: instruct
  source: a.jsonl
lr: 1e-4
"""


def commands() -> list[str]:
    """Return each line that begins with tune, with its continuations, without what is said of it."""
    found: dict[str, None] = {}
    for path in DOCS:
        for block in re.findall(r"^```\w*\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if (text := line.strip().removeprefix("$ ")).startswith("tune "):
                    found[re.split(r"\s+#", text)[0]] = None
    return list(found)


def test_there_are_many() -> None:
    assert len(commands()) > 60


@pytest.mark.parametrize("command", commands())
def test_a_documented_command_is_right(tune, command: str, tmp_path: Path) -> None:
    for name in ("mine.yaml", "my.yaml"):
        (tmp_path / name).write_text(CONFIG)
    (tmp_path / "mine.py").write_text((ROOT / "recipes" / "full_finetune.py").read_text())
    words = [word for word in shlex.split(command.partition(" | ")[0])[1:] if word != "..."]
    if words[0] == "run" or words[0].startswith("-") or find_recipe(words[0]) is not None:
        if "gpu" in words and not torch.cuda.is_available():
            words[words.index("gpu")] = "2"  # which is how many there are
        if "ema_decay=0.8" in words:
            pytest.skip("of the recipe that tests/recipes/test_own_recipe.py writes")
        outcome = tune(*words, *(() if words[-1] in ("--dry-run", "--help") else ("--dry-run",)))
        assert outcome.code == 0, outcome.err
        return
    outcome = tune(words[0], "--help")
    assert outcome.code == 0, outcome.err
    for word in words[1:]:
        if word.startswith("-"):
            assert re.search(rf"(?<!\S){re.escape(word.partition('=')[0])}\b", outcome.out), word
