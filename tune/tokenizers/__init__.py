"""Text to token ids and back, and conversations to text: tokenizers, messages, prompt templates.

`from_checkpoint(directory)` reads the tokenizer that stands beside a model's weights; `auto` is the same for
configs. Text given by a user never becomes a special token, whatever it contains.
"""

from __future__ import annotations

from tune.tokenizers.base import BaseTokenizer
from tune.tokenizers.chat_template import (
    ChatTemplate,
    tokenize_conversation,
    tokenize_examples,
    tokenize_segments,
    tokenize_weighted,
)
from tune.tokenizers.family_format import with_family_format
from tune.tokenizers.hf_json import HFTokenizer
from tune.tokenizers.loading import auto, from_checkpoint, holds_tokenizer
from tune.tokenizers.messages import Message, Role, validate_messages
from tune.tokenizers.new_tokens import with_new_tokens
from tune.tokenizers.protocol import Tokenizer
from tune.tokenizers.rows import (
    find_tokens_without_row,
    note_tokens_without_row,
    refuse_dropped_tokens,
    require_rows,
    show_tokens,
)
from tune.tokenizers.same_vocabulary import require_same_vocabulary
from tune.tokenizers.spm import SentencePieceTokenizer, write_hf_tokenizer_config
from tune.tokenizers.stream import StreamDecoder
from tune.tokenizers.tekken import tekken_tokenizer
from tune.tokenizers.templates import PromptTemplate, Segment, get_prompt_template
from tune.tokenizers.tiktoken_bpe import TiktokenTokenizer
from tune.tokenizers.vocab_merges import vocab_merges_tokenizer

__all__ = [
    "BaseTokenizer",
    "ChatTemplate",
    "HFTokenizer",
    "Message",
    "PromptTemplate",
    "Role",
    "Segment",
    "SentencePieceTokenizer",
    "StreamDecoder",
    "TiktokenTokenizer",
    "Tokenizer",
    "auto",
    "find_tokens_without_row",
    "from_checkpoint",
    "get_prompt_template",
    "holds_tokenizer",
    "note_tokens_without_row",
    "refuse_dropped_tokens",
    "require_rows",
    "require_same_vocabulary",
    "show_tokens",
    "tekken_tokenizer",
    "tokenize_conversation",
    "tokenize_examples",
    "tokenize_segments",
    "tokenize_weighted",
    "validate_messages",
    "vocab_merges_tokenizer",
    "with_family_format",
    "with_new_tokens",
    "write_hf_tokenizer_config",
]
