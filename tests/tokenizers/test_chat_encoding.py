"""The fast way to a conversation's ids and weights is the definition, written down slowly here."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from published_templates import PUBLISHED

from tune.errors import DataError
from tune.tokenizers import Message, SentencePieceTokenizer, from_checkpoint
from tune.tokenizers.chat_loss_mask import LearntText, write_examples
from tune.tokenizers.chat_template import ChatTemplate, tokenize_weighted
from tune.tokenizers.chat_template_builtin import BUILTIN_NAMES, builtin_template, chatml_template
from tune.tokenizers.chat_template_data import plain_data, plain_messages
from tune.tokenizers.special_token_escape import Conversation, escaper_for

BUILTIN = [builtin_template(name) for name in BUILTIN_NAMES] + [chatml_template()]
# In this process: a worker would do the same, more slowly.
TEMPLATES = BUILTIN + [ChatTemplate(source, name, is_builtin=True) for name, source in PUBLISHED.items()]
CONTENTS = [
    "the answer",
    " seven ",
    "",
    "](green",
    "<|end|>",
    "> walk",
    "a\n\n",
    "\n\nb",
    "日本 🌍",
    "<|",
    "[/INST] x",
    "'s",
    "<think>\nhm\n</think>\n\nseven",
    "hm</think>green",
    "<|start|>assistant\n",
    "<|im_end|>",
    "the question " * 9,
]


class SlowConversation(Conversation):
    """Renders every beginning by itself."""

    def render(self, num_messages, add_generation_prompt=False):
        texts = []
        for renderer in filter(None, (self._plain, self._marked)):
            messages, tools, variables = renderer._given
            texts.append(
                self.template.render(
                    messages[:num_messages],
                    add_generation_prompt=add_generation_prompt,
                    tools=tools,
                    variables=variables,
                )
            )
        if self.without_marks(texts[-1]) != texts[0]:
            raise DataError("marks change the text")
        return texts[-1]


def slow_examples(tokenizer, template, messages, tools):
    """Return ids and weights as they are defined, each text encoded by itself."""
    chat = SlowConversation(
        template,
        escaper_for(tokenizer.special_tokens),
        plain_messages(messages),
        plain_data(tools, "tools"),
        {},
        tokenizer.special_token_names,
    )
    examples = []
    for written in write_examples(chat, messages, tokenizer.stop_ids):
        ids, spans = tokenizer.encode_pieces_with_spans(chat.split(written.text))
        if all(stands_alone(tokenizer, chat, turn, ids, spans) for turn in written.turns):
            examples.append(weigh(tokenizer, ids, spans, written))
            continue
        for turn, places in zip(written.turns, written.places):
            is_last = turn is written.turns[-1]
            text = written.text if is_last else turn.text
            alone = LearntText(text, (turn,), (places, written.places[-1]), None)
            ids, spans = encode_apart(tokenizer, chat, turn.prompt, text[len(turn.prompt) :])
            examples.append(weigh(tokenizer, ids, spans, alone))
    return examples


def stands_alone(tokenizer, chat, turn, ids, spans):
    cut = chat.length(turn.prompt)
    prompt = chat.split(turn.prompt)
    last = max((place for place, piece in enumerate(prompt) if isinstance(piece, int)), default=0)
    tail = tokenizer.encode_pieces(prompt[last:])
    num_before = sum(end <= cut for _, end in spans)
    is_split = any(start < cut < end for start, end in spans)
    return not is_split and ids[num_before - len(tail) : num_before] == tail


def encode_apart(tokenizer, chat, prompt, rest):
    ids, spans = tokenizer.encode_pieces_with_spans(chat.split(prompt))
    offset = chat.length(prompt)
    pieces = chat.split(rest)
    if isinstance(pieces[0], str):
        head = tokenizer.encode(pieces[0], add_bos=False, add_eos=False, continuation=True)
        ids, spans = ids + head, spans + [(offset, offset + len(pieces[0]))] * len(head)
        offset, pieces = offset + len(pieces[0]), pieces[1:]
    more_ids, more_spans = tokenizer.encode_pieces_with_spans(pieces)
    return ids + more_ids, spans + [(offset + start, offset + end) for start, end in more_spans]


def weigh(tokenizer, ids, spans, written):
    learnt = [place for places in written.places for place in places]
    weights = [
        next((weight for start, end, weight in learnt if start <= first < end), 0.0) for first, _ in spans
    ]
    if ids[:1] == [tokenizer.bos_id]:
        weights[0] = 0.0
    return ids, weights


def draw_conversation(data):
    """Return messages and tools."""
    contents = st.sampled_from(CONTENTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
    weights = st.sampled_from([1.0, 1.0, 1.0, 0.5, 0.0])
    messages = []
    if data.draw(st.booleans()):
        messages.append(Message("system", data.draw(contents), masked=True))
    for _ in range(data.draw(st.integers(1, 5))):
        is_learnt = data.draw(st.integers(0, 9)) == 0
        messages.append(Message("user", data.draw(contents), masked=not is_learnt))
        if data.draw(st.integers(0, 5)) == 0:
            call = {"function": {"name": "walk", "arguments": {"to": data.draw(contents)}}}
            messages.append(Message("assistant", "", tool_calls=(call,)))
            messages.append(Message("tool", data.draw(contents), masked=True))
        thought = data.draw(contents) if data.draw(st.integers(0, 5)) == 0 else None
        weight = data.draw(weights)
        messages.append(
            Message(
                "assistant", data.draw(contents), weight=weight, masked=not weight, reasoning_content=thought
            )
        )
    return messages, [{"name": "walk"}] if data.draw(st.integers(0, 3)) == 0 else None


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory, chat_definition, spm_file):
    """Return tokenizers whose special tokens stay apart, or take the white space beside them, and SentencePiece."""
    made = [SentencePieceTokenizer(spm_file)]
    for flags in ({}, {"rstrip": True}, {"lstrip": True}, {"single_word": True}):
        definition = json.loads(chat_definition)
        first = definition["added_tokens"][0]
        new = sorted({token for template in BUILTIN for token in template.needs})
        definition["added_tokens"] += [
            {**first, "id": 1000 + number, "content": token} for number, token in enumerate(new)
        ]
        for token in definition["added_tokens"]:
            token.update(flags)
        folder = tmp_path_factory.mktemp("_".join(["tokens", *flags]))
        (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
        names = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
        made.append(from_checkpoint(folder))
    return made


@settings(max_examples=150, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(data=st.data())
def test_any_conversation_is_what_the_definition_says(tokenizers, data):
    tokenizer = data.draw(st.sampled_from(tokenizers))
    fitting = [template for template in TEMPLATES if {*template.needs} <= {*tokenizer.special_tokens}]
    template = data.draw(st.sampled_from(fitting))
    messages, tools = draw_conversation(data)
    tools = tools if template.reads_tools() else None
    try:
        expected = slow_examples(tokenizer, template, messages, tools)
    except DataError as error:
        with pytest.raises(DataError, match=None if "marks change" in str(error) else re.escape(str(error))):
            tokenize_weighted(tokenizer, template, messages, tools=tools)
        return
    assert tokenize_weighted(tokenizer, template, messages, tools=tools) == expected


@settings(max_examples=60, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(data=st.data())
def test_a_limit_changes_nothing_within_it(tokenizers, data):
    tokenizer = data.draw(st.sampled_from(tokenizers))
    template = data.draw(st.sampled_from([t for t in TEMPLATES if {*t.needs} <= {*tokenizer.special_tokens}]))
    messages, _ = draw_conversation(data)
    limit = data.draw(st.integers(2, 150))
    try:
        whole = tokenize_weighted(tokenizer, template, messages)
    except DataError:
        return
    cut = tokenize_weighted(tokenizer, template, messages, max_seq_len=limit)
    assert len(cut) <= len(whole)
    assert within(cut, limit) == within(whole, limit)


def within(examples, limit):
    """Return what is left of the examples that still teach something when they are cut."""
    kept = [(tokens[:limit], weights[:limit]) for tokens, weights in examples]
    return [(tokens, weights) for tokens, weights in kept if any(weights[1:])]


def test_a_limit_leaves_the_turns_behind_it_unread(tokenizers):
    template = ChatTemplate(PUBLISHED["qwen3"], is_builtin=True)
    messages = [
        Message(role, "the answer", masked=role == "user")
        for _ in range(200)
        for role in ("user", "assistant")
    ]
    rendered = []
    template.render_beginnings, render = (
        lambda messages, cuts, *rest: (rendered.extend(cuts), render(messages, cuts, *rest))[1],
        template.render_beginnings,
    )
    examples = tokenize_weighted(tokenizers[1], template, messages, max_seq_len=100)
    assert len(examples) < 9
    assert len(rendered) < 20
