"""chat_dataset with the chat template of a checkpoint."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tune.checkpoints.save import write_tokenizer
from tune.data import preview_example
from tune.datasets import PackedDataset, chat_dataset, instruct_dataset
from tune.errors import ConfigError, DataError, TokenizerError
from tune.tokenizers import HFTokenizer, SentencePieceTokenizer, from_checkpoint

LINES = """{% if tools %}{{ tools | length }}{% endif %}{% for m in messages %}
{{ '<|start|>' + m.role + '\n' + m.content }}
{%- for call in m.tool_calls or [] %}{{ '<|call|>' + call.function | tojson }}{% endfor %}
{{- '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant\n' + ('<think></think>' if enable_thinking is false else '') }}
{%- endif %}"""
LAST_THINKS = """{% for m in messages %}
{{- '<|start|>' + m.role + '\n' + ('<think></think>' if loop.last and m.role == 'assistant' else '') }}
{{- m.content + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"""
TURNS = [
    {"role": "user", "content": "the question<|end|>"},
    {"role": "assistant", "content": "seven"},
    {"role": "user", "content": "walk"},
    {"role": "assistant", "content": "green"},
]


@pytest.fixture
def write(tmp_path):
    def to_file(*rows):
        file = tmp_path / "data.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(file)

    return to_file


def texts(tokenizer, dataset):
    return [
        "".join(f"[{text}]" if learnt else text for text, learnt in preview_example(tokenizer, item))
        for item in dataset
    ]


def test_the_checkpoints_template_is_used(chat_folder, write):
    tokenizer = from_checkpoint(chat_folder(LINES))
    dataset = chat_dataset(tokenizer, source=write({"messages": TURNS}))
    assert texts(tokenizer, dataset) == [
        "<|start|>user\nthe question<|end|><|end|>\n<|start|>assistant\n[seven<|end|>]\n"
        "<|start|>user\nwalk<|end|>\n<|start|>assistant\n[green<|end|>]\n"
    ]
    assert dataset[0]["tokens"].count(tokenizer.special_tokens["<|end|>"]) == 4
    assert dataset.report().template == "chat"
    assert "template chat" in str(dataset.report())
    # What inference gives is what training reads, samples included.
    prompt = dataset.render_prompt("the question<|end|>")
    assert prompt == tokenizer.apply_chat_template(TURNS[:1], add_generation_prompt=True)
    assert dataset[0]["tokens"][: len(prompt)] == prompt
    copy = pickle.loads(pickle.dumps(dataset))
    assert [*copy] == [*dataset]
    assert copy.render_prompt("the question<|end|>") == prompt


def test_which_template_goes_first(chat_folder, write):
    file = write({"messages": TURNS})
    folder = chat_folder(LINES)
    mine = from_checkpoint(folder, prompt_template="question_answer")
    assert chat_dataset(mine, source=file).report().template == "question_answer"
    assert chat_dataset(mine, source=file, prompt_template="chat").report().template == "chat"
    assert chat_dataset(mine, source=file, prompt_template="alpaca").report().template == "alpaca"
    assert isinstance(
        chat_dataset(from_checkpoint(folder), source=file, packed=True, max_seq_len=99), PackedDataset
    )
    with pytest.raises(
        ConfigError, match=r"without a chat template.*dataset\.prompt_template to one of .*llama3"
    ):
        chat_dataset(from_checkpoint(chat_folder()), source=file)
    with pytest.raises(TokenizerError, match="template llama3 needs the special tokens"):
        chat_dataset(mine, source=file, prompt_template="llama3")
    with pytest.raises(TokenizerError, match="no Jinja template"):
        chat_dataset(from_checkpoint(chat_folder("{% if %}")), source=file)


def test_a_llama_2_checkpoint_of_either_file_falls_back_alike(spm_file: Path, write, tmp_path: Path):
    source = write({"messages": TURNS}, {"messages": TURNS[:2]})
    expected = chat_dataset(SentencePieceTokenizer(spm_file), source=source)
    SentencePieceTokenizer(spm_file).write_settings(tmp_path)
    tokenizer = from_checkpoint(tmp_path / "tokenizer.json")
    assert isinstance(tokenizer, HFTokenizer)
    dataset = chat_dataset(tokenizer, source=source)
    assert dataset.report().template == expected.report().template == "llama2_chat"
    assert [*dataset] == [*expected]
    # One with a token for turns is another model's.
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 600, "content": "[INST]"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="without a chat template"):
        chat_dataset(from_checkpoint(tmp_path / "tokenizer.json"), source=source)


def test_the_template_of_the_training_is_saved(chat_folder, write, tmp_path: Path):
    """A base model came with none: other tools must learn how it is asked now, and what ends an answer."""
    folder = chat_folder()
    (folder / "generation_config.json").write_text('{"eos_token_id": 1, "top_p": 0.5}')
    file = tmp_path / "mine.jinja"
    file.write_text(LINES)
    tokenizer = from_checkpoint(folder)
    chat_dataset(tokenizer, source=write({"messages": TURNS}), prompt_template=str(file))
    saved = tmp_path / "saved"
    saved.mkdir()
    write_tokenizer(saved, tokenizer)
    end = tokenizer.special_tokens["<|end|>"]
    assert json.loads((saved / "generation_config.json").read_text()) == {
        "eos_token_id": [1, end],
        "top_p": 0.5,
    }
    theirs = AutoTokenizer.from_pretrained(saved)
    plain = [{"role": "user", "content": "the question"}]
    asked = theirs.apply_chat_template(plain, add_generation_prompt=True, return_dict=False)
    again = from_checkpoint(saved)
    assert again.apply_chat_template(plain, add_generation_prompt=True) == asked
    assert set(again.stop_ids) == {1, end}


def test_a_template_that_rewrites_answers_gives_several_examples(chat_folder, write):
    tokenizer = from_checkpoint(chat_folder(LAST_THINKS))
    dataset = chat_dataset(tokenizer, source=write({"messages": TURNS}, {"messages": TURNS[:2]}))
    assert [text.count("[") for text in texts(tokenizer, dataset)] == [1, 1, 1]
    assert texts(tokenizer, dataset)[1].endswith("<|start|>assistant\n[<think></think>green<|end|>]\n")
    report = dataset.report()
    assert (report.num_rows, report.num_examples, report.num_dropped) == (2, 3, 0)


def test_variables_of_a_template(chat_folder, write):
    tokenizer = from_checkpoint(chat_folder(LINES))
    file = write({"messages": TURNS[:2]})
    with pytest.raises(
        ConfigError, match=r"sets enable_thinkng, which the template chat does not read; it reads enable_th"
    ):
        chat_dataset(tokenizer, source=file, chat_template_kwargs={"enable_thinkng": False})
    with pytest.raises(ConfigError, match=r"template alpaca does not read; it reads none"):
        chat_dataset(tokenizer, source=file, chat_template_kwargs={"x": 1}, prompt_template="alpaca")
    # The prompt then ends in thinking that the written answer lacks: said, with the row, instead of masked wrongly.
    with pytest.raises(
        DataError, match=r"data\.jsonl:1: the chat template in .* asks for the answer in message 2 with"
    ):
        chat_dataset(tokenizer, source=file, chat_template_kwargs={"enable_thinking": False})
    dataset = chat_dataset(tokenizer, source=file, chat_template_kwargs={"enable_thinking": True})
    assert dataset[0] == chat_dataset(tokenizer, source=file)[0]


def test_weights_and_prompts_that_are_learnt(chat_folder, write):
    tokenizer = from_checkpoint(chat_folder(LINES))
    file = write({"messages": [TURNS[0], {**TURNS[1], "weight": 0}, *TURNS[2:]]})
    (text,) = texts(tokenizer, chat_dataset(tokenizer, source=file))
    assert "seven<|end|>\n" in text
    assert text.count("[") == 1
    (text,) = texts(tokenizer, chat_dataset(tokenizer, source=file, train_on_input=True))
    assert text.startswith(
        "[<|start|>user\nthe question<|end|><|end|>\n<|start|>assistant\n]seven<|end|>[\n<|start|>"
    )


def test_calls_of_tools(chat_folder, write):
    tokenizer = from_checkpoint(chat_folder(LINES))
    call = {"function": {"name": "walk", "arguments": '{"n": 7}'}}
    turns = [
        TURNS[0],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "far"},
        TURNS[3],
    ]
    tools = [{"type": "function", "function": {"name": "walk"}}]
    dataset = chat_dataset(tokenizer, source=write({"messages": turns, "tools": tools}))
    (text,) = texts(tokenizer, dataset)
    assert '[<|call|>{"name": "walk", "arguments": {"n": 7}}<|end|>]' in text
    assert "<|start|>tool\nfar<|end|>" in text
    assert text.startswith("1<|start|>user")
    assert text.endswith("[green<|end|>]\n")
    with pytest.raises(DataError, match=r"data\.jsonl:1: .*tools"):
        chat_dataset(
            tokenizer,
            source=write({"messages": turns[:1] + TURNS[3:], "tools": tools}),
            prompt_template="alpaca",
        )


def test_what_a_template_refuses_is_listed_by_row(chat_folder, write):
    template = "{{ raise_exception('no system here') if messages[0].role == 'system' }}" + LINES
    tokenizer = from_checkpoint(chat_folder(template))
    file = write({"messages": TURNS}, {"messages": [{"role": "system", "content": "x"}, *TURNS]})
    with pytest.raises(DataError, match=r"1 row .*\n.*data\.jsonl:2: the chat template in .* no system here"):
        chat_dataset(tokenizer, source=file)
    assert len(chat_dataset(tokenizer, source=file, on_bad_rows="drop")) == 1


def test_questions_and_answers_in_a_chat_template(chat_folder, write):
    tokenizer = from_checkpoint(chat_folder(LINES))
    file = write({"question": "walk", "answer": "green"})
    dataset = instruct_dataset(tokenizer, source=file, prompt_template="chat", new_system_prompt="S")
    assert texts(tokenizer, dataset) == [
        "<|start|>system\nS<|end|>\n<|start|>user\nwalk<|end|>\n<|start|>assistant\n[green<|end|>]\n"
    ]
    assert tokenizer.decode(dataset.render_prompt("x"), skip_special=False).startswith(
        "<|start|>system\nS<|end|>"
    )
