"""From text to batches: messages, templates, labels, padding, and the order of examples."""

from __future__ import annotations

from tune.data.collate import block_causal_mask, padded_collate, padded_collate_sft
from tune.data.labels import CROSS_ENTROPY_IGNORE_IDX, masked_labels, shift_labels, truncate
from tune.data.messages import Message, Role, validate_messages
from tune.data.sampler import ResumableSampler
from tune.data.templates import (
    AlpacaInstructTemplate,
    ChatMLTemplate,
    GrammarErrorCorrectionTemplate,
    Llama2ChatTemplate,
    PlainTemplate,
    PromptTemplate,
    QuestionAnswerTemplate,
    Segment,
    SummarizeTemplate,
    get_prompt_template,
)
from tune.data.tokenization import tokenize_segments

__all__ = [
    "CROSS_ENTROPY_IGNORE_IDX",
    "AlpacaInstructTemplate",
    "ChatMLTemplate",
    "GrammarErrorCorrectionTemplate",
    "Llama2ChatTemplate",
    "Message",
    "PlainTemplate",
    "PromptTemplate",
    "QuestionAnswerTemplate",
    "ResumableSampler",
    "Role",
    "Segment",
    "SummarizeTemplate",
    "block_causal_mask",
    "get_prompt_template",
    "masked_labels",
    "padded_collate",
    "padded_collate_sft",
    "shift_labels",
    "tokenize_segments",
    "truncate",
    "validate_messages",
]
