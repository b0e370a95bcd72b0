"""What a model was trained in is what is saved with it, for any tool that asks it later."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tune.checkpoints import load_into, open_weights, save_model
from tune.checkpoints.save import write_tokenizer
from tune.datasets import chat_dataset
from tune.models import auto
from tune.tokenizers import ChatTemplate, Message, SentencePieceTokenizer, from_checkpoint
from tune.tokenizers.chat_template import apply_chat_template
from tune.tokenizers.chat_template_builtin import BUILTIN_NAMES, builtin_template
from tune.tokenizers.templates import PromptTemplate, get_prompt_template
from tune.tokenizers.trained_template import as_chat_template, to_jinja

CONVERSATIONS = [
    [
        ("user", "What is {{ 1 + 1 }}?"),
        ("assistant", " two\\n"),
        ("user", '"And"\n\u2603?'),
        ("assistant", "3"),
    ],
    [("system", "Be brief. "), ("user", " Hi "), ("assistant", "Ho")],
    [("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "d")],
]
TEXT_TEMPLATES = [
    "alpaca",
    "question_answer",
    "summarize",
    "grammar_error_correction",
    "chatml",
    "llama2_chat",
]
TURNS = [
    {"role": "user", "content": "the question"},
    {"role": "assistant", "content": "seven"},
    {"role": "user", "content": "walk"},
    {"role": "assistant", "content": "green"},
]
OWN = "{% for m in messages %}{{ '<|start|>' ~ m.role ~ ' ' ~ m.content ~ '<|end|>' }}{% endfor %}"
OWN += "{% if add_generation_prompt %}{{ '<|start|>assistant ' }}{% endif %}"


@pytest.mark.parametrize("name", [*TEXT_TEMPLATES, "own"])
@pytest.mark.parametrize("add_bos", [True, False])
def test_a_text_template_as_jinja_writes_the_same(name, add_bos):
    own = PromptTemplate(("\\S'", "'\n"), ('"U: ', " \\n\u2603"), ("A:  ", "</a>"), name="own")
    template = own if name == "own" else get_prompt_template(name)
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    chat = ChatTemplate(to_jinja(template, add_bos))
    for turns in CONVERSATIONS:
        messages = [Message(role, content) for role, content in turns]
        plain = [{"role": role, "content": content} for role, content in turns]
        assert chat.render(plain, variables=names) == _written(template, messages, add_bos)
        asked = chat.render(plain[:1], variables=names, add_generation_prompt=True)
        assert asked == _written(template, messages[:1], add_bos)


def _written(template, messages, add_bos):
    text = ""
    for segment in template.segments(messages):
        text += "<s>" * (add_bos and segment.add_bos) + segment.text + "</s>" * segment.add_eos
    return text


def test_code_of_one_s_own_is_not_said_in_jinja():
    class Shouting(PromptTemplate):
        def write_answer(self, message):
            return message.content.upper()

    assert to_jinja(Shouting(), add_bos=True) is None


@pytest.fixture
def train(chat_folder, chat_definition, tmp_path):
    """Return the folders of a model before and after it was trained on chat data: every answer is a stop token."""

    def run(template, came_with=None, **settings):
        before = chat_folder(came_with)
        definition = json.loads(chat_definition)
        added = definition["added_tokens"]
        needs = builtin_template(template).needs if template in BUILTIN_NAMES else ()
        for number, token in enumerate(dict.fromkeys((*needs, "<|im_start|>", "<|im_end|>"))):
            added.append({**added[0], "id": 700 + number, "content": token})
        (before / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
        eos = next(entry["id"] for entry in added if entry["content"] == "<|eos|>")
        config = LlamaConfig(
            vocab_size=720,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            eos_token_id=eos,
        )
        LlamaForCausalLM(config).save_pretrained(before)
        (before / "generation_config.json").write_text(json.dumps({"eos_token_id": eos, "top_k": 7}))
        data = tmp_path / "data.jsonl"
        data.write_text(json.dumps({"messages": TURNS}) + "\n")
        tokenizer = from_checkpoint(before)
        dataset = chat_dataset(tokenizer, source=str(data), prompt_template=template, **settings)
        labels = dataset[0]["labels"]
        end = [label for label in labels if label >= 0][-1]
        with torch.device("meta"):
            model = auto(str(before))
        load_into(model, open_weights(before))
        saved = tmp_path / "saved"
        save_model(model, saved, tokenizer=tokenizer)
        return before, saved, eos, end

    return run


@pytest.mark.parametrize("template", [*BUILTIN_NAMES, "chatml", "chat", "mine.jinja"])
def test_transformers_stops_where_training_did(train, tmp_path, monkeypatch, template):
    (tmp_path / "mine.jinja").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    before, saved, eos, end = train(template, came_with=OWN)
    for name in ("config.json", "generation_config.json"):
        said = json.loads((saved / name).read_text())["eos_token_id"]
        assert {eos, end} == set(said if isinstance(said, list) else [said])
    assert json.loads((saved / "generation_config.json").read_text())["top_k"] == 7
    model = AutoModelForCausalLM.from_pretrained(saved)
    with torch.no_grad():
        # Whatever it reads, it writes what it was taught to end with.
        model.lm_head.weight.zero_()
        model.model.norm.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(720))
        model.lm_head.bias[end] = 1.0
        written = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=9, do_sample=False)
    assert written.tolist() == [[5, 6, 7, end]]
    asked = [{"role": "user", "content": "walk"}]
    theirs = AutoTokenizer.from_pretrained(saved)
    ours = from_checkpoint(before)
    used = get_prompt_template(template) if template != "chat" else ours.chat_template
    assert theirs.apply_chat_template(
        asked, add_generation_prompt=True, return_dict=False
    ) == apply_chat_template(ours, asked, template=used, add_generation_prompt=True)
    assert from_checkpoint(saved).stop_ids == tuple(dict.fromkeys((eos, end)))


def test_the_system_prompt_and_variables_are_part_of_it(train, tmp_path):
    source = "{% if loud %}LOUD{% endif %}" + OWN
    (tmp_path / "mine.jinja").write_text(source)
    system = "Say 'aye',\n{{ nothing }} \"else\"."
    _, saved, _, _ = train(
        str(tmp_path / "mine.jinja"), new_system_prompt=system, chat_template_kwargs={"loud": True}
    )
    theirs = AutoTokenizer.from_pretrained(saved)
    asked = [{"role": "user", "content": "walk"}]
    text = theirs.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert text == f"LOUD<|start|>system {system}<|end|><|start|>user walk<|end|><|start|>assistant "
    other = [{"role": "system", "content": "Other."}, *asked]
    assert theirs.apply_chat_template(other, tokenize=False, loud=False) == (
        "<|start|>system Other.<|end|><|start|>user walk<|end|>"
    )


def test_a_resumed_run_adopts_the_same_again(train, tmp_path):
    (tmp_path / "mine.jinja").write_text(OWN)
    data = tmp_path / "data.jsonl"
    _, saved, _, _ = train(str(tmp_path / "mine.jinja"), new_system_prompt="Be brief.")
    once = (saved / "chat_template.jinja").read_text()
    for template in (str(tmp_path / "mine.jinja"), "chat"):
        tokenizer = from_checkpoint(saved)
        chat_dataset(tokenizer, source=str(data), prompt_template=template, new_system_prompt="Be brief.")
        assert tokenizer.trained_template.source == once


def test_the_first_of_several_is_saved_and_said(chat_folder, tmp_path, caplog):
    tokenizer = from_checkpoint(chat_folder(OWN))
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"messages": TURNS}) + "\n")
    chat_dataset(tokenizer, source=str(data))
    chat_dataset(tokenizer, source=str(data))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        chat_dataset(tokenizer, source=str(data), prompt_template="question_answer")
    assert "The first is what is saved" in caplog.text
    assert tokenizer.adopted_template is None


def test_llama_2_s_fallback_is_saved_and_read_as_it_was_trained(spm_file, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"messages": TURNS}) + "\n")
    tokenizer = SentencePieceTokenizer(spm_file)
    trained = chat_dataset(tokenizer, source=str(data))
    saved = tmp_path / "saved"
    saved.mkdir()
    write_tokenizer(saved, tokenizer)
    again = from_checkpoint(saved)
    assert "[INST]" in (saved / "chat_template.jinja").read_text()
    # A run that goes on reads its data as before, to the id, and so does a question to the model.
    assert [*chat_dataset(again, source=str(data))] == [*trained]
    asked = trained.render_prompt("walk")
    assert apply_chat_template(again, TURNS[2:3], tokenize=False, add_generation_prompt=True) == asked
    theirs = AutoTokenizer.from_pretrained(saved)
    text = theirs.apply_chat_template(TURNS[2:3], tokenize=False, add_generation_prompt=True)
    assert text == "<s>" + asked


@pytest.mark.parametrize("start", ["\n", "  {% if true %}", "{%- if true %}", "{% if true %}\n"])
def test_what_comes_first_changes_nothing_of_the_template(start):
    source = start + "Hello {{ messages | length }}" + ("{% endif %}" if "if" in start else "")
    written = ChatTemplate(source).render(TURNS)
    assert as_chat_template(ChatTemplate(source), True, "Be brief.", {}).render(
        [{"role": "system", "content": "x"}, *TURNS]
    ) == written.replace("4", "5")
    with_variables = as_chat_template(
        ChatTemplate(source), True, "", {"a": [1, None, {"b": None}], "c": "\\n"}
    )
    assert with_variables.render(TURNS) == written
    shown = ChatTemplate(with_variables.source + "{{ a[1] is none }}{{ a[2].b is none }}{{ c }}")
    assert shown.render(TURNS) == written + "TrueTrue\\n"
