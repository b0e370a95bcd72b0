"""What is learnt of a conversation: exactly what the model writes, after exactly what it is asked with."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune.errors import DataError
from tune.tokenizers import Message, SentencePieceTokenizer, from_checkpoint
from tune.tokenizers.chat_template import (
    ChatTemplate,
    apply_chat_template,
    stop_ids_of,
    tokenize_conversation,
    tokenize_examples,
)

# The traits of real templates, in our own words. Each with the token that ends an answer.
TURNS = "<|start|>{{ m.role }}<|sep|>{{ m.content }}<|end|>"
ASK = "{% if add_generation_prompt %}<|start|>assistant<|sep|>{% endif %}"
TEMPLATES = {
    "headers": "{{ bos_token }}{% for m in messages %}" + TURNS + "{% endfor %}" + ASK,
    "lines": """{% for m in messages %}
{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}""",
    "trimmed": """{{ bos_token }}{% for m in messages %}
{{ '<|start|>' + m.role + '<|sep|>\n\n' + m.content | trim + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant<|sep|>\n\n' }}{% endif %}""",
    "text headers, eos": """{{ bos_token }}{% for m in messages %}
{{- '<|' + m.role + '|>\n' + m.content + (eos_token if m.role == 'assistant' else '') + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}""",
    "no header": """{{ bos_token }}{% for m in messages %}
{{- '[INST] ' + m.content + ' [/INST]' if m.role != 'assistant' else ' ' + m.content + ' ' + eos_token }}
{%- endfor %}""",
    "no header, tight": """{{ bos_token }}{% for m in messages %}
{{- '[INST]' + m.content + '[/INST]' if m.role != 'assistant' else m.content + eos_token }}
{%- endfor %}""",
    "eos after the last": "{% for m in messages %}"
    + TURNS
    + "\n{% endfor %}"
    + ASK.replace("{% endif", "{% else %}{{ eos_token }}{% endif"),
    "always asks": "{% for m in messages %}" + TURNS + "{% endfor %}<|start|>assistant<|sep|>",
    "ends in a space": """{% for m in messages %}
{{- (m.role | capitalize) + ': ' + m.content + (eos_token if m.role == 'assistant' else '\n') }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}""",
    "tagged with its header": """{% for m in messages %}{% if m.role == 'assistant' %}
{% generation %}{{ '<|start|>assistant\n' + m.content + '<|end|>' }}{% endgeneration %}{% else %}
{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}""",
    "default system": "{% if messages[0].role != 'system' %}<|start|>system<|sep|>the answer<|end|>{% endif %}"
    + ("{% for m in messages %}" + TURNS + "{% endfor %}" + ASK),
}
ENDING_IN_EOS = ("text headers, eos", "no header", "no header, tight", "ends in a space")
# Those that write earlier answers otherwise, or move what stands before.
THINKING = """{% set ns = namespace(last=-1) %}
{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{% for m in messages %}
    {%- set said = m.content %}
    {%- set thought = m.reasoning_content or '' %}
    {%- if '</think>' in said %}
        {%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}
        {%- set said = said.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|start|>' + m.role + '\n' }}
    {%- if m.role == 'assistant' and loop.index0 > ns.last %}
        {{- '<think>\n' + thought + '\n</think>\n\n' }}
    {%- endif %}
    {{- said + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\n' + ('<think>\n\n</think>\n\n' if enable_thinking is false else '') }}
{%- endif %}"""
MOVING = """{{- bos_token }}
{%- set turns = messages[1:] if messages[0].role == 'system' else messages %}
{%- for m in turns %}
    {%- if m.role == 'user' %}
        {{- '[INST]' + (messages[0].content + '\n\n' if loop.last and messages[0].role == 'system' else '') }}
        {{- m.content + '[/INST]' }}
    {%- else %}
        {{- m.content + eos_token }}
    {%- endif %}
{%- endfor %}"""
TRICKY = [
    "the answer",
    " seven ",
    "](green",
    "<|end|>",
    "> walk",
    "a\n\n",
    "\n\nb",
    "日本 🌍",
    "<|",
    "[/INST] x",
    "'s",
    ".",
]


@pytest.fixture
def load(chat_folder):
    """Return the tokenizer of a checkpoint with a chat template."""
    return lambda template: from_checkpoint(chat_folder(template))


@pytest.fixture(scope="module")
def all_templates(tmp_path_factory, chat_definition):
    """Return a tokenizer for each of the templates, for tests that need them many times over."""
    folder = tmp_path_factory.mktemp("all_templates")
    (folder / "tokenizer.json").write_text(chat_definition, encoding="utf-8")
    names = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    return from_checkpoint(folder), {
        name: ChatTemplate(source)
        for name, source in (TEMPLATES | {"thinking": THINKING, "moving": MOVING}).items()
    }


def talk(*contents, system=""):
    messages = [Message("system", system, masked=True)] if system else []
    for number, content in enumerate(contents):
        role = "user" if number % 2 == 0 else "assistant"
        messages.append(Message(role, content, masked=role == "user"))
    return messages


def learnt(tokenizer, tokens, mask):
    """Return the runs of learnt tokens as text."""
    runs, last = [], True
    for token, masked in zip(tokens, mask, strict=True):
        if not masked:
            runs = [*runs, []] if last else runs
            runs[-1].append(token)
        last = masked
    return [tokenizer.decode(run, skip_special=False) for run in runs]


def check_answers(tokenizer, template, messages, **variables):
    """Check every promise about the examples of a conversation; returns what is learnt of each answer."""
    examples = tokenize_examples(tokenizer, template, messages, variables=variables)
    found = {}
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = apply_chat_template(
            tokenizer, messages[:index], template=template, add_generation_prompt=True, **variables
        )
        # The answer is learnt right after what inference reads, in one example and no other.
        holding = [
            (tokens, mask)
            for tokens, mask in examples
            if tokens[: len(prompt)] == prompt and mask[len(prompt) - 1 : len(prompt) + 1] == [True, False]
        ]
        assert len(holding) == 1, (index, len(examples))
        tokens, mask = holding[0]
        end = len(prompt) + (mask[len(prompt) :] + [True]).index(True)
        found[index] = tokenizer.decode(tokens[len(prompt) : end], skip_special=False)
    assert sum(len(learnt(tokenizer, *example)) for example in examples) == len(found)
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_and_their_ends_are_learnt_and_nothing_else(load, name):
    tokenizer = load(TEMPLATES[name])
    messages = talk("the question", "seven apples", "walk", "green](river", system="of apple")
    end = "<|eos|>" if name in ENDING_IN_EOS else "<|end|>"
    around = " " if name == "no header" else ""
    expected = [f"{around}seven apples{around}{end}", f"{around}green](river{around}{end}"]
    assert check_answers(tokenizer, tokenizer.chat_template, messages) == expected
    assert stop_ids_of(tokenizer, tokenizer.chat_template)[-1] == tokenizer.special_tokens[end]
    if name == "ends in a space":
        # The space and the answer's first word are one token of the whole text.
        assert len(tokenize_examples(tokenizer, tokenizer.chat_template, messages)) == 2
        return
    # One example, whose ids are those of the reference.
    tokens, mask = tokenizer.tokenize_messages(messages)
    assert learnt(tokenizer, tokens, mask) == expected
    assert tokens == tokenizer.apply_chat_template(messages)


@settings(max_examples=150)
@given(data=st.data())
def test_any_conversation_in_any_template(all_templates, data):
    tokenizer, templates = all_templates
    template = templates[data.draw(st.sampled_from(sorted(templates)))]
    texts = st.sampled_from(TRICKY) | st.text(
        st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9
    )
    num_turns = 2 * data.draw(st.integers(1, 3))
    messages = talk(*(data.draw(texts) for _ in range(num_turns)), system=data.draw(st.just("") | texts))
    answers = check_answers(tokenizer, template, messages)
    said = [message.content for message in messages if message.role == "assistant"]
    for content, answer in zip(said, answers, strict=True):
        # Nothing but the content and the end, and the empty thoughts that a template writes before.
        rest = answer.removeprefix("<think>\n\n</think>\n\n").strip()
        assert rest.startswith(content.strip())
        assert rest.removeprefix(content.strip()).strip() in ("<|end|>", "<|eos|>")


def test_dropped_thinking_gives_each_answer_its_own_example(load):
    tokenizer = load(THINKING)
    messages = talk("the question", "<think>\nhm\n</think>\n\nseven", "walk", "green")
    first, second = tokenize_examples(tokenizer, tokenizer.chat_template, messages)
    assert learnt(tokenizer, *first) == ["<think>\nhm\n</think>\n\nseven<|end|>"]
    assert learnt(tokenizer, *second) == ["<think>\n\n</think>\n\ngreen<|end|>"]
    # The last example is the conversation as the reference writes it, the first its beginning.
    assert second[0] == tokenizer.apply_chat_template(messages)
    assert first[0] == tokenizer.apply_chat_template(messages[:2])
    assert "hm" not in tokenizer.decode(second[0])
    with pytest.raises(DataError, match=r"takes 2 examples to learn.*tokenize_examples"):
        tokenizer.tokenize_messages(messages)
    # With the first answer masked, one text teaches all there is to learn.
    read = [messages[0], Message("assistant", messages[1].content, masked=True), *messages[2:]]
    assert tokenizer.tokenize_messages(read) == second


def test_thinking_is_switched_off_by_a_variable(load):
    tokenizer = load(THINKING)
    messages = talk("the question", "seven", "walk", "green")
    assert check_answers(tokenizer, tokenizer.chat_template, messages, enable_thinking=False) == [
        "seven<|end|>",
        "green<|end|>",
    ]


def test_thinking_in_a_field_of_its_own(load):
    tokenizer = load(THINKING)
    messages = [Message("user", "walk", True), Message("assistant", "green", reasoning_content="hm")]
    assert check_answers(tokenizer, tokenizer.chat_template, messages) == [
        "<think>\nhm\n</think>\n\ngreen<|end|>"
    ]
    with pytest.raises(DataError, match="does not write its reasoning_content in message 2"):
        load(TEMPLATES["lines"]).tokenize_messages(messages)


def test_thinking_dropped_from_the_last_answer_is_an_error(load):
    dropping = TEMPLATES["lines"].replace("m.content", "m.content.split('</think>')[-1]")
    with pytest.raises(DataError, match="does not write the thinking 'hm' in message 2"):
        load(dropping).tokenize_messages(talk("walk", "<think>\nhm\n</think>\n\ngreen"))
    # Nothing is lost with empty thoughts.
    tokenizer = load(dropping)
    tokens, mask = tokenizer.tokenize_messages(talk("walk", "<think>\n\n</think>green"))
    assert learnt(tokenizer, tokens, mask) == ["green<|end|>"]


def test_a_moving_system_text_stands_as_it_does_when_asked(load):
    tokenizer = load(MOVING)
    messages = talk("the question", "seven", "walk", "green", system="of apple")
    first, second = tokenize_examples(tokenizer, tokenizer.chat_template, messages)
    text = "<|bos|>[INST]of apple\n\nthe question[/INST]seven<|eos|>"
    assert tokenizer.decode(first[0], skip_special=False) == text
    text = "<|bos|>[INST]the question[/INST]seven<|eos|>[INST]of apple\n\nwalk[/INST]green<|eos|>"
    assert tokenizer.decode(second[0], skip_special=False) == text
    assert check_answers(tokenizer, tokenizer.chat_template, messages) == ["seven<|eos|>", "green<|eos|>"]
    # Without a system text nothing moves.
    assert len(tokenize_examples(tokenizer, tokenizer.chat_template, messages[1:])) == 1


def test_a_token_never_reaches_from_the_prompt_into_the_answer(load):
    tokenizer = load(
        "{% for m in messages %}{{ m.content + (eos_token if m.role == 'assistant' else ']') }}{% endfor %}"
    )
    messages = talk("the question", "(green")
    tokens, mask = tokenizer.tokenize_messages(messages)
    # "](" is one token of the whole text; a model that is asked reads "]" and then writes.
    assert tokenizer.token_id("](") in tokenizer.apply_chat_template(messages)
    assert tokenizer.token_id("](") not in tokens
    assert learnt(tokenizer, tokens, mask) == ["(green<|eos|>"]
    assert tokens[: mask.index(False)] == tokenizer.apply_chat_template(
        messages[:1], add_generation_prompt=True
    )


@pytest.mark.parametrize("name", ["lines", "eos after the last", "text headers, eos"])
def test_special_tokens_that_swallow_the_space_after_them(chat_folder, chat_definition, name):
    """Phi-3 has such tokens."""
    folder = chat_folder(TEMPLATES[name])
    definition = json.loads(chat_definition)
    for token in definition["added_tokens"]:
        token["rstrip"] = token["content"] in ("<|end|>", "<|sep|>", "<|eos|>")
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    tokenizer = from_checkpoint(folder)
    for content in ("seven", "  seven", "\n\nx"):
        check_answers(tokenizer, tokenizer.chat_template, talk("walk", content, " green", content))


def test_masked_answers_are_read_and_prompts_learnt_if_asked(load):
    tokenizer = load(TEMPLATES["lines"])
    messages = talk("the question", "seven", "walk", "green")
    messages[1] = Message("assistant", "seven", masked=True)
    tokens, mask = tokenizer.tokenize_messages(messages)
    assert learnt(tokenizer, tokens, mask) == ["green<|end|>"]
    assert tokens == tokenizer.apply_chat_template(messages)
    everything = [Message(message.role, message.content) for message in messages]
    assert learnt(tokenizer, *tokenizer.tokenize_messages(everything)) == [
        "<|start|>user\nthe question<|end|>\n<|start|>assistant\nseven<|end|>\n"
        "<|start|>user\nwalk<|end|>\n<|start|>assistant\ngreen<|end|>"
    ]
    second = [*messages[:2], everything[2], messages[3]]
    assert learnt(tokenizer, *tokenizer.tokenize_messages(second)) == [
        "\n<|start|>user\nwalk<|end|>\n<|start|>assistant\ngreen<|end|>"
    ]
    nothing = [Message(message.role, message.content, masked=True) for message in messages]
    assert all(tokenizer.tokenize_messages(nothing)[1])
    with_bos = load(TEMPLATES["headers"])
    tokens, mask = with_bos.tokenize_messages(everything)
    assert (tokens[0], mask[0], any(mask[1:])) == (with_bos.bos_id, True, False)


def test_prompts_after_a_rewritten_answer_are_learnt_too(load):
    messages = [Message(message.role, message.content) for message in talk("a", "b", "walk", "green")]
    tokenizer = load(THINKING)
    assert [
        learnt(tokenizer, *e) for e in tokenize_examples(tokenizer, tokenizer.chat_template, messages)
    ] == [
        ["<|start|>user\na<|end|>\n<|start|>assistant\n<think>\n\n</think>\n\nb<|end|>"],
        ["\n<|start|>user\nwalk<|end|>\n<|start|>assistant\n<think>\n\n</think>\n\ngreen<|end|>"],
    ]


def test_prompts_of_unknown_start_cannot_be_learnt(load):
    messages = [Message(message.role, message.content) for message in talk("a", "b", "walk", "green")]
    shown = "m.content if loop.last or m.role == 'user' else '...'"
    template = "{% for m in messages %}" + TURNS.replace("m.content", shown) + "{% endfor %}" + ASK
    with pytest.raises(DataError, match=r"rewrites message 2 .*train_on_input=False"):
        load(template).tokenize_messages(messages)


def test_an_answer_that_shall_be_continued_has_no_end(load):
    for name in ("lines", "eos after the last", "always asks"):
        tokenizer = load(TEMPLATES[name])
        messages = talk("the question", "seven")
        whole, _ = tokenizer.tokenize_messages(messages)
        tokens, mask = tokenizer.tokenize_messages(messages, add_eos=False)
        assert whole[: len(tokens)] == tokens
        assert whole[len(tokens)] == tokenizer.special_tokens["<|end|>"]
        assert learnt(tokenizer, tokens, mask) == ["seven"]


def test_calls_of_tools_are_learnt(load):
    tokenizer = load("""{% for m in messages %}
{{- '<|start|>' + m.role + '\n' + m.content }}
{%- for call in m.tool_calls %}{{ '<|call|>' + call.function.name + call.function.arguments | tojson }}{% endfor %}
{{- '<|sep|>' if m.tool_calls else '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}""")
    call = {"function": {"name": "walk", "arguments": {"to": "<|end|>"}}}
    messages = [
        Message("user", "the question", masked=True),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "green", masked=True),
        Message("assistant", "seven"),
    ]
    answers = check_answers(tokenizer, tokenizer.chat_template, messages)
    # A call may end in another special token than an answer does.
    assert answers == ['<|call|>walk{"to": "<|end|>"}<|sep|>', "seven<|end|>"]
    with pytest.raises(DataError, match=r"does not write the call of 'walk' in message 2"):
        load(TEMPLATES["lines"]).tokenize_messages(messages)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        # The prompt ends in words that the written answer does not have.
        (
            "{% for m in messages %}"
            + TURNS
            + "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|sep|>"
            "Sure: {% endif %}",
            r"asks for the answer in message 2 with '<\|sep\|>Sure: '.*\.jinja",
        ),
        (
            "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}",
            r"ends message 2 with 'seven\\n', which is no special token",
        ),
        (
            TEMPLATES["lines"].replace("m.content", "m.content | upper"),
            r"does not write its content 'seven' in message 2",
        ),
        (
            "{% for m in messages if m.role != 'assistant' %}" + TURNS + "{% endfor %}" + ASK,
            r"message 2",
        ),
        ("{{ raise_exception('No system here') if messages[0].role == 'system' }}", "No system here"),
    ],
)
def test_what_cannot_be_told_is_an_error(load, template, says):
    with pytest.raises(DataError, match=says):
        load(template).tokenize_messages(
            talk("the question", "seven", system="of apple")[("No system" not in says) :]
        )


def test_sentencepiece(spm_file):
    tokenizer = SentencePieceTokenizer(spm_file)
    template = ChatTemplate(
        "{% for m in messages %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else "
        "' ' + m.content + ' ' + eos_token }}{% endfor %}"
    )
    messages = talk("the question", "seven apples", "  walk </s>", "日本")
    tokens, mask = tokenize_conversation(tokenizer, template, messages)
    assert learnt(tokenizer, tokens, mask) == ["seven apples </s>", "日本 </s>"]
    assert check_answers(tokenizer, template, messages)
    assert (tokens.count(tokenizer.bos_id), tokens.count(tokenizer.eos_id)) == (2, 2)
