"""Questions in a template: a model is asked as it was trained, and its answer ends where it learnt to end."""

from __future__ import annotations

import pytest
import torch

from tune.errors import ConfigError, DataError, TokenizerError
from tune.generation import ask, stream_text
from tune.models.llama2 import llama2
from tune.tokenizers import from_checkpoint, get_prompt_template

LINES = """{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"""


def test_what_is_asked(chat_folder):
    tokenizer = from_checkpoint(chat_folder(LINES))
    assert ask(tokenizer, None, "walk").prompt == "walk"
    question = ask(tokenizer, get_prompt_template("chat"), "walk<|end|>")
    assert (
        tokenizer.decode(question.prompt, skip_special=False)
        == "<|start|>user\nwalk<|end|><|end|>\n<|start|>assistant\n"
    )
    assert question.prompt.count(tokenizer.special_tokens["<|end|>"]) == 1
    assert question.stop_ids == (tokenizer.eos_id, tokenizer.special_tokens["<|end|>"])
    question = ask(tokenizer, get_prompt_template("question_answer"), "walk")
    assert (question.prompt, question.stop, question.stop_ids) == ("Question: walk\nAnswer:", (), ())
    assert ask(tokenizer, get_prompt_template({"user": ["", ""], "assistant": ["", " END"]}), "x").stop == (
        "END",
    )


def test_the_system_and_variables(chat_folder):
    tokenizer = from_checkpoint(chat_folder(LINES + "{{ '<think></think>' if enable_thinking is false }}"))
    chat = get_prompt_template("chat")
    question = ask(tokenizer, chat, "walk", system="S", variables={"enable_thinking": False})
    assert tokenizer.decode(question.prompt, skip_special=False) == (
        "<|start|>system\nS<|end|>\n<|start|>user\nwalk<|end|>\n<|start|>assistant\n<think></think>"
    )
    with pytest.raises(
        ConfigError, match="sets thinking, which the template chat does not read; it reads enable_thinking"
    ):
        ask(tokenizer, chat, "walk", variables={"thinking": False})
    assert ask(tokenizer, get_prompt_template("llama2_chat"), "walk", system="S").prompt == (
        "[INST] <<SYS>>\nS\n<</SYS>>\n\nwalk [/INST]"
    )


def test_a_template_that_does_not_fit(chat_folder):
    tokenizer = from_checkpoint(chat_folder())
    with pytest.raises(TokenizerError, match="without a chat template"):
        ask(tokenizer, get_prompt_template("chat"), "x")
    with pytest.raises(TokenizerError, match=r"gemma needs the special tokens <start_of_turn>"):
        ask(tokenizer, get_prompt_template("gemma"), "x")
    refusing = from_checkpoint(chat_folder("{{ raise_exception('closed today') }}"))
    with pytest.raises(DataError, match="closed today"):
        ask(refusing, get_prompt_template("chat"), "x")


def test_the_end_of_a_turn_ends_the_answer(chat_folder):
    tokenizer = from_checkpoint(chat_folder(LINES))
    question = ask(tokenizer, get_prompt_template("chat"), "walk")
    torch.manual_seed(3)
    model = llama2(
        vocab_size=tokenizer.vocab_size,
        num_layers=1,
        num_heads=2,
        embed_dim=12,
        max_seq_len=99,
        intermediate_dim=20,
    )
    with torch.no_grad():
        # Whatever is read, the end of a turn is the likeliest token.
        for parameter in model.parameters():
            parameter.zero_()
        model.output_weight[tokenizer.special_tokens["<|end|>"]] = 1.0
        model.tok_embeddings.weight.fill_(1.0)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
    for stop_ids, expected in ((question.stop_ids, "stop_id"), ((), "max_new_tokens")):
        with stream_text(model, tokenizer, question.prompt, max_new_tokens=5, stop_ids=stop_ids) as stream:
            list(stream)
        assert stream.stop_reason == expected
