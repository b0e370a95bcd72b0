"""Tokens that a tokenizer gets beyond the model's: rows, ids and logits, training, resuming, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tune.models
from tune.checkpoints import load_adapter, load_into, open_weights, save_model
from tune.cli.main import main
from tune.errors import ConfigError, GenerationError
from tune.models.llama2 import llama2
from tune.models.merging import merge_adapter
from tune.modules.new_rows import resize_vocabulary
from tune.recipes.full_finetune import FullFinetuneRecipe
from tune.recipes.full_finetune import recipe_main as full_finetune
from tune.recipes.generate import recipe_main as generate
from tune.recipes.lora_finetune import LoraFinetuneRecipe
from tune.recipes.lora_finetune import recipe_main as lora_finetune
from tune.recipes.params.full_finetune import FullFinetuneParams
from tune.recipes.params.generate import GenerateParams
from tune.recipes.params.lora_finetune import LoraFinetuneParams
from tune.tokenizers import from_checkpoint

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NUM_TOKENS = 360  # of the fixture's tokenizer, those that it was given after its training included


@pytest.fixture
def base(chat_folder: Callable[..., Path]) -> Callable[..., Path]:
    """Return a function that writes a random model beside the tokenizer of a chat model."""

    def write(num_rows: int = NUM_TOKENS, *, tied: bool = False, template: str = CHATML) -> Path:
        folder = chat_folder(template, pad_token="<|end|>")
        torch.manual_seed(7)
        model = llama2(num_rows, 2, 4, 24, 128, num_kv_heads=2, intermediate_dim=40, tie_word_embeddings=tied)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        save_model(model, folder)
        return folder

    return write


@pytest.fixture
def values(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that gives the values of a short run of either recipe."""
    data = tmp_path / "chat.jsonl"
    rows = [
        [{"role": "user", "content": f"apple {word}"}, {"role": "assistant", "content": f"{word} river"}]
        for word in ["green", "walk", "seven", "twelve", "green", "apple", "seven"]
    ]
    data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")

    def make(base: Path, **changes: Any) -> dict[str, Any]:
        return {
            "output_dir": str(tmp_path / "out"),
            "model_checkpoint": str(base),
            "dataset": {"_component_": "tune.datasets.chat_dataset", "source": str(data)},
            "tokenizer": {"_component_": "auto", "add_special_tokens": ["<|im_start|>", "<|im_end|>"]},
            "batch_size": 2,
            "epochs": 1,
            "optimizer": {"_component_": "torch.optim.AdamW", "lr": 0.01},
            "dtype": "fp32",
            "device": "cpu",
            "seed": 3,
            "log_level": "WARNING",
            "save_every_n_steps": 1,
            **changes,
        }

    return make


def with_unknown_tokens(folder: Path, *texts: str, **settings: object) -> Path:
    """Put tokens into a checkpoint's tokenizer that its model has no row for."""
    theirs = AutoTokenizer.from_pretrained(folder)
    theirs.add_tokens(list(texts), special_tokens=True)
    theirs.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


def answer(folder: Path, prompt: str, capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    capsys.readouterr()
    given = {"model_checkpoint": str(folder), "prompt": prompt, "max_new_tokens": 5, "temperature": 0.0}
    generate(GenerateParams(**{**given, "device": "cpu", "log_level": "WARNING", **changes}))
    return capsys.readouterr().out


# ---- tokens without rows


def test_tokens_without_rows_never_train(base, values, tmp_path: Path) -> None:
    folder = with_unknown_tokens(base(), "<|im_start|>", "<|im_end|>", "\x1b[2J", "<x>", "y" * 99)
    params = FullFinetuneParams(**values(folder, tokenizer="auto"))
    with pytest.raises(ConfigError) as caught:
        full_finetune(params)
    said = str(caught.value)
    assert f"{NUM_TOKENS + 5} different tokens, but the model knows only {NUM_TOKENS}" in said
    assert "'<|im_start|>' (360), '<|im_end|>' (361), '\\x1b[2J' (362), '<x>' (363) and 1 more" in said
    assert "tokenizer.add_special_tokens" in said
    assert not list((tmp_path / "out").glob("step_*"))


def test_naming_one_of_them_gives_rows_to_all(base, values, tmp_path: Path) -> None:
    folder = with_unknown_tokens(base(), "<|im_start|>", "<|im_end|>", "<|third|>")
    tokenizer = {"_component_": "auto", "add_special_tokens": ["<|im_start|>"]}
    assert (
        full_finetune(FullFinetuneParams(**values(folder, tokenizer=tokenizer, max_steps_per_epoch=1))) == 0
    )
    saved = tmp_path / "out" / "latest" / "model"
    assert tune.models.from_checkpoint(saved).config.vocab_size == NUM_TOKENS + 3
    assert from_checkpoint(saved).special_tokens["<|third|>"] == NUM_TOKENS + 2
    assert AutoTokenizer.from_pretrained(saved).convert_tokens_to_ids("<|im_end|>") == NUM_TOKENS + 1


def test_a_pad_token_that_nothing_writes_needs_no_row(base, values, capsys) -> None:
    folder = with_unknown_tokens(base(template=None), "[PAD]", pad_token="[PAD]")
    params = values(folder, tokenizer={"_component_": "auto", "prompt_template": "plain"})
    assert full_finetune(FullFinetuneParams(**params, max_steps_per_epoch=1)) == 0
    assert answer(folder, "apple", capsys)


def test_generating_refuses_a_template_with_tokens_without_rows(base, capsys) -> None:
    folder = with_unknown_tokens(base(), "<|im_start|>", "<|im_end|>")
    assert answer(folder, "apple", capsys)  # nothing writes them
    with pytest.raises(GenerationError, match=r"no row for: '<\|im_start\|>', '<\|im_end\|>'"):
        answer(folder, "apple", capsys, prompt_template="chat")


def test_converting_notes_tokens_without_rows(base, tmp_path: Path, capsys) -> None:
    folder = with_unknown_tokens(base(), "<|im_start|>")
    assert main(["convert-ckpt", str(folder), str(tmp_path / "meta"), "--to", "meta"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"no row for ({NUM_TOKENS} rows): '<|im_start|>' (360)" in said


# ---- new rows


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_new_rows_are_the_mean_of_the_old_ones(base, tied: bool) -> None:
    folder = base(tied=tied)
    whole = tune.models.from_checkpoint(folder)
    with torch.device("meta"):
        grown = tune.models.auto(str(folder))
    for model in (grown, whole):
        resize_vocabulary(model, NUM_TOKENS + 5)
    load_into(grown, open_weights(folder), dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    theirs.resize_token_embeddings(NUM_TOKENS + 5)
    for model in (grown, whole):
        for mine, reference in (
            (model.tok_embeddings.weight, theirs.get_input_embeddings().weight),
            (model.output_weight, theirs.get_output_embeddings().weight),
        ):
            assert torch.equal(mine[:NUM_TOKENS], reference[:NUM_TOKENS])
            # It draws numbers close to the mean.
            torch.testing.assert_close(mine[NUM_TOKENS:], reference[NUM_TOKENS:], rtol=0, atol=1e-3)
            mean = mine[:NUM_TOKENS].mean(0).expand(5, -1)
            torch.testing.assert_close(mine[NUM_TOKENS:], mean, rtol=0, atol=1e-7)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_what_is_saved_is_the_same_for_transformers(base, values, tmp_path: Path, capsys, tied: bool) -> None:
    tokenizer = {
        "_component_": "auto",
        "add_tokens": ["<tool>", "twelve apple"],
        "add_special_tokens": ["<|im_start|>", "<|im_end|>"],
    }
    folder = base(tied=tied)
    (folder / "generation_config.json").write_text('{"top_k": 7, "eos_token_id": 1}')
    assert full_finetune(FullFinetuneParams(**values(folder, tokenizer=tokenizer))) == 0
    saved = tmp_path / "out" / "latest" / "model"
    assert json.loads((saved / "generation_config.json").read_text())["top_k"] == 7
    theirs, ours = AutoModelForCausalLM.from_pretrained(saved), tune.models.from_checkpoint(saved)
    their_tokenizer, our_tokenizer = AutoTokenizer.from_pretrained(saved), from_checkpoint(saved)
    assert len(their_tokenizer) == our_tokenizer.vocab_size == theirs.config.vocab_size == NUM_TOKENS + 4
    reference = AutoTokenizer.from_pretrained(folder)
    reference.add_tokens(["<tool>", "twelve apple"])
    reference.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    text = "green <tool> twelve apple<tool>"
    ids = our_tokenizer.encode(text, add_bos=False, add_eos=False)
    assert (
        ids
        == their_tokenizer.encode(text, add_special_tokens=False)
        == reference.encode(text, add_special_tokens=False)
    )
    assert {NUM_TOKENS, NUM_TOKENS + 1} <= set(ids)
    messages = [{"role": "user", "content": "apple"}]
    chat = our_tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert chat == their_tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert NUM_TOKENS + 2 in chat
    assert our_tokenizer.decode(chat) == their_tokenizer.decode(chat, skip_special_tokens=True)
    with torch.no_grad():
        tokens = torch.tensor([chat + ids])
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)
    assert answer(saved, "apple", capsys, prompt_template="chat") is not None


def test_a_padded_vocabulary_has_room_for_new_tokens(base, values, tmp_path: Path) -> None:
    assert full_finetune(FullFinetuneParams(**values(base(NUM_TOKENS + 16), max_steps_per_epoch=1))) == 0
    saved = tmp_path / "out" / "latest" / "model"
    assert tune.models.from_checkpoint(saved).config.vocab_size == NUM_TOKENS + 16
    assert from_checkpoint(saved).special_tokens["<|im_start|>"] == NUM_TOKENS


def test_resuming_is_bit_for_bit(base, values, tmp_path: Path) -> None:
    folder = base()
    once = values(folder, epochs=2, output_dir=str(tmp_path / "once"))
    assert full_finetune(FullFinetuneParams(**once)) == 0
    twice = values(folder, epochs=2, output_dir=str(tmp_path / "twice"))
    recipe = FullFinetuneRecipe(FullFinetuneParams(**twice))
    recipe.setup()
    recipe.cleanup()
    shutil.copytree(tmp_path / "once" / "step_000003", tmp_path / "twice" / "step_000003")
    assert full_finetune(FullFinetuneParams(**twice, resume_from_checkpoint=True)) == 0
    files = [tmp_path / name / "latest" / "model" / "model.safetensors" for name in ("once", "twice")]
    first, second = map(load_file, files)
    assert len(first["lm_head.weight"]) == NUM_TOKENS + 2
    assert all(torch.equal(first[name], second[name]) for name in first)
    names = ("tokenizer.json", "tokenizer_config.json")
    assert all(
        (files[0].parent / name).read_bytes() == (files[1].parent / name).read_bytes() for name in names
    )


# ---- beside adapters


@pytest.fixture
def lora_values(values: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    return lambda base, **changes: values(base, **{"lora_rank": 3, "max_steps_per_epoch": 3, **changes})


def spread(messages: list[dict[str, str]], tokenizer: Any) -> torch.Tensor:
    return torch.tensor([tokenizer.apply_chat_template(messages, add_generation_prompt=True)])


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_lora_trains_the_new_rows_and_peft_loads_them(
    base, lora_values, tmp_path: Path, capsys, tied: bool
) -> None:
    folder = base(tied=tied)
    recipe = LoraFinetuneRecipe(LoraFinetuneParams(**lora_values(folder)))
    recipe.setup()
    trained = {
        name
        for name, weight in recipe.model.named_parameters()
        if weight.requires_grad and "lora" not in name
    }
    assert trained == {"tok_embeddings.token_rows", *(() if tied else ("output.token_rows",))}
    began = recipe.model.tok_embeddings.token_rows.detach().clone()
    recipe.train()
    moved = (recipe.model.tok_embeddings.token_rows.detach() - began).abs().sum(1)
    assert (moved > 0).all()
    recipe.cleanup()
    adapter = tmp_path / "out" / "latest" / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    new_ids = [NUM_TOKENS, NUM_TOKENS + 1]
    assert config["trainable_token_indices"] == {
        "embed_tokens": new_ids,
        **({} if tied else {"lm_head": new_ids}),
    }
    assert load_file(adapter / "adapter_model.safetensors")[
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    ].shape == (2, 24)

    tokenizer = from_checkpoint(adapter)
    tokens = spread([{"role": "user", "content": "green apple"}], tokenizer)
    assert set(new_ids) <= set(tokens[0].tolist())
    ours = tune.models.from_checkpoint(folder)
    load_adapter(ours, adapter, base=folder)
    logits = ours.eval()(tokens)
    # It sees the tokenizer beside the adapter, and resizes the base.
    theirs = AutoPeftModelForCausalLM.from_pretrained(adapter)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "latest" / "model")
    merge_adapter(adapter, folder, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        for model in (theirs, saved, merged):
            torch.testing.assert_close(model.eval()(tokens).logits, logits, rtol=1e-4, atol=1e-5)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == NUM_TOKENS + 2
    beside = answer(folder, "apple", capsys, adapter_checkpoint=str(tmp_path / "out"), prompt_template="chat")
    assert beside == answer(tmp_path / "merged", "apple", capsys, prompt_template="chat")


def test_lora_trains_spare_rows_of_a_padded_vocabulary(base, lora_values, tmp_path: Path) -> None:
    folder = base(NUM_TOKENS + 16)
    assert lora_finetune(LoraFinetuneParams(**lora_values(folder))) == 0
    config = json.loads((tmp_path / "out" / "latest" / "adapter" / "adapter_config.json").read_text())
    assert config["trainable_token_indices"]["lm_head"] == [NUM_TOKENS, NUM_TOKENS + 1]
    assert tune.models.from_checkpoint(tmp_path / "out").config.vocab_size == NUM_TOKENS + 16


def test_lora_with_new_rows_resumes_bit_for_bit(base, lora_values, tmp_path: Path) -> None:
    folder = base()
    once = lora_values(folder, epochs=2, output_dir=str(tmp_path / "once"), quantize_base=True)
    assert lora_finetune(LoraFinetuneParams(**once)) == 0
    twice = {**once, "output_dir": str(tmp_path / "twice")}
    (tmp_path / "twice").mkdir()
    shutil.copytree(tmp_path / "once" / "step_000003", tmp_path / "twice" / "step_000003")
    assert lora_finetune(LoraFinetuneParams(**twice, resume_from_checkpoint=True)) == 0
    for name in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
        first, second = (load_file(tmp_path / run / "latest" / name) for run in ("once", "twice"))
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_an_adapter_with_new_rows_is_trained_further(base, lora_values, tmp_path: Path) -> None:
    folder = base()
    assert lora_finetune(LoraFinetuneParams(**lora_values(folder, output_dir=str(tmp_path / "first")))) == 0
    # Its tokenizer is taken, and one more token is added.
    changes = {"lora_rank": None, "adapter_checkpoint": str(tmp_path / "first")}
    tokenizer = {"_component_": "auto", "add_tokens": ["<tool>"]}
    recipe = LoraFinetuneRecipe(LoraFinetuneParams(**lora_values(folder, tokenizer=tokenizer, **changes)))
    recipe.setup()
    before = load_file(tmp_path / "first" / "latest" / "adapter" / "adapter_model.safetensors")
    key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    assert torch.equal(recipe.model.tok_embeddings.token_rows[:2], before[key])
    assert recipe.model.tok_embeddings.token_ids == (NUM_TOKENS, NUM_TOKENS + 1, NUM_TOKENS + 2)
    recipe.train()
    recipe.cleanup()
    assert tune.models.from_checkpoint(tmp_path / "out").config.vocab_size == NUM_TOKENS + 3


def test_an_adapter_with_whole_matrices_is_trained_further(base, lora_values, tmp_path: Path) -> None:
    folder = base()
    config = LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).save_pretrained(tmp_path / "peft")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "peft")
    changes = {"lora_rank": None, "adapter_checkpoint": str(tmp_path / "peft"), "epochs": 2}
    tokenizer = {"_component_": "auto", "prompt_template": "plain"}
    once = lora_values(folder, tokenizer=tokenizer, output_dir=str(tmp_path / "once"), **changes)
    assert lora_finetune(LoraFinetuneParams(**once)) == 0
    twice = {**once, "output_dir": str(tmp_path / "twice")}
    (tmp_path / "twice").mkdir()
    shutil.copytree(tmp_path / "once" / "step_000003", tmp_path / "twice" / "step_000003")
    assert lora_finetune(LoraFinetuneParams(**twice, resume_from_checkpoint=True)) == 0
    first, second = (
        load_file(tmp_path / run / "latest/adapter/adapter_model.safetensors") for run in ("once", "twice")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    adapter = tmp_path / "once" / "latest" / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["modules_to_save"] == [
        "embed_tokens",
        "lm_head",
    ]
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter)
    saved = tune.models.from_checkpoint(tmp_path / "once")
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(saved(tokens), theirs.eval()(tokens).logits, rtol=1e-4, atol=1e-5)
        base_head = tune.models.from_checkpoint(folder).output_weight
        assert (theirs.base_model.lm_head.weight - base_head).abs().max() > 1e-3


def test_an_adapter_on_the_output_matrix_excludes_new_rows(base, lora_values) -> None:
    with pytest.raises(ConfigError, match="set apply_lora_to_output to false"):
        lora_finetune(LoraFinetuneParams(**lora_values(base(), apply_lora_to_output=True)))


def test_validate_checks_the_types(base, values, tmp_path: Path, capsys) -> None:
    config = tmp_path / "config.yaml"
    given = values(
        base(), tokenizer={"_component_": "auto", "add_tokens": ["a", ["b"]], "add_special_tokens": "b"}
    )
    config.write_text(json.dumps(given))  # which is YAML
    assert main(["validate", str(config), "--recipe", "full_finetune", "--json"]) == 2
    paths = {error["path"] for error in json.loads(capsys.readouterr().out)["errors"]}
    assert {path.split("[")[0] for path in paths} >= {"tokenizer.add_special_tokens"}
    assert any(path.startswith("tokenizer.add_tokens") for path in paths)
