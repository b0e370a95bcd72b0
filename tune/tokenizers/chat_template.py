"""Conversations through chat templates: as text, as ids, and as ids with a mask of what is learnt."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tune.errors import DataError, TokenizerError
from tune.tokenizers.chat_encoding import ConversationEncoder
from tune.tokenizers.chat_loss_mask import write_examples
from tune.tokenizers.chat_template_builtin import CHATML_TOKENS, chatml_template
from tune.tokenizers.chat_template_data import plain_data, plain_messages
from tune.tokenizers.chat_template_render import (
    CHECKPOINT_TEMPLATE,
    ChatTemplate,
)
from tune.tokenizers.chat_turn_end import end_of_turn
from tune.tokenizers.control_tokens import ends_in_control_token
from tune.tokenizers.learnt_places import weigh_tokens
from tune.tokenizers.messages import Message
from tune.tokenizers.special_token_escape import Conversation, escaper_for
from tune.tokenizers.templates import (
    AnyTemplate,
    ChatMLTemplate,
    PromptTemplate,
    Segment,
    template_names,
)
from tune.tokenizers.token_spans import find_spans
from tune.tokenizers.trained_template import text_template_in

if TYPE_CHECKING:
    from tune.tokenizers.protocol import Tokenizer

__all__ = [
    "CHECKPOINT_TEMPLATE",
    "ChatTemplate",
    "apply_chat_template",
    "stop_ids_of",
    "template_for",
    "tokenize_conversation",
    "tokenize_examples",
    "tokenize_segments",
    "tokenize_weighted",
]


def template_for(template: AnyTemplate, tokenizer: Tokenizer) -> AnyTemplate:
    """Return a template as it is used with a tokenizer.

    "chat" becomes the tokenizer's own chat template, and ChatML is written with the special tokens of a tokenizer
    that has them, as plain text with others.

    Raises:
        TokenizerError: the tokenizer comes without a chat template, or lacks special tokens of this one.
    """
    if isinstance(template, ChatMLTemplate):
        return chatml_template() if set(CHATML_TOKENS) <= tokenizer.special_tokens.keys() else template
    if not isinstance(template, ChatTemplate):
        return template
    if template.is_checkpoint_s:
        if tokenizer.chat_template is None:
            raise TokenizerError(
                "prompt_template is chat, but this checkpoint comes without a chat template. Choose one: "
                f"{', '.join(name for name in template_names() if name != CHECKPOINT_TEMPLATE)}, or a .jinja file"
            )
        template = tokenizer.chat_template
    if (text_template := text_template_in(template.source, bool(tokenizer.bos_ids))) is not None:
        return text_template  # whose ids are those of the training
    missing = [token for token in template.needs if token not in tokenizer.special_tokens]
    if missing:
        raise TokenizerError(
            f"the template {template.name} needs the special tokens {', '.join(missing)}, which this tokenizer lacks: "
            "it belongs to another family of models. Choose another prompt_template"
        )
    return template


def apply_chat_template(
    tokenizer: Tokenizer,
    messages: Sequence[Message | Mapping[str, Any]],
    *,
    template: AnyTemplate | None = None,
    add_generation_prompt: bool = False,
    tokenize: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str | list[int]:
    """Return a conversation as the model reads it, as ids or as text.

    The text is that of the reference. So are the ids, but for special tokens written out in a message: they stay
    text. No BOS is added to that of the template.

    Args:
        tokenizer: gives the ids; its `prompt_template` is used, or else its `chat_template`.
        messages: `Message`s, or mappings with `role` and `content`.
        template: used instead of the tokenizer's.
        add_generation_prompt: end where the assistant's next answer starts. Text templates always do.
        tokenize: give ids; otherwise the text.
        tools: schemas of what the assistant may call, for templates that know tools.
        **variables: further names that the chat template reads, such as `enable_thinking`.

    Raises:
        TokenizerError: there is no template, or it cannot be used.
        DataError: the template refuses the conversation.
    """
    found = template or tokenizer.prompt_template or tokenizer.chat_template
    if found is None:
        raise TokenizerError(
            "this tokenizer comes without a chat template. Give it one with prompt_template: "
            f"{', '.join(template_names())}, or a .jinja file"
        )
    chosen = template_for(found, tokenizer)
    if not messages:
        raise DataError("a conversation of 0 messages cannot be written")
    if isinstance(chosen, PromptTemplate):
        if tools or variables:
            raise DataError(
                f"the template {chosen.name} knows no tools and no {', '.join(variables) or 'variables'}"
            )
        segments = chosen.segments([_as_message(message) for message in messages])
        if tokenize:
            return _weigh_segments(tokenizer, segments)[0]
        return "".join(segment.text for segment in segments)
    conversation = _conversation(tokenizer, chosen, messages, tools, variables)
    text = conversation.render(len(messages), add_generation_prompt)
    if not tokenize:
        return conversation.without_marks(text)
    return tokenizer.encode_pieces(conversation.split(text))


def tokenize_conversation(
    tokenizer: Tokenizer,
    template: AnyTemplate,
    messages: Sequence[Message],
    add_eos: bool = True,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> tuple[list[int], list[bool]]:
    """Return the ids of a conversation and, for each, whether it is masked (not learnt).

    What is learnt of an answer is what the model has to write when it is asked for it: everything after the
    generation prompt up to and with the token that ends the turn.

    Args:
        tokenizer: gives the ids.
        template: writes the conversation.
        messages: say what is masked.
        add_eos: False ends right after the last answer's text, for an answer that shall be continued.
        tools: schemas of what the assistant may call.
        variables: further names that the chat template reads.

    Raises:
        DataError: the template refuses the conversation or changes answers, or writes earlier answers otherwise than
            they are generated, so that one text does not teach all of them: see `tokenize_examples`.
    """
    examples = tokenize_examples(tokenizer, template, messages, add_eos, tools=tools, variables=variables)
    if len(examples) > 1:
        raise DataError(
            f"with {template} it takes {len(examples)} examples to learn this conversation's answers as the model "
            "generates them: once more turns follow, it writes an answer otherwise (without its thinking, perhaps). "
            "Use tokenize_examples, as datasets do, or mask all answers but the last"
        )
    return examples[0]


def tokenize_examples(
    tokenizer: Tokenizer,
    template: AnyTemplate,
    messages: Sequence[Message],
    add_eos: bool = True,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[tuple[list[int], list[bool]]]:
    """Return what `tokenize_conversation` does, as several examples where one text cannot teach all answers.

    Each answer is learnt once, after exactly the ids a model reads that is asked for it.

    Raises:
        DataError: the template refuses the conversation, changes answers, or does not read the tools.
    """
    examples = tokenize_weighted(tokenizer, template, messages, add_eos, tools=tools, variables=variables)
    return [(tokens, [weight == 0 for weight in weights]) for tokens, weights in examples]


def tokenize_weighted(
    tokenizer: Tokenizer,
    template: AnyTemplate,
    messages: Sequence[Message],
    add_eos: bool = True,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
    max_seq_len: int | None = None,
    parse_special: bool = False,
) -> list[tuple[list[int], list[float]]]:
    """Return what `tokenize_examples` does, with the weight of each token in its loss: 0 where it is not learnt.

    Args:
        tokenizer: as `tokenize_examples`, like all that are not named here.
        max_seq_len: only so many tokens of each example are of use: answers that begin later need not be found.
        parse_special: special tokens written out in messages become their ids; an end that stands there is not added.

    Raises:
        DataError: as `tokenize_examples`.
    """
    chosen = template_for(template, tokenizer)
    if isinstance(chosen, PromptTemplate):
        if tools or variables:
            raise DataError(
                f"the template {chosen.name} knows no tools and no variables; use a chat template, or leave the "
                "tools out: dataset.ignore_columns=[tools]"
            )
        return [_weigh_segments(tokenizer, chosen.segments(messages), add_eos, parse_special)]
    if not messages:
        raise DataError("a conversation of 0 messages cannot be written")
    if tools and not chosen.reads_tools():
        raise DataError(
            f"{chosen} does not write the {len(tools)} tools that the assistant is given, so it would learn calls that "
            "nobody offered. Choose a prompt_template that knows tools, or leave them out: "
            "dataset.ignore_columns=[tools]"
        )
    if parse_special:
        stops = stop_ids_of(tokenizer, chosen)
        ends = [text for text, token_id in tokenizer.special_tokens.items() if token_id in stops]
        messages = [_without_end(message, ends) for message in messages]
    conversation = _conversation(tokenizer, chosen, messages, tools, variables or {}, parse_special)
    encoder = ConversationEncoder(tokenizer, conversation)
    within = None if max_seq_len is None else encoder.num_messages_within(messages, max_seq_len)
    # The last text is the longest one: the others share its ids.
    found = [
        encoder.examples(written, add_eos)
        for written in reversed(write_examples(conversation, messages, tokenizer.stop_ids, within))
    ]
    return [example for examples in reversed(found) for example in examples]


def _without_end(message: Message, ends: Collection[str]) -> Message:
    """Return a message without a token at its end that ends a turn: a template writes that itself."""
    content = message.content.rstrip()
    end = next((end for end in ends if content.endswith(end)), "")
    return replace(message, content=content.removesuffix(end), spans=()) if end else message


def stop_ids_of(tokenizer: Tokenizer, template: AnyTemplate) -> tuple[int, ...]:
    """Return the ids that end an answer: the tokenizer's, and the one by which a chat template ends a turn."""
    chosen = template_for(template, tokenizer)
    if isinstance(chosen, PromptTemplate):
        return tokenizer.stop_ids
    escaper = escaper_for(tokenizer.special_tokens)
    return tuple(
        dict.fromkeys((*tokenizer.stop_ids, *end_of_turn(chosen, escaper, tokenizer.special_token_names)))
    )


def _conversation(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message | Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any],
    parse_special: bool = False,
) -> Conversation:
    return Conversation(
        template,
        escaper_for(tokenizer.special_tokens),
        plain_messages(messages),
        None if tools is None else plain_data(list(tools), "tools"),
        plain_data(dict(variables), "a variable of the chat template"),
        tokenizer.special_token_names,
        parse_special,
    )


def _as_message(message: Message | Mapping[str, Any]) -> Message:
    if isinstance(message, Message):
        return message
    content = message.get("content")
    if not isinstance(content, str):
        raise DataError(f"a message has a {type(content).__name__} as content, expected text")
    return Message(message["role"], content)


def tokenize_segments(
    tokenizer: Tokenizer, segments: Sequence[Segment], add_eos: bool = True
) -> tuple[list[int], list[bool]]:
    """Return the tokens of all segments and for each whether it is masked (not learnt).

    A BOS is always masked: nothing comes before it that it could follow from.

    Args:
        tokenizer: gives the ids.
        segments: as a template writes them.
        add_eos: False leaves out the EOS at the very end, for an answer that shall be continued.
    """
    tokens, weights = _weigh_segments(tokenizer, segments, add_eos)
    return tokens, [weight == 0 for weight in weights]


def _weigh_segments(
    tokenizer: Tokenizer, segments: Sequence[Segment], add_eos: bool = True, parse_special: bool = False
) -> tuple[list[int], list[float]]:
    tokens: list[int] = []
    weights: list[float] = []
    for segment in segments:
        ends = segment.add_eos and (add_eos or segment is not segments[-1])
        ids = tokenizer.encode(
            segment.text,
            add_bos=segment.add_bos,
            add_eos=ends and not (parse_special and ends_in_control_token(segment.text, tokenizer)),
            continuation=segment.continuation,
            parse_special=parse_special,
        )
        tokens += ids
        if segment.masked or segment.places is None:
            weights += [0.0 if segment.masked else segment.weight] * len(ids)
        else:
            weights += _weigh_parts(tokenizer, segment, ids, ends)
        if segment.add_bos and ids[:1] == [tokenizer.bos_id]:
            weights[-len(ids)] = 0.0
    return tokens, weights


def _weigh_parts(tokenizer: Tokenizer, segment: Segment, ids: list[int], ends: bool) -> list[float]:
    """Return the weights of a segment's ids, of which only parts are learnt: those in its places, and its EOS."""
    text_ids = tokenizer.encode(segment.text, add_bos=False, add_eos=False, continuation=segment.continuation)
    spans = find_spans(tokenizer, segment.text, text_ids)
    after = [segment.weight] * ends  # of the EOS
    num_before = len(ids) - len(text_ids) - len(after)
    if spans is None or ids[num_before : len(ids) - len(after)] != text_ids:
        raise DataError("the parts of a message that have weights of their own cannot be told in its tokens")
    return [0.0] * num_before + weigh_tokens(segment.text, spans, segment.places or ()) + after
