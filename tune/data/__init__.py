"""From text to batches: messages, templates, labels, padding, and the order of examples.

What needs torch is imported when it is first used: processes that tokenize start without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune.data.chat_columns import ChatColumns, find_chat_columns, find_conversation_column
from tune.data.columns import (
    InstructionColumns,
    find_instruction_columns,
    find_text_column,
    list_names,
)
from tune.data.files import Row
from tune.data.labels import CROSS_ENTROPY_IGNORE_IDX, masked_labels, shift_labels, shift_weights, truncate
from tune.data.packing import pack_lengths
from tune.data.preview import preview_example
from tune.data.prompts import answered_examples, find_prompts
from tune.data.report import DataReport, merge_reports
from tune.data.rows import describe
from tune.data.sources import Source
from tune.data.store import Examples, TokenStore, TokenWriter
from tune.data.tokenize_rows import ConversationTokenizer, MessageTransform, TextTokenizer, TokenizedRows
from tune.data.tokenized_rows import TokenizedToExamples
from tune.data.torchtune_names import GONE, HERE
from tune.data.train_on import LearntAnswers
from tune.data.transforms import (
    AlpacaToMessages,
    ChatToMessages,
    InputOutputToMessages,
    OpenAIToMessages,
    ShareGPTToMessages,
)
from tune.data.values import unused_columns
from tune.tokenizers.chat_template import tokenize_segments
from tune.tokenizers.messages import Message, Role, validate_messages
from tune.tokenizers.templates import (
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
from tune.utils.torchtune_names import offer_names

if TYPE_CHECKING:
    from tune.data.collate import block_causal_mask, padded_collate, padded_collate_sft
    from tune.data.collate_preference import padded_collate_dpo
    from tune.data.sampler import FilledDataset, ResumableSampler

__all__ = [
    "CROSS_ENTROPY_IGNORE_IDX",
    "AlpacaInstructTemplate",
    "AlpacaToMessages",
    "ChatColumns",
    "ChatMLTemplate",
    "ChatToMessages",
    "ConversationTokenizer",
    "DataReport",
    "Examples",
    "FilledDataset",
    "GrammarErrorCorrectionTemplate",
    "InputOutputToMessages",
    "InstructionColumns",
    "LearntAnswers",
    "Llama2ChatTemplate",
    "Message",
    "MessageTransform",
    "OpenAIToMessages",
    "PlainTemplate",
    "PromptTemplate",
    "QuestionAnswerTemplate",
    "ResumableSampler",
    "Role",
    "Row",
    "Segment",
    "ShareGPTToMessages",
    "Source",
    "SummarizeTemplate",
    "TextTokenizer",
    "TokenStore",
    "TokenWriter",
    "TokenizedRows",
    "TokenizedToExamples",
    "answered_examples",
    "block_causal_mask",
    "describe",
    "find_chat_columns",
    "find_conversation_column",
    "find_instruction_columns",
    "find_prompts",
    "find_text_column",
    "get_prompt_template",
    "list_names",
    "masked_labels",
    "merge_reports",
    "pack_lengths",
    "padded_collate",
    "padded_collate_dpo",
    "padded_collate_sft",
    "preview_example",
    "shift_labels",
    "shift_weights",
    "tokenize_segments",
    "truncate",
    "unused_columns",
    "validate_messages",
]

_NEEDS_TORCH = {
    "FilledDataset": "tune.data.sampler.FilledDataset",
    "ResumableSampler": "tune.data.sampler.ResumableSampler",
    "block_causal_mask": "tune.data.collate.block_causal_mask",
    "padded_collate": "tune.data.collate.padded_collate",
    "padded_collate_dpo": "tune.data.collate_preference.padded_collate_dpo",
    "padded_collate_sft": "tune.data.collate.padded_collate_sft",
}

offer_names(__name__, HERE | _NEEDS_TORCH, GONE)
