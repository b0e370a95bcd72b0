"""The options for many processes: what they mean, and what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune.cli.arguments import UsageError, read_arguments
from tune.cli.launch_options import LAUNCH_OPTIONS, LaunchPlan, read_plan, settle
from tune.cli.main import load_command
from tune.cli.run import COMMAND

ENOUGH = ("model_checkpoint=somewhere", "prompt=fine")


def plan_of(*words: str) -> LaunchPlan:
    return read_plan(read_arguments(COMMAND, ["full_finetune", *words]))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], LaunchPlan()),
        (["--nproc_per_node", "4"], LaunchPlan(4)),
        (["--nproc-per-node=4", "--standalone"], LaunchPlan(4)),
        (["--num-gpus", "gpu"], LaunchPlan(0, "gpu")),
        (["--nnodes", "1", "--rdzv_endpoint", "node0", "--max_restarts", "0"], LaunchPlan()),
        (["--max-restarts=3"], LaunchPlan(max_restarts=3)),
        (
            ["--nnodes", "2", "--rdzv-endpoint", "node0", "--rdzv-conf", "join_timeout=9,timeout=8"],
            LaunchPlan(
                nnodes=2,
                endpoint="node0:29400",
                run_id="tune",
                conf={"join_timeout": "9", "timeout": "8"},
            ),
        ),
        (
            [
                "--nnodes",
                "3",
                "--node_rank",
                "2",
                "--master_addr",
                "fd00::1",
                "--master_port",
                "7",
                "--rdzv_id=a",
            ],
            LaunchPlan(nnodes=3, node_rank=2, backend="static", endpoint="[fd00::1]:7", run_id="a"),
        ),
        (
            ["--nnodes", "3", "--node-rank=0", "--rdzv_endpoint", "10.0.0.1", "--local_addr", "10.0.0.2"],
            LaunchPlan(
                nnodes=3,
                node_rank=0,
                backend="static",
                endpoint="10.0.0.1:29500",
                run_id="tune",
                local_addr="10.0.0.2",
            ),
        ),
    ],
)
def test_plans(words: list[str], expected: LaunchPlan) -> None:
    assert plan_of(*words) == expected


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--nproc_per_node", "0"], "from 1 to 1024, or one of auto, gpu, cpu, not '0'"),
        (["--nproc_per_node", "-1"], "not '-1'"),
        (["--nproc_per_node", "two"], "not 'two'"),
        (["--num_gpus", "1e3"], "--nproc_per_node takes a whole number"),
        (["--num_gpus=99999"], "from 1 to 1024"),
        (["--nproc_per_node", "٣"], "takes a whole number"),
        (["--nproc_per_node", "2", "--num_gpus", "3"], "--num_gpus is given 2 times"),
        (["--nproc_per_node", "2", "--nproc_per_node", "2"], "2 times"),
        (["--nnodes", "0"], "--nnodes takes a whole number"),
        (["--nnodes", "1:4"], "give one number, such as --nnodes 4"),
        (["--nnodes", "2"], "the same --rdzv_endpoint HOST:PORT"),
        (["--nnodes", "2", "--standalone", "--rdzv_endpoint", "a:1"], "--standalone is for one machine"),
        (["--nnodes", "2", "--rdzv_endpoint", "a:1", "--master_addr", "a"], "2 times"),
        (["--nnodes", "2", "--rdzv_endpoint", "a:b"], "takes HOST:PORT"),
        (["--nnodes", "2", "--rdzv_endpoint", "a:65536"], "takes HOST:PORT"),
        (["--nnodes", "2", "--rdzv_endpoint", ""], "takes HOST:PORT"),
        (["--nnodes", "2", "--master_addr", "a", "--node_rank", "2"], "from 0 to 1, not '2'"),
        (["--nnodes", "2", "--master_addr", "a", "--master_port", "0"], "from 1 to 65535"),
        (
            ["--nnodes", "2", "--rdzv_endpoint", "a:1", "--rdzv_backend", "static"],
            "needs --node_rank, from 0 to 1",
        ),
        (["--nnodes", "2", "--rdzv_endpoint", "a:1", "--rdzv_backend", "etcd"], "only c10d, static"),
        (
            ["--nnodes", "2", "--master_addr", "a", "--node_rank", "0", "--max_restarts", "1"],
            "needs --rdzv_backend c10d",
        ),
        (["--rdzv_conf", "join_timeout"], "KEY=VALUE"),
        (["--max_restarts", "-1"], "from 0 to"),
        (["--nproc_per_nod", "2"], "did you mean --nproc_per_node?"),
    ],
)
def test_mistakes_are_usage_errors(tune, words: list[str], hint: str) -> None:
    outcome = tune("run", "full_finetune", "--config", "tiny/full_finetune", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert hint in outcome.err
    assert outcome.err.startswith("error: ")


def test_a_bad_config_starts_no_process(tune, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from tune.recipes.params.generate import GenerateParams\n"
        "def recipe_main(params: GenerateParams): ...\nopen('ran', 'w')\n"
    )
    outcome = tune("run", "--nproc_per_node", "2", "mine.py", *ENOUGH, "max_new_tokns=7")
    assert outcome.code == 2
    assert outcome.err.count("max_new_tokns") == 2  # in the message and the line it quotes
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--nproc_per_node", "4", "finetune_llm"],
        ["--nnodes", "1", "--nproc_per_node", "4", "finetune_llm"],
        ["--nproc-per-node=4", "run", "full_finetune"],
        ["full_finetune", "--num_gpus", "4"],
    ],
)
def test_options_stand_before_the_recipe_or_after_it(tune, words: list[str]) -> None:
    # as of old: --config and the overrides come last
    changes = ("enable_fsdp=True", "enable_activation_checkpointing=False", "device=cuda")
    outcome = tune(*words, "--config", "llama2/7B_full", "--dry-run", "--override", *changes)
    assert outcome.code == 0, outcome.err
    assert "enable_fsdp: true" in outcome.out
    plan = outcome.out.split("# plan")[1]
    assert "processes: 4\n" in plan
    assert "torchrun --nnodes 1 --nproc_per_node 4 " in plan
    assert plan.count("nproc") == 1  # nothing of ours reaches the recipe
    assert "enable_fsdp=True" in plan


def test_the_plan_for_several_machines(tune) -> None:
    words = [
        "--nnodes",
        "2",
        "--nproc_per_node",
        "8",
        "--rdzv_endpoint",
        "node0:29400",
        "--max_restarts",
        "3",
    ]
    out = tune("run", *words, "full_finetune", "--config", "llama2/7B_full", "--dry-run").out
    assert "processes: 16 (2 machines x 8), meeting at node0:29400 (c10d); started again" in out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--nproc_per_node", "2"], "which recipe"),
        (["--nproc_per_node", "2", "ls"], "not with `tune ls`"),
        (["--nproc_per_node", "2", "run"], "which recipe"),
        (["--nproc_per_node", "2", "full_finetun"], "did you mean full_finetune?"),
        (["--nproc", "2", "full_finetune"], "no option --nproc"),
    ],
)
def test_options_first_and_then_something_else(tune, words: list[str], hint: str) -> None:
    outcome = tune(*words)
    assert outcome.code == 2
    assert hint in outcome.err


def test_helps_list_the_options(tune) -> None:
    whole, of_recipe = tune("run", "--help").out, tune("full_finetune", "--help").out
    for option in LAUNCH_OPTIONS:
        assert option.flags[0] in whole
        assert option.flags[0] in of_recipe
    assert load_command("run") is COMMAND


def test_every_process_finds_a_gpu_of_its_own() -> None:
    def settled(plan: LaunchPlan, device: str | None, gpus: int, is_run: bool = True) -> int:
        return settle(plan, device, lambda: gpus, is_run=is_run).nproc_per_node

    gpu, cpu, auto = LaunchPlan(0, "gpu"), LaunchPlan(0, "cpu"), LaunchPlan(0, "auto")
    cores = settled(cpu, "cuda", 3)
    assert cores >= 1
    assert settled(gpu, "cuda", 3) == settled(auto, None, 3) == settled(LaunchPlan(3), "cuda", 3) == 3
    assert settled(auto, "cpu", 3) == settled(auto, None, 0) == cores
    assert settled(LaunchPlan(5), "cpu", 3) == settled(LaunchPlan(5), None, 0) == 5
    assert settled(LaunchPlan(5), "cuda", 3, is_run=False) == 5  # a plan for another machine
    for plan, device, gpus, hint in (
        (
            LaunchPlan(5),
            "cuda",
            3,
            "5 processes need a GPU each, but there are 3 here; give --nproc_per_node 3",
        ),
        (LaunchPlan(5), None, 3, "or device=cpu"),
        (LaunchPlan(2), "cuda", 0, "with device=cpu"),
        (gpu, None, 0, "no GPU here"),
    ):
        with pytest.raises(UsageError, match=hint):
            settled(plan, device, gpus)
