"""`tune run` and `tune validate`: what is refused before anything starts, and how a run ends."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tune.cli.catalogue import RECIPES, find_recipe

ENOUGH = ("model_checkpoint=somewhere", "prompt=fine")


def test_validate_shows_all_problems_with_their_places(tune, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "recipe: full_finetune\nbath_size_val: 3\nbatch_size: two\noptimizer:\n  _component_: SGD\n  momentun: 0.9\n"
    )
    outcome = tune("validate", "bad.yaml", "epochs=0")
    assert outcome.code == 2
    assert outcome.out == ""
    for place in ("bad.yaml:2:1", "bad.yaml:3:13", "bad.yaml:6:3", "epochs=0"):
        assert place in outcome.err
    as_json = tune("validate", "bad.yaml", "epochs=0", "--json")
    assert as_json.code == 2
    result = json.loads(as_json.out)
    assert result["version"] == 1
    assert result["ok"] is False
    assert set(result) == {"version", "ok", "errors", "warnings"}
    for error in result["errors"]:
        assert set(error) == {"code", "path", "message", "source", "suggestion"}
        assert set(error["source"]) == {"kind", "file", "line", "col"}
    assert {"batch_size_val", "momentum"} <= {error["suggestion"] for error in result["errors"]}


def test_valid_json_says_so(tune) -> None:
    outcome = tune("validate", "llama2/7B_full", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out) == {"version": 1, "ok": True, "errors": [], "warnings": []}


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nothing"],
        ["a", "b"],
        ["."],
        ["my.yaml"],
        ["my.yaml", "--recipe", "nothing"],
        ["my.yaml", "--recipe", "generate", "--trust", "a b"],
        ["broken.yaml"],
    ],
)
def test_json_is_json_also_for_a_wrong_command_line(tune, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "my.yaml").write_text("batch_size: 3\n")
    (tmp_path / "broken.yaml").write_text("a: b: c\n")
    outcome = tune("validate", *words, "--json")
    assert outcome.code == 2
    result = json.loads(outcome.out)
    assert not result["ok"]
    assert len(result["errors"]) >= 1


def test_validate_finds_the_recipe(tune, tmp_path: Path, own_recipe: Path) -> None:
    (tmp_path / "my.yaml").write_text("prompt: hello\nmodel_checkpoint: there\n")
    outcome = tune("validate", "my.yaml")
    assert (outcome.code, outcome.out) == (0, "my.yaml: valid for generate, with 1 warning\n")
    assert "add `recipe: generate` to it" in outcome.err
    assert tune("validate", "my.yaml", "recipe=full_finetune").code == 2
    assert tune("validate", "my.yaml", "--recipe", "generate").code == 0
    assert tune("validate", "my.yaml", "--recipe", "alpaca_generate").code == 0
    assert tune("validate", "my.yaml", "--recipe", "./mine.py").code == 0
    (tmp_path / "flow.yaml").write_text("{prompt: hello, model_checkpoint: there, recipe: generate}\n")
    assert tune("validate", "flow.yaml").code == 0


def test_a_config_that_names_no_recipe_is_judged_all_the_same(tune, tmp_path: Path) -> None:
    faults = "output_dir: out\nmodel_checkpoint: x\ndataset: alpaca\nepochs: two\nbatch_sze: 2\n"
    for head, code, severity in (
        ("# nothing\n", "no-recipe", "warnings"),
        ("recipe: dpo_finetune\n", "unknown-recipe", "errors"),
    ):
        (tmp_path / "my.yaml").write_text(head + faults)
        outcome = tune("validate", "my.yaml", "--json")
        assert outcome.code == 2
        found = json.loads(outcome.out)
        assert code in [item["code"] for item in found[severity]]
        assert {("wrong-type", 5), ("unknown-key", 6)} <= {
            (item["code"], item["source"]["line"]) for item in found["errors"]
        }
    assert next(item for item in found["errors"] if item["path"] == "recipe")["source"]["line"] == 1
    # of a config that is not for any of these recipes, only that is said
    (tmp_path / "my.yaml").write_text("recipe: mine\nname: a\nn: 2\n")
    found = json.loads(tune("validate", "my.yaml", "--json").out)
    assert [item["code"] for item in found["errors"]] == ["unknown-recipe"]


def test_a_config_for_another_recipe(tune, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("recipe: generate\nprompt: hello\nmodel_checkpoint: there\n")
    outcome = tune("run", "full_finetune", "--config", "my.yaml")
    assert outcome.code == 2
    # all that is wrong with it is the command
    assert outcome.err.count("\n") == 1
    assert "tune run generate --config my.yaml" in outcome.err
    (tmp_path / "my.yaml").write_text("recipe: generate\nprompt: hello\nmodel_checkpoint: there\ntop_k: x\n")
    outcome = tune("run", "full_finetune", "--config", "my.yaml")
    assert outcome.code == 2
    assert "error[wrong-recipe]" in outcome.err
    assert "'top_k'" in outcome.err


def test_validate_does_not_follow_a_path_in_the_config(tune, tmp_path: Path) -> None:
    (tmp_path / "evil_params.py").write_text("open('ran', 'w')\nclass P: ...\n")
    (tmp_path / "evil.py").write_text("from evil_params import P\ndef recipe_main(params: P): ...\n")
    (tmp_path / "my.yaml").write_text("recipe: ./evil.py\n")
    outcome = tune("validate", "my.yaml")
    assert outcome.code == 2
    assert "--recipe" in outcome.err
    assert not (tmp_path / "ran").exists()


def test_a_hostile_config_runs_nothing(tune, tmp_path: Path) -> None:
    (tmp_path / "evil_pkg.py").write_text("open('ran', 'w')\ndef make(*a, **k): open('ran', 'w')\n")
    (tmp_path / "my.yaml").write_text(
        "recipe: full_finetune\noutput_dir: out\nmodel_checkpoint: x\n"
        "model: evil_pkg.make\ntokenizer: {_component_: torch.hub.load, repo_or_dir: evil/evil}\n"
        "dataset: {_component_: tune.datasets.alpaca_dataset, source: {_component_: evil_pkg.make}}\n"
        "optimizer: {_component_: torch.os.system, command: touch ran}\n"
        "loss: __import__('os').system('touch ran')\n"
        "metric_logger: tune.training.os.system\n"
    )
    outcome = tune("validate", "my.yaml")
    assert outcome.code == 2
    assert outcome.err.count("untrusted-component") >= 3
    assert "--trust evil_pkg" in outcome.err
    for arguments in (["--dry-run"], []):
        assert tune("run", "full_finetune", "--config", "my.yaml", *arguments).code == 2
    assert not (tmp_path / "ran").exists()
    assert "evil_pkg" not in sys.modules


def test_trust_lets_a_package_be_named(tune, tmp_path: Path) -> None:
    (tmp_path / "lion_pkg.py").write_text(
        "raise SystemExit('imported')\nfrom torch.optim import Optimizer\n"
        "class Lion(Optimizer):\n    def __init__(self, params, lr: float, beta: float = 0.9): ...\n"
    )
    base = ["validate", "llama2/7B_full", "~optimizer", "optimizer._component_=lion_pkg.Lion"]
    assert "--trust lion_pkg" in tune(*base, "lr=1e-4").err
    assert tune(*base, "lr=1e-4", "--trust", "lion_pkg").code == 0
    assert "betta" in tune(*base, "lr=1e-4", "optimizer.betta=1", "--trust", "other,lion_pkg").err
    assert "lion_pkg" not in sys.modules


def test_options_and_overrides_come_in_any_order(tune) -> None:
    orders = [
        ["run", "full_finetune", "--config", "llama2/7B_full", "lr=3e-4", "--dry-run"],
        ["run", "lr=3e-4", "--dry-run", "--config=llama2/7B_full", "full_finetune"],
        ["run", "--override", "lr=3e-4", "full_finetune", "--config", "llama2/7B_full", "--dry-run"],
        ["launch", "--dry-run", "-c", "llama2/7B_full.yaml", "full_finetune.py", "-o", "lr=3e-4"],
        ["full_finetune", "--dry-run", "--config", "llama2/7B_full", "--override=lr=3e-4"],
    ]
    resolved = set()
    for words in orders:
        outcome = tune(*words)
        assert outcome.code == 0, (words, outcome.err)
        resolved.add(outcome.out.split("# plan")[0])
    assert len(resolved) == 1
    assert "lr: 0.0003" in resolved.pop()


def test_dry_run_shows_sources_and_the_plan(tune) -> None:
    out = tune(
        "run", "finetune_llm", "--config", "alpaca_llama2_finetune", "--override", "device=cpu", "--dry-run"
    ).out
    assert "device: cpu" in out
    assert "device=cpu" in out
    assert "# default" in out
    assert "alpaca_llama2_finetune.yaml:" in out
    assert "full_finetune.py" in out.split("# plan")[1]
    assert "--dry-run" not in out.split("the same:")[1].split("\n")[0]


def test_removals(tune) -> None:
    for words in (["~clip_grad_norm"], ["--remove", "clip_grad_norm"]):
        out = tune("run", "full_finetune", "--config", "llama2/7B_full", *words, "--dry-run").out
        assert "clip_grad_norm: null" in out
    assert tune("run", "full_finetune", "--config", "llama2/7B_full", "~nothing_here", "--dry-run").code == 2


@pytest.mark.parametrize("recipe", list(RECIPES), ids=lambda recipe: recipe.name)
def test_run_help_shows_every_parameter(tune, recipe) -> None:
    from tune.config.params import fields_of

    for name in (recipe.name, *recipe.aliases):
        outcome = tune("run", name, "--help")
        assert outcome.code == 0
        for info in fields_of(recipe.load_params()).values():
            assert f"\n  {info.name} " in outcome.out
            assert info.help.split()[0] in outcome.out
            assert f"\n{info.group}:\n" in outcome.out or outcome.out.startswith(f"{info.group}:")


def test_run_help_with_a_config_shows_values_and_their_origin(tune) -> None:
    out = tune("run", "full_finetune", "--config", "llama2/7B_full", "batch_size=5", "--help").out
    values = out.split("\nAs configured:\n")[1]
    assert re.search(r"^batch_size: 5 +# command line: batch_size=5", values, re.MULTILINE)
    assert re.search(r"^  lr: 2e-05 +# .*llama2/7B_full.yaml:\d+", values, re.MULTILINE), values


DRY = ("lora_finetune", "--config", "tiny/lora_finetune", "device=cuda", "clip_grad_norm=null", "--dry-run")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["run"], "which recipe"),
        (["run", "full_finetun"], "did you mean full_finetune?"),
        (["run", "qat_distributed"], "tune has none for quantisation-aware training yet"),
        (["run", "./my_eval.py"], "no recipe ./my_eval.py: no such file"),
        (["run", "./full_finetun.py"], "no such file"),
        (["run", "."], "is a folder"),
        (["run", "my.yaml"], "recipes are .py files"),
        (["run", "full_finetune", "llama2/7B_full"], "--config llama2/7B_full"),
        (["run", "full_finetune", "--confg", "x"], "did you mean --config?"),
        (["run", "full_finetune", "--batch-size", "3"], "batch_size=3"),
        (["run", "full_finetune", "--conf", "x"], "no option --conf"),
        (["run", "full_finetune", "--config"], "needs a value"),
        (["run", "full_finetune", "--config", "--dry-run"], "needs a value"),
        (["run", "full_finetune", "--dry-run=yes"], "takes no value"),
        (["run", "full_finetune", "--config", "tiny/full_finetune", "--config", "b"], "2 times"),
        (["run", "full_finetune", "--config", "nothing"], "no config nothing"),
        (["run", "generate", "--config", "llama2/7B_full"], "tune run full_finetune --config llama2/7B_full"),
        (["run", "full_finetune", "--config", "llama2/7B_full", "batchsize=4"], "batch_size"),
        (["run", "full_finetune", "lr=1e-4"], "No --config was given"),
        (["run", "generate"], "model_checkpoint is required"),
        (
            ["run", "--nproc_per_node", "2", "generate", "model_checkpoint=x", "prompt=x"],
            "works in one process",
        ),
        (
            ["run", "--nnodes", "2", "--rdzv_endpoint=a:1", "generate", "model_checkpoint=x", "prompt=x"],
            "one process",
        ),
        (["run", "full_finetune", "--config", "llama2/7B_full", "--trust", "../x"], "--trust takes the name"),
        (["run", *DRY, "--nproc_per_node", "3", "data_parallel_shard_dim=2"], "needs 2 processes, but 3"),
        (["run", *DRY[:-1], "data_parallel_replicate_dim=2"], "needs 2 processes, but 1"),
        (["run", *DRY[:-1], "fsdp_cpu_offload=true"], "nothing is sharded"),
        (["run", *DRY, "--nproc_per_node", "2", "dtype=fp16"], "fp16 looks for its loss scale"),
        (["run", *DRY, "--nproc_per_node", "2", "enable_fsdp=false", "optimizer_in_bwd=true"], "added up"),
        (["run", *DRY, "--nproc_per_node", "2", "device=cuda:1"], "write device=cuda"),
        (["run", *DRY, "--nproc_per_node", "2", "device=mps"], "use one process"),
    ],
)
def test_mistakes_end_before_anything_starts(tune, tmp_path: Path, words: list[str], hint: str) -> None:
    (tmp_path / "my.yaml").write_text("")
    outcome = tune(*words)
    assert outcome.code == 2
    assert hint in outcome.err
    assert "Traceback" not in outcome.err


def test_a_config_is_missed_only_where_one_is_missing(tune, tmp_path: Path) -> None:
    for words in (["eval", str(tmp_path), "lr=1"], ["eval", str(tmp_path), "batch_size=no"]):
        outcome = tune(*words)
        assert outcome.code == 2
        assert "--config" not in outcome.err
    assert outcome.out == ""


def test_one_process_may_be_asked_for(tune, own_recipe: Path) -> None:
    outcome = tune("run", "--nproc_per_node", "1", "--nnodes=1", "./mine.py", *ENOUGH)
    assert outcome.code == 0, outcome.err


def test_an_own_recipe_runs_with_its_arguments(tune, own_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("recipe: generate\nprompt: from file\nmax_new_tokens: 3\n")
    before = list(sys.argv)
    for name in ("mine.py", "./mine.py", str(own_recipe)):
        outcome = tune("run", name, "model_checkpoint=there", "--config", "my.yaml", "max_new_tokens=7")
        assert outcome.code == 0, outcome.err
        assert outcome.out == "ran with from file 7\n"
    assert tune("mine.py", *ENOUGH).out == "ran with fine 256\n"
    assert sys.argv == before


def test_an_own_recipe_is_checked_before_it_runs(tune, own_recipe: Path) -> None:
    outcome = tune("run", "mine.py", *ENOUGH, "max_new_tokns=7")
    assert outcome.code == 2
    assert "max_new_tokens" in outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize(
    ("prompt", "code", "words"),
    [
        ("explained", 1, "error: no examples\nadd some\n"),
        ("exit", 7, ""),
        ("text", 1, "error: goodbye\n"),
        ("interrupt", 130, "nterrupted\n"),
        ("memory", 1, "out of memory"),
        ("bug", 1, "KeyError: 'missing'"),
    ],
)
def test_how_a_run_ends(tune, own_recipe: Path, prompt: str, code: int, words: str) -> None:
    outcome = tune("run", "mine.py", "model_checkpoint=x", f"prompt={prompt}")
    assert outcome.code == code
    assert words in outcome.err
    assert ("Traceback" in outcome.err) == (prompt == "bug")
    if prompt == "bug":  # the user's own lines, not ours around them
        assert "runpy" not in outcome.err
        assert "cli/" not in outcome.err
        assert "bug in tune" not in outcome.err


def test_a_bug_of_ours_says_so(tune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune.cli.ls.configs_of", lambda recipe: 1 / 0)
    outcome = tune("ls")
    assert outcome.code == 70
    assert "ZeroDivisionError" in outcome.err
    assert "report" in outcome.err


def test_python_that_cannot_be_read_is_named(tune, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = 1\ndef recipe_main(:\n")
    outcome = tune("run", "broken.py")
    assert outcome.code == 1
    assert "broken.py, line 2 is not valid Python" in outcome.err


def test_params_beside_the_recipe_are_found(tune, tmp_path: Path) -> None:
    (tmp_path / "my_params_module.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from tune.config.params import check_params, param\n"
        "@dataclass(frozen=True)\nclass MyParams:\n    steps: int = param(3, help='How many.', minimum=1)\n"
        "    def __post_init__(self) -> None:\n        check_params(self)\n"
    )
    (tmp_path / "with_params.py").write_text(
        "import sys\nimport tune.config\nfrom my_params_module import MyParams\n"
        "@tune.config.parse\ndef main(params: MyParams) -> int:\n    print(params.steps)\n"
        "if __name__ == '__main__':\n    sys.exit(main())\n"
    )
    assert tune("run", "with_params.py", "steps=5").out == "5\n"
    assert tune("run", "with_params.py", "steps=0").code == 2
    assert "How many." in tune("run", "with_params.py", "--help").out
    sys.modules.pop("my_params_module")


HISTORIC = """
import argparse
from dataclasses import dataclass
from tune import utils

@dataclass
class MyParams:
    model: str = ""
    lr: float = 0.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if value == "":
                raise TypeError(f"{name} has to be set")

if __name__ == "__main__":
    parser = utils.TuneArgumentParser(
        description="Mine.", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=1)
    args, _ = parser.parse_known_args()
    given = vars(args)
    times = given.pop("times")
    print(times, MyParams(**given))
"""


def test_a_historic_recipe_runs_as_it_was_written(tune, tmp_path: Path) -> None:
    (tmp_path / "historic.py").write_text(HISTORIC)
    (tmp_path / "my.yaml").write_text("model: small\nlr: 2e-5\n")
    outcome = tune("run", "historic.py", "--config", "my.yaml", "--times", "4", "lr=0.5")
    assert outcome.code == 0, outcome.err
    assert outcome.out == "4 MyParams(model='small', lr=0.5)\n"
    assert "--times" in tune("run", "historic.py", "--help").out
    failed = tune("run", "historic.py")
    assert failed.code == 1
    assert "model has to be set" in failed.err
    assert tune("run", "historic.py", "--dry-run").code == 2
    assert tune("validate", "my.yaml", "--recipe", "historic.py").code == 2


def test_a_local_copy_with_a_built_in_name_is_pointed_out(tune, tmp_path: Path) -> None:
    assert tune("cp", "alpaca_llama2_finetune").code == 0
    outcome = tune("run", "full_finetune", "--config", "alpaca_llama2_finetune", "--dry-run")
    assert outcome.code == 0
    assert "./alpaca_llama2_finetune.yaml" in outcome.err
    assert tune("cp", "full_finetune").code == 0
    words = ["--config", "./alpaca_llama2_finetune.yaml", "--dry-run"]
    assert "./full_finetune.py" in tune("run", "full_finetune", *words).err
    for name in ("full_finetune.py", "./full_finetune.py"):
        outcome = tune("run", name, *words)
        assert outcome.err == ""
        assert "#   recipe:    full_finetune.py" in outcome.out


def test_preflight_looks_at_the_machine(tune, tmp_path: Path) -> None:
    words = ["llama2/7B_full", "device=cpu", "dataset.source=missing.jsonl"]
    outcome = tune("validate", *words, "--preflight")
    assert outcome.code == 2
    assert "Llama-2-7b-hf does not exist" in outcome.out
    assert "there is no file or folder missing.jsonl" in outcome.out
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/tokenizer.model").write_bytes(b"")
    (tmp_path / "missing.jsonl").write_text("")
    outcome = tune("validate", *words, "model_checkpoint=weights", "--preflight")
    assert outcome.code == 0, outcome.out
    assert "GiB free" in outcome.out


def test_recipes_are_found_by_every_name() -> None:
    for recipe in RECIPES:
        assert recipe.file.is_file()
        for name in (recipe.name, *recipe.aliases):
            assert find_recipe(name) is find_recipe(f"{name}.py") is recipe


def test_a_mesh_that_does_not_fit_the_processes_is_refused(tune, tmp_path: Path) -> None:
    words = ("--config", "tiny/full_finetune", f"output_dir={tmp_path / 'out'}")
    done = tune("run", "--nproc_per_node", "3", "full_finetune", *words, "data_parallel_replicate_dim=2")
    assert done.code == 2
    assert (
        "data_parallel_replicate_dim 2 x data_parallel_shard_dim 1 needs 2 processes, but 3 were" in done.err
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "called"), [("lora_rank=8", "'lora_rank'"), ("r=8", "'r' (lora_rank, as it")]
)
def test_a_parameter_of_another_recipe_is_called_that(tune, override: str, called: str) -> None:
    for words in (["validate", "llama2/7B_full"], ["run", "full_finetune", "--config", "llama2/7B_full"]):
        outcome = tune(*words, override)
        assert outcome.code == 2
        assert f"full_finetune has no parameter {called}" in outcome.err
        assert (
            "lora_finetune, preference_finetune, reward_finetune and distill have it: remove it, or use that recipe"
            in outcome.err
        )


def test_a_config_without_a_recipe_is_judged_by_the_nearest(tune, tmp_path: Path) -> None:
    # Every key is one of both recipes, and only one of them trains such a model.
    model = "{_component_: torchtune.models.qwen2.lora_qwen2_0_5b, lora_attn_modules: [q_proj]}"
    (tmp_path / "my.yaml").write_text(
        f"output_dir: out\nmodel_checkpoint: ck\ndataset: alpaca\nlr: 1e-4\nmodel: {model}\n"
    )
    outcome = tune("validate", "my.yaml")
    assert (outcome.code, outcome.out) == (0, "my.yaml: valid for lora_finetune, with 2 warnings\n")
