"""A run's configuration is resolved once, by `tune run`: the recipe takes over what came out, on every rank."""

from __future__ import annotations

from pathlib import Path

import pytest

# The config is gone when the recipe asks for its parameters.
RECIPE = """
import os, pathlib, sys
pathlib.Path("my.yaml").unlink(missing_ok=True)
import tune.config
from mine_params import MineParams
from tune.config.resolution import resolution_of
from tune.config.trust import is_user_trusted

@tune.config.parse
def recipe_main(params: MineParams) -> int:
    values = resolution_of(params).places
    file, line = values["mode"].source.file, values["mode"].source.line
    word = f"{params.mode} {params.output_dir} {file}:{line} {values['output_dir'].source.kind}"
    pathlib.Path(f"rank_{os.environ.get('RANK', 0)}.txt").write_text(f"{word} {is_user_trusted('mine_too')}")

if __name__ == "__main__":
    sys.exit(recipe_main())
"""


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_each_rank_takes_over_what_was_resolved(start, tmp_path: Path, num_ranks: int) -> None:
    (tmp_path / "mine.py").write_text(RECIPE)
    (tmp_path / "my.yaml").write_text("\nmode: fast\n")
    words = ("--config", "my.yaml", "output_dir=there", "--trust", "mine_too")
    code, _, err = start("run", "--nproc_per_node", str(num_ranks), "mine.py", *words).end()
    assert code == 0, err
    for rank in range(num_ranks):
        assert (tmp_path / f"rank_{rank}.txt").read_text() == "fast there my.yaml:2 cli True"


def test_what_only_the_recipe_understands_is_left_to_it(start, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RECIPE.replace('pathlib.Path("my.yaml").unlink(missing_ok=True)', ""))
    (tmp_path / "my.yaml").write_text("mode: fast\n")
    code, _, err = start("run", "mine.py", "--config", "my.yaml", "--spede", "7").end()
    assert code == 2
    assert "--spede=7" in err
