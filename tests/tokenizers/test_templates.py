"""Templates: the published formats, masks turn by turn, and training ids that equal inference ids."""

from __future__ import annotations

import pytest

from tune.data import (
    AlpacaInstructTemplate,
    ChatMLTemplate,
    Llama2ChatTemplate,
    Message,
    PromptTemplate,
    QuestionAnswerTemplate,
    get_prompt_template,
    tokenize_segments,
    validate_messages,
)
from tune.errors import ConfigError, DataError
from tune.tokenizers import SentencePieceTokenizer

TEMPLATES = [
    "plain",
    "alpaca",
    "question_answer",
    "summarize",
    "grammar_error_correction",
    "chatml",
    "llama2_chat",
]
CHAT = [
    Message("system", "walk the river", masked=True),
    Message("user", "the question", masked=True),
    Message("assistant", "seven apples"),
    Message("user", "  of\ngreen ", masked=True),
    Message("assistant", "the answer"),
]


@pytest.fixture(scope="module")
def tokenizer(spm_file):
    return SentencePieceTokenizer(spm_file)


def learnt(tokenizer, tokens, mask):
    return tokenizer.decode(
        [t for t, masked in zip(tokens, mask, strict=True) if not masked], skip_special=False
    )


def test_llama2_chat_has_the_ids_of_the_published_format(tokenizer):
    tokens, mask = tokenize_segments(tokenizer, Llama2ChatTemplate().segments(CHAT))
    first = "[INST] <<SYS>>\nwalk the river\n<</SYS>>\n\nthe question [/INST] seven apples "
    second = "[INST] of\ngreen [/INST] the answer "
    assert tokens == tokenizer.encode(first) + tokenizer.encode(second)
    assert learnt(tokenizer, tokens, mask) == "seven apples </s> the answer </s>"


def test_each_pair_of_turns_stands_between_bos_and_eos(tokenizer):
    for name in TEMPLATES:
        tokens, mask = tokenize_segments(tokenizer, get_prompt_template(name).segments(CHAT))
        assert tokens.count(tokenizer.bos_id) == tokens.count(tokenizer.eos_id) == 2
        assert all(masked for token, masked in zip(tokens, mask) if token == tokenizer.bos_id)
        assert not any(masked for token, masked in zip(tokens, mask) if token == tokenizer.eos_id)


def test_every_answer_and_nothing_else_is_learnt(tokenizer):
    template = PromptTemplate(system=("S:", "\n"), user=("U:", "\n"), assistant=("A:", ";"))
    tokens, mask = tokenize_segments(tokenizer, template.segments(CHAT))
    assert learnt(tokenizer, tokens, mask) == "seven apples;</s>the answer;</s>"
    assert tokenizer.decode(tokens, skip_special=False) == (
        "<s>S:walk the river\nU:the question\nA:seven apples;</s><s> U:  of\ngreen \nA:the answer;</s>"
    )


def test_a_masked_answer_is_read_but_not_learnt(tokenizer):
    messages = [*CHAT[:2], Message("assistant", "seven apples", masked=True), *CHAT[3:]]
    tokens, mask = tokenize_segments(tokenizer, Llama2ChatTemplate().segments(messages))
    assert learnt(tokenizer, tokens, mask) == "the answer </s>"


def test_an_unmasked_prompt_is_learnt_but_its_bos_is_not(tokenizer):
    messages = [Message("user", "the question"), Message("assistant", "seven")]
    tokens, mask = tokenize_segments(tokenizer, QuestionAnswerTemplate().segments(messages))
    assert mask == [True] + [False] * (len(tokens) - 1)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("text", ["the question", "ends in space ", "日本?\n", ":"])
def test_training_reads_the_ids_that_inference_gives(tokenizer, name, text):
    template = get_prompt_template(name)
    messages = [Message("user", text, masked=True), Message("assistant", "seven apples")]
    tokens, mask = tokenize_segments(tokenizer, template.segments(messages))
    prompt_ids = tokenizer.encode(template.prompt(text), add_eos=False)
    assert tokens[: len(prompt_ids)] == prompt_ids
    assert mask == [True] * len(prompt_ids) + [False] * (len(tokens) - len(prompt_ids))
    # A conversation without its answer is that prompt.
    assert tokenize_segments(tokenizer, template.segments(messages[:1]))[0] == prompt_ids
    # What is generated, decoded after the prompt, is the answer.
    whole = tokenizer.decode(tokens)
    assert whole[len(tokenizer.decode(prompt_ids)) :].strip().removesuffix("<|im_end|>") == "seven apples"


def test_spaces_that_end_a_prompt_are_learnt_with_the_answer(tokenizer):
    segments = QuestionAnswerTemplate().segments([Message("user", "q", True), Message("assistant", "seven")])
    assert [segment.text for segment in segments] == ["Question: q\nAnswer:", " seven"]
    assert QuestionAnswerTemplate().prompt("q") == "Question: q\nAnswer:"


def test_an_empty_prompt_leaves_the_answer_to_start_the_text(tokenizer):
    segments = get_prompt_template("plain").segments([Message("user", ""), Message("assistant", "seven")])
    assert tokenize_segments(tokenizer, segments)[0] == tokenizer.encode("seven")


def test_prompts_of_the_named_templates():
    assert AlpacaInstructTemplate().prompt("Walk.").endswith("### Instruction:\nWalk.\n\n### Response:\n")
    assert ChatMLTemplate().prompt("hi", system="be nice") == (
        "<|im_start|>system\nbe nice<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert Llama2ChatTemplate().prompt("hi ", system="be nice") == (
        "[INST] <<SYS>>\nbe nice\n<</SYS>>\n\nhi [/INST]"
    )


def test_a_template_is_described_in_many_ways():
    mapping = {"user": ["Q: ", "\n"], "assistant": ["A: ", ""]}
    template = get_prompt_template(mapping)
    assert template.prompt("x") == "Q: x\nA:"
    assert get_prompt_template(template) is template
    assert get_prompt_template("tune.data.ChatMLTemplate") == ChatMLTemplate()
    assert get_prompt_template("torchtune.data.QuestionAnswerTemplate") == QuestionAnswerTemplate()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("alpacca", "known are plain, alpaca"),
        ("os.path.join", "no prompt template 'os.path.join'"),
        ("tune.data.Message", "no prompt template"),
        ("tune.data.nowhere.Template", "no prompt template"),
        ({"user": "Q"}, r"prompt_template\.user is 'Q', expected two texts"),
        ({"user": ["Q"]}, "expected two texts"),
        ({"human": ["", ""]}, "no role 'human'"),
        ({"assistant": ["", ""]}, "no text for the role 'user'"),
        (7, "prompt_template is a int"),
    ],
)
def test_a_wrong_template_is_explained(spec, says):
    with pytest.raises(ConfigError, match=says):
        get_prompt_template(spec)


@pytest.mark.parametrize(
    ("roles", "says"),
    [
        ("", "empty"),
        ("u", "ends without an answer"),
        ("s", "ends without an answer"),
        ("uaua u", "ends without an answer"),
        ("a", "message 1 is by the assistant where the user"),
        ("uua", "message 2 is by the user where the assistant"),
        ("sua a", "message 4 is by the assistant"),
        ("usa", "message 2 is by the system"),
    ],
)
def test_conversations_that_cannot_be_learnt_from(roles, says):
    names = {"u": "user", "a": "assistant", "s": "system"}
    with pytest.raises(DataError, match=says):
        validate_messages([Message(names[role], "x") for role in roles if role != " "])
