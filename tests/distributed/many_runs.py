"""A recipe of one's own that trains several times in the same processes: starting them costs more than the runs.

    tune run --nproc_per_node 2 ./many_runs.py RUNS.json

RUNS.json holds a list of {"recipe": "full_finetune" or "lora_finetune", "values": {parameter: value}}.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
from pathlib import Path

import torch.distributed as dist


def main() -> None:
    dist.init_process_group("gloo")
    for run in json.loads(Path(sys.argv[1]).read_text()):
        name = run["recipe"]
        words = "".join(word.capitalize() for word in name.split("_"))
        params = getattr(importlib.import_module(f"tune.recipes.params.{name}"), f"{words}Params")
        recipe = importlib.import_module(f"recipes.{name}").recipe_main
        assert recipe(params(**run["values"])) == 0
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
