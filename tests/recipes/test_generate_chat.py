"""`tune run generate prompt_template=chat`: a model is asked as its chat template says."""

from __future__ import annotations

import pytest
import torch

from tune.checkpoints import save_model
from tune.errors import ConfigError, DataError, TokenizerError
from tune.generation import generate_text
from tune.models.llama2 import llama2
from tune.recipes.generate import recipe_main
from tune.recipes.params.generate import GenerateParams
from tune.tokenizers import from_checkpoint

TEMPLATE = """{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant\n' }}{{ '<think></think>' if quick }}{% endif %}"""


@pytest.fixture
def save(chat_folder, tmp_path):
    """Saves a small model with a tokenizer that has a chat template; returns both and the directory."""

    def build(template=TEMPLATE):
        tokenizer = from_checkpoint(chat_folder(template))
        torch.manual_seed(5)
        model = llama2(
            vocab_size=tokenizer.vocab_size,
            num_layers=2,
            num_heads=3,
            embed_dim=24,
            max_seq_len=90,
            intermediate_dim=44,
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        save_model(model, tmp_path / "saved", tokenizer=tokenizer)
        return model, tokenizer, tmp_path / "saved"

    return build


def run(folder, **settings):
    return recipe_main(
        GenerateParams(model_checkpoint=str(folder), device="cpu", max_new_tokens=9, **settings)
    )


def test_a_question_in_the_checkpoints_template(save, capsys):
    model, tokenizer, folder = save()
    asked = [{"role": "system", "content": "S"}, {"role": "user", "content": "walk<|end|>"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, quick=True)
    expected = generate_text(model, tokenizer, ids, max_new_tokens=9)
    settings = {"system_prompt": "S", "chat_template_kwargs": {"quick": True}}
    assert run(folder, prompt="walk<|end|>", prompt_template="chat", **settings) == 0
    assert capsys.readouterr().out == expected + "\n"
    # Another question has another answer: the settings are not for show.
    assert run(folder, prompt="walk<|end|>", prompt_template="chat") == 0
    assert capsys.readouterr().out != expected + "\n"


def test_what_does_not_fit_is_said_before_weights_are_read(save):
    _, _, folder = save("{{ raise_exception('closed today') }}")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(DataError, match="closed today"):
        run(folder, prompt="walk", prompt_template="chat")
    with pytest.raises(TokenizerError, match="llama3 needs the special tokens"):
        run(folder, prompt="walk", prompt_template="llama3")
    with pytest.raises(ConfigError, match="no prompt template 'lama3'"):
        run(folder, prompt="walk", prompt_template="lama3")


def test_a_system_text_needs_a_template(tmp_path):
    with pytest.raises(ConfigError, match="system_prompt needs a prompt_template"):
        run(tmp_path, prompt="walk", system_prompt="S")
