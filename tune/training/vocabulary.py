"""A model and the tokenizer that it is trained with: rows for all tokens, and positions for all texts."""

from __future__ import annotations

from tune.data import DataReport
from tune.modules import DecoderConfig, TransformerDecoder
from tune.modules.new_rows import resize_vocabulary
from tune.modules.peft import adapter_parameters, add_token_rows
from tune.tokenizers import Tokenizer, require_rows
from tune.utils import get_logger

__all__ = ["check_tokenizer_fits", "fit_vocabulary"]


def fit_vocabulary(model: TransformerDecoder, tokenizer: Tokenizer, report: DataReport) -> None:
    """Give a model the rows that it lacks for tokens added on purpose, and check that the tokenizer then fits it.

    Beside adapters, rows of the tokens that were added are trained, and the rest of embedding and output matrix is not.

    Args:
        model: on the meta device, before it is wrapped or compiled.
        tokenizer: with `add_tokens` or `add_special_tokens`, the vocabulary grows to it.
        report: of the dataset.

    Raises:
        ConfigError: as `check_tokenizer_fits` and `resize_vocabulary`.
    """
    num_rows = model.config.vocab_size
    if getattr(tokenizer, "may_outgrow_model", False) and tokenizer.vocab_size > num_rows:
        resize_vocabulary(model, tokenizer.vocab_size)
        what = "embedding grows" if model.output is None else "embedding and output matrix grow"
        get_logger().info(
            f"The {what} from {num_rows} rows to {tokenizer.vocab_size}; each new row begins as the mean of "
            "the old ones."
        )
    if adapter_parameters(model) and (token_ids := getattr(tokenizer, "new_ids", ())):
        add_token_rows(model, token_ids)
    check_tokenizer_fits(tokenizer, model.config, report)


def check_tokenizer_fits(tokenizer: Tokenizer, config: DecoderConfig, report: DataReport) -> None:
    """Refuse tokens that the model has no row for; warn of texts longer than it was made for.

    Raises:
        ConfigError: there are such tokens.
    """
    require_rows(tokenizer, config.vocab_size)
    longest = report.longest_kept
    if longest > config.max_text_len:
        get_logger().warning(
            f"The longest sequence has {longest} tokens, but the model was made for {config.max_text_len}. "
            f"Set tokenizer.max_seq_len={config.max_seq_len} to cut there."
        )
