"""Continue prompts with a decoder: tokens or text, greedy or sampled, whole or streamed."""

from __future__ import annotations

from tune.generation.answered_batches import AnsweredBatches
from tune.generation.answers import write_answers
from tune.generation.chat import Chat
from tune.generation.decode import (
    StopReason,
    TokenStream,
    generate,
    generate_batch,
    stream,
    stream_batch,
)
from tune.generation.loading import load_model, load_tokenizer, saved_sampling, trained_template
from tune.generation.prompts import Prompt, Question, ask, read_prompts
from tune.generation.sampling import Sampling, make_generator, sample_token, token_probabilities
from tune.generation.session import Session
from tune.generation.stop_strings import StopStrings
from tune.generation.text import (
    TextStream,
    generate_text,
    generate_texts,
    stream_text,
    stream_texts,
)

__all__ = [
    "AnsweredBatches",
    "Chat",
    "Prompt",
    "Question",
    "Sampling",
    "Session",
    "StopReason",
    "StopStrings",
    "TextStream",
    "TokenStream",
    "ask",
    "generate",
    "generate_batch",
    "generate_text",
    "generate_texts",
    "load_model",
    "load_tokenizer",
    "make_generator",
    "read_prompts",
    "sample_token",
    "saved_sampling",
    "stream",
    "stream_batch",
    "stream_text",
    "stream_texts",
    "token_probabilities",
    "trained_template",
    "write_answers",
]
