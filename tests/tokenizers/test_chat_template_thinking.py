"""Templates that ask for a thought and drop it from what they write, and those that end a turn with two tokens."""

from __future__ import annotations

import json

import pytest
from published_templates import PUBLISHED
from transformers import AutoTokenizer

from tune.tokenizers import Message, from_checkpoint
from tune.tokenizers.chat_template import apply_chat_template, stop_ids_of, tokenize_examples

R1 = PUBLISHED["deepseek r1"]
QWEN = PUBLISHED["qwen3.5"]
# Keeps what it is given, as templates for training do.
KEEPING = R1.replace("{%- if '</think>' in said %}", "{%- if false %}")
# Without line breaks, and with a closing tag before the answers it writes.
V3 = """{{ bos_token }}{% for m in messages %}
{%- if m.role == 'assistant' %}{{ '<|sep|></think>' + m.content.split('</think>')[-1] + '<|end|>' }}
{%- else %}{{ '[INST]' + m.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|sep|>' + ('<think>' if thinking else '</think>') }}{% endif %}"""
THOUGHTS = {
    "in the content": Message("assistant", "<think>\nhm </s>\n</think>\n\nseven"),
    "without its opening": Message("assistant", "hm </s></think>seven"),
    "in a field": Message("assistant", "seven", reasoning_content="hm </s>"),
}
QUESTION = Message("user", "the question", masked=True)


@pytest.fixture(params=[False, True], ids=["tags are text", "tags are special"])
def load(request, chat_folder, chat_definition):
    """Return the tokenizer of a checkpoint with a chat template, whose tags of thoughts are special tokens or not."""

    def make(template):
        folder = chat_folder(template)
        definition = json.loads(chat_definition)
        for token in definition["added_tokens"]:
            token["special"] = token["special"] or (request.param and "think" in token["content"])
        (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
        return from_checkpoint(folder)

    return make


def read(tokenizer, messages, **variables):
    """Return each example's text that is read first and that is learnt last, and check that nothing else is learnt."""
    found = []
    for tokens, mask in tokenize_examples(tokenizer, tokenizer.chat_template, messages, variables=variables):
        start = mask.index(False)
        assert not any(mask[start:])
        found.append(
            tuple(tokenizer.decode(part, skip_special=False) for part in (tokens[:start], tokens[start:]))
        )
    return found


@pytest.mark.parametrize("name", THOUGHTS)
def test_the_thought_is_learnt_behind_the_prompt_that_opens_it(load, name):
    tokenizer = load(R1)
    messages = [QUESTION, THOUGHTS[name], QUESTION, THOUGHTS[name]]
    (first, second) = read(tokenizer, messages)
    answer = "hm </s>\n</think>\n\nseven<|eos|>"
    assert first == ("<|bos|>[INST]the question[/INST]<think>\n", answer)
    # The first answer has lost its thought, as it has when the second one is asked for.
    between = "\n\n" if name == "in the content" else ""
    history = f"<|bos|>[INST]the question[/INST]{between}seven<|eos|>[INST]the question[/INST]<think>\n"
    assert second == (history, answer)
    for number, (tokens, mask) in enumerate(tokenize_examples(tokenizer, tokenizer.chat_template, messages)):
        asked = apply_chat_template(
            tokenizer,
            messages[: 2 * number + 1],
            template=tokenizer.chat_template,
            add_generation_prompt=True,
        )
        assert tokens[: mask.index(False)] == asked


def test_an_answer_without_a_thought_closes_it_at_once(load):
    assert read(load(R1), [QUESTION, Message("assistant", "seven")])[0][1] == "\n</think>\n\nseven<|eos|>"
    assert read(load(V3), [QUESTION, Message("assistant", "seven")], thinking=True) == [
        ("<|bos|>[INST]the question<|sep|><think>", "</think>seven<|end|>")
    ]
    # Where the prompt does not ask for a thought, none is learnt.
    assert read(load(V3), [QUESTION, Message("assistant", "seven")], thinking=False) == [
        ("<|bos|>[INST]the question<|sep|></think>", "seven<|end|>")
    ]


def test_a_template_without_line_breaks_gets_none(load):
    messages = [
        QUESTION,
        Message("assistant", "seven", reasoning_content="hm"),
        QUESTION,
        Message("assistant", "walk"),
    ]
    first, second = read(load(V3), messages, thinking=True)
    assert first == ("<|bos|>[INST]the question<|sep|><think>", "hm</think>seven<|end|>")
    history = "<|bos|>[INST]the question<|sep|></think>seven<|end|>[INST]the question<|sep|><think>"
    assert second == (history, "</think>walk<|end|>")


@pytest.mark.parametrize("opening", ["<think>\n", "<think>", ""])
def test_a_thought_that_is_kept_is_not_written_twice(load, opening):
    assert read(load(KEEPING), [QUESTION, Message("assistant", opening + "hm\n</think>\n\nseven")]) == [
        ("<|bos|>[INST]the question[/INST]<think>\n", "hm\n</think>\n\nseven<|eos|>")
    ]


def test_a_thought_may_be_left_out_of_the_loss(load):
    tokenizer = load(R1)
    messages = [QUESTION, Message("assistant", "seven", reasoning_content="hm", masks_reasoning=True)]
    assert read(tokenizer, messages) == [
        ("<|bos|>[INST]the question[/INST]<think>\nhm\n</think>\n\n", "seven<|eos|>")
    ]


ENDS = {
    # What ends the turn is what is there whatever follows; Cohere's models end answers in two tokens.
    "two tokens": ("<|sep|><|end|>", ""),
    "a line between them": ("<|sep|>\n<|end|>\n", ""),
    "and one more at the very end": ("<|sep|><|end|>", "{% if loop.last %}{{ eos_token }}{% endif %}"),
    "a line break behind": ("<|end|>\n", "{% if loop.last %}{{ eos_token }}{% endif %}"),
    "one more where others follow": ("<|sep|><|end|>", "{% if not loop.last %}{{ eos_token }}{% endif %}"),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_token_that_ends_a_turn_is_learnt(chat_folder, name):
    end, behind = ENDS[name]
    tokenizer = from_checkpoint(
        chat_folder(
            "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}"
            "{% if m.role == 'assistant' %}{{ '"
            + end.replace("\n", "\\n")
            + "' }}"
            + behind
            + "{% else %}<|end|>{% endif %}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
        )
    )
    template = tokenizer.chat_template
    assert stop_ids_of(tokenizer, template)[-1] == tokenizer.special_tokens["<|end|>"]
    messages = [QUESTION, Message("assistant", "seven"), QUESTION, Message("assistant", "walk")]
    answers = []
    for tokens, mask in tokenize_examples(tokenizer, template, messages):
        learnt = [token if not masked else -1 for token, masked in zip(tokens, mask, strict=True)]
        runs = "".join(
            chr(0xF000) if token == -1 else tokenizer.decode([token], skip_special=False) for token in learnt
        )
        answers += [run for run in runs.split(chr(0xF000)) if run]
    assert answers == [content + end.rstrip() for content in ("seven", "walk")]


def test_a_template_that_always_asks_has_its_end(chat_folder):
    tokenizer = from_checkpoint(
        chat_folder(
            "{% for m in messages %}<|start|>{{ m.role }}<|sep|>{{ m.content }}<|end|>"
            "{% endfor %}<|start|>assistant<|sep|>"
        )
    )
    assert stop_ids_of(tokenizer, tokenizer.chat_template)[-1] == tokenizer.special_tokens["<|end|>"]


ASKED = "<|start|>user\nthe question<|end|>\n<|start|>assistant\n<think>\n"
WALK = {"function": {"name": "walk", "arguments": {"to": "green", "n": 7}}}


def test_qwen_s_thoughts_are_learnt_where_they_are_asked_for(load):
    tokenizer = load(QWEN)

    def read_and_learnt(messages, **variables):
        examples = tokenize_examples(tokenizer, tokenizer.chat_template, messages, variables=variables)
        return [
            (
                tokenizer.decode(tokens[: mask.index(False)], skip_special=False),
                split_runs(tokens, mask, tokenizer),
            )
            for tokens, mask in examples
        ]

    thought = Message("assistant", "seven", reasoning_content="hm")
    answer = ["hm\n</think>\n\nseven<|end|>"]
    assert read_and_learnt([QUESTION, thought]) == [(ASKED, answer)]
    # With the next question the first answer has lost its thought: each is an example of its own.
    history = "<|start|>user\nthe question<|end|>\n<|start|>assistant\nseven<|end|>\n"
    assert read_and_learnt([QUESTION, thought, QUESTION, Message("assistant", "walk")]) == [
        (ASKED, answer),
        (history + ASKED, ["\n</think>\n\nwalk<|end|>"]),
    ]
    told = ASKED.replace("<think>\n", "<think>\n\n</think>\n\n")
    assert read_and_learnt([QUESTION, Message("assistant", "seven")], enable_thinking=False) == [
        (told, ["seven<|end|>"])
    ]


def test_qwen_s_calls_of_tools_are_learnt_as_marks_would_say(load, chat_folder):
    messages = [
        QUESTION,
        Message("assistant", "seven", reasoning_content="hm", tool_calls=(WALK,)),
        Message("tool", "apple", masked=True),
        Message("assistant", "green", reasoning_content="walk"),
    ]
    tokenizer = load(QWEN)
    ((tokens, mask),) = tokenize_examples(tokenizer, tokenizer.chat_template, messages)
    call = (
        "<tool_call>\n<function=walk>\n<parameter=to>\ngreen\n</parameter>\n<parameter=n>\n7\n</parameter>\n"
    )
    assert split_runs(tokens, mask, tokenizer) == [
        f"hm\n</think>\n\nseven\n\n{call}</function>\n</tool_call><|end|>",
        "walk\n</think>\n\ngreen<|end|>",
    ]
    # The marks that transformers reads, around what stands behind the prompt and up to the end of the turn.
    marked = QWEN
    for plain, with_mark in (
        ("{{ '<think>\n' + thought", "{{ '<think>\n' }}{% generation %}{{ thought"),
        ("'\n</think>\n\n' }}", "'\n</think>\n\n' }}{% endgeneration %}"),
        ("{{- said }}", "{%- generation %}{{- said }}"),
        ("{{- '<|end|>\n' }}\n    {%- elif", "{{- '<|end|>' }}{% endgeneration %}{{ '\n' }}\n    {%- elif"),
    ):
        before, found, behind = marked.partition(plain)
        assert found
        marked = before + with_mark + behind
    theirs = AutoTokenizer.from_pretrained(chat_folder(marked))
    said = [as_dict(message) for message in messages]
    found = theirs.apply_chat_template(said, return_dict=True, return_assistant_tokens_mask=True)
    assert found["input_ids"] == tokens
    assert [not mark for mark in found["assistant_masks"]] == mask


def as_dict(message):
    """Return a message as transformers takes it."""
    said = {"role": message.role, "content": message.content}
    if message.reasoning_content:
        said["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        said["tool_calls"] = list(message.tool_calls)
    return said


def split_runs(tokens, mask, tokenizer):
    """Return the texts of the runs of tokens that are learnt."""
    runs, run = [], []
    for token, masked in [*zip(tokens, mask, strict=True), (0, True)]:
        if masked and run:
            runs.append(tokenizer.decode(run, skip_special=False))
            run = []
        elif not masked:
            run.append(token)
    return runs
