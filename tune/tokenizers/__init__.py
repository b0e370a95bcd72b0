"""Text to token ids and back: one protocol, one class per kind of tokenizer file.

`from_checkpoint(directory)` reads the tokenizer that stands beside a model's weights; `auto` is the same for
configs. Text given by a user never becomes a special token, whatever it contains.
"""

from __future__ import annotations

from tune.tokenizers.export import write_hf_tokenizer_config
from tune.tokenizers.loading import auto, from_checkpoint
from tune.tokenizers.protocol import Tokenizer
from tune.tokenizers.spm import SentencePieceTokenizer
from tune.tokenizers.stream import StreamDecoder

__all__ = [
    "SentencePieceTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "auto",
    "from_checkpoint",
    "write_hf_tokenizer_config",
]
