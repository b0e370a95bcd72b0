"""Every command does what its help says, and says what went wrong."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tune.cli.arguments import format_help, read_arguments
from tune.cli.catalogue import RECIPES, find_config, find_recipe, list_configs
from tune.cli.main import COMMANDS, load_command

CONFIG_FOLDER = Path(__file__).parents[2] / "recipes" / "configs"
NAMES = sorted(set(COMMANDS.values()))


def test_a_bare_tune_lists_every_command_in_a_line(tune) -> None:
    outcome = tune()
    assert outcome.code == 0
    assert outcome.err == ""
    width = max(map(len, NAMES)) + 2
    for name in NAMES:
        command = load_command(name)
        assert f"  {name:<{width}}{command.summary}\n" in outcome.out
    assert tune("--help").out == outcome.out == tune("help").out


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(tune, flag: str) -> None:
    import tune as package

    assert tune(flag).out == f"tune {package.__version__}\n"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["{} --help", "{} -h", "help {}"])
def test_every_command_has_help_with_examples(tune, name: str, form: str) -> None:
    outcome = tune(*form.format(name).split())
    assert outcome.code == 0
    command = load_command(name)
    assert outcome.out == format_help(command)
    assert len(command.examples) >= 1
    for line, _ in command.examples:
        assert line in outcome.out.replace(" \\\n  ", " ")
    for option in command.options:
        assert option.flags[0] in outcome.out


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_the_help_can_be_read(name: str) -> None:
    for line, _ in load_command(name).examples:
        words = shlex.split(line.replace('eval "$(', "").replace(')"', "").split(">")[0].split("|")[0])
        assert words[0] == "tune"
        command = load_command(words[1])
        read_arguments(command, words[2:])
        for position, word in enumerate(words):
            if words[position - 1] == "--config" and word != "my.yaml":
                assert find_config(word).is_file(), line


@pytest.mark.parametrize(
    ("word", "meant"),
    [("vaildate", "validate"), ("lst", "ls"), ("lunch", "launch"), ("finetune_lm", "finetune_llm")],
)
def test_an_unknown_command_suggests_the_nearest(tune, word: str, meant: str) -> None:
    outcome = tune(word)
    assert outcome.code == 2
    assert outcome.out == ""
    assert f"did you mean `tune {meant}`?" in outcome.err


HELPS = [
    ["--help"],
    *([name, "--help"] for name in NAMES),
    *(["run", each.name, "--help"] for each in RECIPES),
]


@pytest.mark.parametrize("columns", [20, 33, 44, 60, 80])
def test_help_keeps_to_the_width_and_its_words_whole(tune, monkeypatch, columns: int) -> None:
    for words in HELPS:
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = tune(*words).out.splitlines()
        for line in lines:
            assert len(line) <= columns or len(line.strip("# \\").split()) == 1, line
        monkeypatch.setenv("COLUMNS", "120")
        # A long command goes on behind a backslash, and what it does behind another #.
        marks = ("\\", "#")
        wide, narrow = (
            sorted(word for word in text.split() if word not in marks)
            for text in (tune(*words).out, "\n".join(lines))
        )
        assert wide == narrow
    assert "[--against RUN|MODEL]" in tune("eval", "--help").out


@pytest.mark.parametrize("verb", ["plot", "train", "finetune", "export", "quantize", "convert"])
def test_a_verb_of_other_tools_says_what_it_is_here(tune, verb: str) -> None:
    outcome = tune(verb, "x")
    assert outcome.code == 2
    assert f"there is no command {verb!r}: " in outcome.err
    named = [name for _, name in re.findall(r"`tune (run )?([a-z-_]+)", outcome.err)]
    assert all(name in COMMANDS or find_recipe(name) is not None for name in named)


@pytest.mark.parametrize(
    "words", [["--foo"], ["-x"], [""], ["a b"], ["nope.py"], ["no/such"], ["\0"], ["\udcff"]]
)
def test_nonsense_is_answered(tune, words: list[str]) -> None:
    outcome = tune(*words)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("name", NAMES)
def test_options_are_not_abbreviated_or_invented(tune, name: str) -> None:
    for option in [option for option in load_command(name).options if option.flags[0].startswith("--")]:
        outcome = tune(name, option.flags[0][:-1] + "x")
        assert outcome.code == 2
        assert "has no option" in outcome.err
    assert tune(name, "--unheard-of").code == 2


def test_ls_shows_every_recipe_and_config(tune) -> None:
    outcome = tune("ls")
    assert outcome.code == 0
    for recipe in RECIPES:
        assert recipe.name in outcome.out
        assert all(alias in outcome.out for alias in recipe.aliases)
    for config in list_configs():
        assert config.name in outcome.out
    assert "tune run full_finetune --config tiny/full_finetune" in outcome.out


def test_every_config_belongs_to_a_recipe() -> None:
    configs = list_configs()
    assert len(configs) == len(list(CONFIG_FOLDER.rglob("*.yaml"))) > 0
    for config in configs:
        assert config.recipe is not None, config.name
        assert find_recipe(config.recipe) is not None, config.name


def test_ls_can_be_narrowed_and_read_by_scripts(tune) -> None:
    assert "full_finetune" not in tune("ls", "generate").out
    names = tune("ls", "--names").out.splitlines()
    assert "full_finetune" in names
    assert "llama2/7B_full" in names
    assert tune("ls", "finetune_llm").code == 0
    assert "did you mean generate?" in tune("ls", "generat").err
    assert tune("ls", "a", "b").code == 2


@pytest.mark.parametrize("name", ["llama2/7B_full", "llama2/7B_full.yaml", "alpaca_llama2_finetune"])
def test_cat_prints_a_config_as_it_stands(tune, name: str) -> None:
    assert tune("cat", name).out == find_config(name).read_text()


def test_cat_prints_recipes_and_files(tune, tmp_path: Path) -> None:
    assert "recipe_main" in tune("cat", "full_finetune").out
    (tmp_path / "here.yaml").write_text("a: 1\n")
    assert tune("cat", "here.yaml").out == tune("cat", "here").out == "a: 1\n"
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\n")
    assert "not UTF-8" in tune("cat", "bytes.yaml").err


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("llama3_1/8B_lora_single_device", "llama3_1/8B_lora"),
        ("llama3/8B_qdora_single_device.yaml", "llama3/8B_qdora"),
        ("code_llama2/7B_full_low_memory", "code_llama2/7B_full"),
        ("llama3_3/70B_full_multinode", "llama3_3/70B_full"),
        ("qwen3/8B_full_distributed", "qwen3/8B_full"),
        ("llama2/7B_qlora", "llama2/7B_qlora_single_device"),
        ("qwen2/evaluation", "eleuther_evaluation"),
        ("code_llama2/evaluation.yaml", "eleuther_evaluation"),
    ],
)
def test_torchtune_config_names_mean_ours(tune, name: str, plain: str) -> None:
    outcome = tune("validate", name)
    assert outcome.code == 0
    assert outcome.err.count(f"warning: {name} is read as {plain}: one config serves") == 1
    assert ("shows what saves some" in outcome.err) == name.endswith("_low_memory")
    assert find_config(name).samefile(CONFIG_FOLDER / f"{plain}.yaml")


def test_our_own_config_names_come_first(tune) -> None:
    for name in ("llama2/7B_full_low_memory", "llama2/7B_lora_single_device", "llama2/7B_lora"):
        assert tune("cat", name).err == ""
        assert find_config(name).samefile(CONFIG_FOLDER / f"{name}.yaml")


@pytest.mark.parametrize(
    "name",
    [
        "llama3/8B_qat_full",
        "llama3_2_vision/11B_lora_single_device",
        "t5/7B_low_memory",
        "llama3_2_vision/evaluation",
    ],
)
def test_what_no_config_stands_for_is_refused(tune, name: str) -> None:
    outcome = tune("validate", name)
    assert outcome.code == 2
    assert f"there is no config {name}" in outcome.err


def test_unknown_configs_suggest_the_nearest(tune) -> None:
    assert "did you mean llama2/7B_full?" in tune("cat", "llama2/7B_ful").err
    assert (
        "did you mean code_llama2/7B_full, gemma/7B_full, llama2/7B_full" in tune("validate", "7B_full").err
    )
    assert "did you mean qwen3/0.6B_full?" in tune("validate", "0.6B_full").err
    assert "is a folder" in tune("validate", ".").err
    assert "pipe or a device" in tune("validate", "/dev/null").err
    for name in ("", "a" * 5000, "x\0y", "\udcff"):
        outcome = tune("validate", name)
        assert outcome.code == 2, outcome


def test_cp_makes_a_config_ones_own(tune, tmp_path: Path) -> None:
    outcome = tune("cp", "llama2/7B_full", "new/folder/my")
    assert outcome.code == 0
    copy = tmp_path / "new/folder/my.yaml"
    first, *others = copy.read_text().splitlines(keepends=True)
    assert first == "# yaml-language-server: $schema=.tune/full_finetune.schema.json\n"
    assert "".join(others) == find_config("llama2/7B_full").read_text()
    schema = json.loads((copy.parent / ".tune/full_finetune.schema.json").read_text())
    assert "batch_size" in schema["properties"]
    # what it says to type next works
    steps = [line.split()[1:] for line in outcome.out.splitlines() if line.startswith("  tune ")]
    assert [step[0] for step in steps] == ["validate", "run"]
    assert tune(*steps[0]).code == 0
    assert tune(*steps[1], "--dry-run").code == 0
    # a copy of the copy has the line once
    assert tune("cp", "new/folder/my.yaml", "again.yaml").code == 0
    assert (tmp_path / "again.yaml").read_text() == copy.read_text()


def test_cp_makes_a_recipe_ones_own(tune, tmp_path: Path) -> None:
    outcome = tune("cp", "full_finetune_single_device", "--to", "mine/")
    assert outcome.code == 0
    assert (tmp_path / "mine/full_finetune.py").read_text() == RECIPES[0].file.read_text()
    (step,) = [line.split()[1:] for line in outcome.out.splitlines() if line.startswith("  tune ")]
    assert step[:2] == ["run", "./mine/full_finetune.py"]
    assert tune(*step, "--dry-run").code == 0


def test_cp_without_a_place_copies_here(tune, tmp_path: Path) -> None:
    assert tune("cp", "generate").code == 0
    assert (tmp_path / "generate.py").is_file()


def test_cp_overwrites_only_with_force(tune, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("precious\n")
    outcome = tune("cp", "llama2/7B_full", "my.yaml")
    assert outcome.code == 2
    assert "--force" in outcome.err
    assert (tmp_path / "my.yaml").read_text() == "precious\n"
    assert tune("cp", "llama2/7B_full", "my.yaml", "--force").code == 0
    assert (tmp_path / "my.yaml").read_text() != "precious\n"
    assert "the file itself" in tune("cp", "my.yaml", "my.yaml", "--force").err


@pytest.mark.parametrize("target", ["file.txt/inside.yaml", "/proc/nowhere/x.yaml", "/dev/full/x"])
def test_cp_says_why_it_cannot_write(tune, tmp_path: Path, target: str) -> None:
    (tmp_path / "file.txt").write_text("")
    outcome = tune("cp", "llama2/7B_full", target)
    assert outcome.code == 1
    assert "cannot be written" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["a", "b", "c"],
        ["llama2/7B_full", "a", "--to", "b"],
        ["llama2/7B_full", "a\0b"],
        ["genrate"],
        ["."],
    ],
)
def test_cp_explains_its_usage(tune, words: list[str]) -> None:
    outcome = tune("cp", *words)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")


def test_schema_is_json_schema(tune) -> None:
    import jsonschema
    import yaml

    schema = json.loads(tune("schema", "full_finetune").out)
    jsonschema.Draft7Validator.check_schema(schema)
    for config in list_configs():
        if find_recipe(config.recipe or "") is RECIPES[0]:
            # PyYAML follows YAML 1.1, where 2e-5 is text; editors follow 1.2
            text = re.sub(r"\b(\d+)e(-\d+)\b", r"\1.0e\2", config.file.read_text())
            jsonschema.validate(yaml.safe_load(text), schema)
    assert tune("schema").code == 2
    assert tune("schema", "nothing").code == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["optimizer"], ["AdamW", "SGD", "torch.optim", "weight_decay"]),
        (["optimizer=SGD"], ["torch.optim.SGD", "momentum", "nesterov"]),
        (["SGD"], ["torch.optim.SGD", "momentum"]),
        (["torch.optim.RAdam"], ["torch.optim.RAdam", "decoupled_weight_decay"]),
        (["optimizer.fused"], ["optimizer.fused", "tune.modules.optim.AdamW", "true or false"]),
        (["lr"], ["number", "short for optimizer.lr"]),
        (["batch_size"], ["whole number", "between 1 and", "Sequences"]),
        (["dataset"], ["alpaca", "required", "list of them"]),
        (["model=llama2_7b"], ["tune.models.llama2.llama2_7b"]),
        (["lr_scheduler=cosine"], ["num_warmup_steps", "the recipe sets it"]),
        ([], ["batch_size", "Optimization:"]),
    ],
)
def test_describe(tune, words: list[str], expected: list[str]) -> None:
    outcome = tune("describe", "full_finetune", *words)
    assert outcome.code == 0, outcome.err
    for text in expected:
        assert text in outcome.out
    if words and words[0].startswith(("optimizer=", "SGD")):
        assert "\n  params " not in outcome.out  # the recipe's business


@pytest.mark.parametrize("recipe", [recipe.name for recipe in RECIPES])
def test_everything_can_be_described(tune, recipe: str) -> None:
    from tune.config.params import fields_of

    for name in fields_of(find_recipe(recipe).load_params()):
        outcome = tune("describe", recipe, name)
        assert outcome.code == 0, (name, outcome.err)
        assert outcome.out.startswith(name)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["full_finetune", "optimzer"], "did you mean optimizer?"),
        (["full_finetune", "optimizer.fussed"], "did you mean fused?"),
        (["full_finetune", "optimizer=adamw"], "did you mean AdamW?"),
        (["full_finetune", "batch_size.x"], "no parts"),
        (["full_finetune", "os.system"], "no parameter"),
        (["nothing"], "tune ls"),
        ([], "usage: tune describe RECIPE [PARAM"),
    ],
)
def test_describe_explains_what_is_not_there(tune, words: list[str], hint: str) -> None:
    outcome = tune("describe", *words)
    assert outcome.code == 2
    assert hint in outcome.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(tune, shell: str) -> None:
    assert "tune completion --words --" in tune("completion", shell).out


def test_completion_follows_the_shell(tune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/zsh")
    assert "compdef" in tune("completion").out
    monkeypatch.setenv("SHELL", "/usr/bin/tcsh")
    assert tune("completion").code == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["val"], ["validate"]),
        (["run", "full_"], ["full_finetune"]),
        (["run", "--config", "llama2/70"], ["llama2/70B_full", "llama2/70B_lora", "llama2/70B_qlora"]),
        (["run", "full_finetune", "batch_size_"], ["batch_size_val="]),
        (["full_finetune", "batch_size_"], ["batch_size_val="]),
        (["finetune_llm", "batch_size_"], ["batch_size_val="]),
        (["run", "full_finetune", "--dry"], ["--dry-run"]),
        (["run", "full_finetune", "dtype=b"], ["dtype=bf16"]),
        (["run", "full_finetune", "dtype", "=", "b"], ["bf16"]),  # as bash cuts it
        (["run", "full_finetune", "shuffle", "="], ["true", "false"]),
        (["lora_finetune", "lr_scheduler=cos"], ["lr_scheduler=cosine"]),
        (["run", "full_finetune", "optimizer.weight_"], ["optimizer.weight_decay="]),
        (["run", "distill", "--config", "tiny/"], ["tiny/distill"]),
        (["sh"], ["share"]),
        (["rep"], ["report"]),
        (["ch"], ["chat"]),
        (["share", "x", "--red"], ["--redact", "--redact-key", "--redact_key"]),
        (["describe", "generate", "top_"], ["top_k", "top_p"]),
        (["cat", "llama2/13"], ["llama2/13B_full", "llama2/13B_lora", "llama2/13B_qlora"]),
        (["completion", "f"], ["fish"]),
        (["run", "./mine.py", "x"], []),
        (["nothing", "x"], []),
        (["upload", "x"], []),
        (["merge", "x"], []),
        (["merge", "--b"], ["--base"]),
        (["merge", "x", "--dtype", "b"], ["bf16"]),
        (["run", "--config", "tiny/pretrain", "gen"], ["generate"]),
        (["validate", "tiny/lora_finetune", "quantize_"], ["quantize_base="]),
        (["validate", "llama2/7B_full", "--remove", "batch_size_"], ["batch_size_val"]),
        (["validate", "nowhere", "top_"], []),
        (["download", "olmo2-1b", "olmo2"], []),
    ],
)
def test_completion_finds_words(tune, words: list[str], expected: list[str]) -> None:
    outcome = tune("completion", "--words", "--", *words)
    assert outcome.code == 0
    assert outcome.out.splitlines() == expected
