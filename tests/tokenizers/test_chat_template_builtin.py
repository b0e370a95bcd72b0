"""Templates for models that come without one, and the names under which templates are asked for."""

from __future__ import annotations

import json

import pytest

from tune.data import ChatMLTemplate
from tune.errors import ConfigError, DataError, TokenizerError
from tune.tokenizers import Message, SentencePieceTokenizer, from_checkpoint, get_prompt_template
from tune.tokenizers.chat_template import (
    ChatTemplate,
    apply_chat_template,
    stop_ids_of,
    template_for,
    tokenize_examples,
)
from tune.tokenizers.chat_template_builtin import BUILTIN_NAMES, builtin_template

CHAT = [
    Message("system", "Be brief.", masked=True),
    Message("user", "the question", masked=True),
    Message("assistant", "seven"),
    Message("user", "walk", masked=True),
    Message("assistant", "green"),
]
# As the models' own templates write them, see the sources named in each file.
FORMATS = {
    "llama3": (
        "<|bos|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nthe question<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "seven<|eot_id|>",
    ),
    "mistral": ("<|bos|>[INST] Be brief.\n\nthe question [/INST]", " seven<|eos|>"),
    "gemma": (
        "<|bos|><start_of_turn>user\nthe question<end_of_turn>\n<start_of_turn>model\n",
        "seven<end_of_turn>",
    ),
    "qwen2": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nthe question<|im_end|>\n<|im_start|>assistant\n",
        "seven<|im_end|>",
    ),
    "phi3": ("<|system|>\nBe brief.<|end|>\n<|user|>\nthe question<|end|>\n<|assistant|>\n", "seven<|end|>"),
    "phi4": (
        "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>the question<|im_end|>"
        "<|im_start|>assistant<|im_sep|>",
        "seven<|im_end|>",
    ),
    "olmo2": ("<|bos|><|system|>\nBe brief.\n<|user|>\nthe question\n<|assistant|>\n", "seven<|eos|>"),
    "granite": (
        "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>"
        "the question<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        "seven<|end_of_text|>",
    ),
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nthe question<|im_end|>\n<|im_start|>assistant\n",
        "seven<|im_end|>",
    ),
}


@pytest.fixture
def with_tokens(chat_folder, chat_definition):
    """Return a tokenizer without a chat template that has further special tokens."""

    def load(*tokens):
        folder = chat_folder()
        definition = json.loads(chat_definition)
        added = definition["added_tokens"]
        known = {entry["content"] for entry in added}
        new = [token for token in tokens if token not in known]
        added += [{**added[0], "id": 1000 + number, "content": token} for number, token in enumerate(new)]
        (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
        return from_checkpoint(folder)

    return load


def test_every_builtin_has_its_format():
    assert set(FORMATS) == {*BUILTIN_NAMES, "chatml"}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(with_tokens, name):
    template = get_prompt_template(name)
    needs = template.needs if isinstance(template, ChatTemplate) else ("<|im_start|>", "<|im_end|>")
    tokenizer = with_tokens(*needs)
    messages = CHAT[1:] if name == "gemma" else CHAT
    prompt, answer = FORMATS[name]
    num_asked = len(messages) - 3
    asked = apply_chat_template(
        tokenizer, messages[:num_asked], template=template, add_generation_prompt=True, tokenize=False
    )
    assert asked == prompt
    ((tokens, mask),) = tokenize_examples(tokenizer, template, messages[:-2])
    learnt = [token for token, masked in zip(tokens, mask) if not masked]
    assert tokenizer.decode(learnt, skip_special=False) == answer
    assert stop_ids_of(tokenizer, template)[-1] == learnt[-1]
    # Several turns are one text.
    ((tokens, mask),) = tokenize_examples(tokenizer, template, messages)
    learnt = [token for token, masked in zip(tokens, mask) if not masked]
    assert tokenizer.decode(learnt, skip_special=False) == answer + answer.replace("seven", "green")


@pytest.mark.parametrize("name", [name for name in BUILTIN_NAMES if builtin_template(name).needs])
def test_a_template_of_another_family_is_refused(with_tokens, name):
    template = builtin_template(name)
    tokenizer = with_tokens(template.needs[0])
    missing = [token for token in template.needs if token not in tokenizer.special_tokens]
    with pytest.raises(TokenizerError) as caught:
        apply_chat_template(tokenizer, CHAT, template=template)
    assert f"the template {name} needs the special tokens {', '.join(missing)}, which" in str(caught.value)


def test_gemma_leaves_the_system_text_to_the_user(with_tokens):
    template = builtin_template("gemma")
    with pytest.raises(DataError, match="gemma knows user and assistant, not system"):
        apply_chat_template(with_tokens(*template.needs), CHAT, template=template)


def test_calls_of_tools_in_qwen2(with_tokens):
    call = {"function": {"name": "walk", "arguments": {"n": 7}}}
    messages = [
        Message("user", "x", masked=True),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "a", masked=True),
        Message("tool", "b", masked=True),
        Message("assistant", "done"),
    ]
    template = builtin_template("qwen2")
    tokenizer = with_tokens(*template.needs)
    ((tokens, mask),) = tokenize_examples(tokenizer, template, messages)
    assert tokenizer.decode(tokens, skip_special=False) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nx<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "walk", "arguments": {"n": 7}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\na\n</tool_response>\n<tool_response>\nb\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\ndone<|im_end|>\n"
    )
    learnt = [token for token, masked in zip(tokens, mask) if not masked]
    assert tokenizer.decode(learnt).startswith('<tool_call>\n{"name": "walk"')


def test_chatml_is_plain_text_where_its_tokens_are_unknown(spm_file, with_tokens):
    plain = SentencePieceTokenizer(spm_file)
    assert isinstance(template_for(get_prompt_template("chatml"), plain), ChatMLTemplate)
    ((tokens, _),) = tokenize_examples(plain, get_prompt_template("torchtune.data.ChatMLTemplate"), CHAT[:3])
    assert plain.decode(tokens).endswith("<|im_start|>assistant\nseven<|im_end|>")
    with_both = with_tokens("<|im_start|>", "<|im_end|>")
    assert isinstance(template_for(get_prompt_template("chatml"), with_both), ChatTemplate)


def test_names_and_files(tmp_path, chat_folder):
    assert get_prompt_template("torchtune.models.mistral.MistralChatTemplate").name == "mistral"
    assert get_prompt_template("torchtune.models.llama2.Llama2ChatTemplate").name == "llama2_chat"
    assert get_prompt_template("llama3") is get_prompt_template("llama3")
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}<|start|>{{ m.content }}<|end|>{% endfor %}")
    tokenizer = from_checkpoint(chat_folder("not this one"), prompt_template=str(file))
    assert (
        tokenizer.apply_chat_template(CHAT[1:3], tokenize=False)
        == "<|start|>the question<|end|><|start|>seven<|end|>"
    )
    with pytest.raises(ConfigError, match=r"no prompt template 'lama3'; known are plain, .*llama3.*chat\."):
        get_prompt_template("lama3")
    with pytest.raises(TokenizerError, match=r"cannot read .*nowhere\.jinja"):
        get_prompt_template(str(tmp_path / "nowhere.jinja"))


def test_chat_is_the_template_of_the_checkpoint(chat_folder):
    source = "{% for m in messages %}<|start|>{{ m.content }}<|end|>{% endfor %}"
    tokenizer = from_checkpoint(chat_folder(source), prompt_template="chat")
    assert tokenizer.apply_chat_template(CHAT[1:2], tokenize=False) == "<|start|>the question<|end|>"
    with pytest.raises(
        TokenizerError, match=r"prompt_template is chat, but .* without a chat template.*llama3"
    ):
        from_checkpoint(chat_folder(), prompt_template="chat").apply_chat_template(CHAT)


def test_text_templates_know_no_tools():
    call = ({"function": {"name": "walk"}},)
    with pytest.raises(DataError, match="written by chat templates"):
        get_prompt_template("alpaca").segments(
            [Message("user", "x"), Message("assistant", "", tool_calls=call)]
        )
    with pytest.raises(DataError, match="no role 'tool' in a text template"):
        get_prompt_template("alpaca").segments([Message("user", "x"), Message("tool", "y")])


def test_tools_that_a_template_does_not_write_are_refused(with_tokens):
    tools = [{"type": "function", "function": {"name": "walk", "parameters": {}}}]
    for name in ("phi3", "qwen2"):
        template = builtin_template(name)
        with pytest.raises(DataError, match=f"the template {name} does not write the 1 tools"):
            tokenize_examples(with_tokens(*template.needs), template, CHAT, tools=tools)
    knowing = ChatTemplate("{{ tools | tojson }}" + template.source)
    assert tokenize_examples(with_tokens(*template.needs), knowing, CHAT, tools=tools)
    assert ChatTemplate("", for_tools="{{ tools }}").reads_tools()
