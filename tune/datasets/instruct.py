"""Prompts and answers in a template of one's choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Unpack

from tune.data import (
    AlpacaInstructTemplate,
    InputOutputToMessages,
    PromptTemplate,
    find_instruction_columns,
    get_prompt_template,
)
from tune.datasets.alpaca import alpaca_from_rows
from tune.datasets.packed import PackedDataset
from tune.datasets.row_settings import AnswerSettings, answers_dataset, read_rows
from tune.datasets.sft import SFTDataset
from tune.tokenizers.family_format import template_of
from tune.utils.settings import Setting, takes_settings

if TYPE_CHECKING:
    from tune.tokenizers import Tokenizer

# How prompts are written where neither the dataset nor the tokenizer says, by the column they stand in.
# Prompts that come with completions carry their own separators.
_DEFAULT_TEMPLATES = {"question": "question_answer", "prompt": "plain"}


class InstructSettings(AnswerSettings, total=False):
    """Those of prompts with answers."""

    column_map: Annotated[
        dict[str, str] | None,
        Setting(
            None,
            "`input` and `output`, each to its column, where names are not recognised; `system` to that of a system "
            "prompt, `history` to that of earlier pairs of prompt and answer, `tools` to that of tools.",
        ),
    ]
    train_on_input: Annotated[
        bool, Setting(False, "learn the prompt too; False learns answers and their EOS alone.")
    ]
    prompt_template: Annotated[
        str | dict[str, list[str]] | PromptTemplate | None,
        Setting(
            None,
            '"alpaca", "question_answer", "chatml", "llama2_chat", "plain" and others, or a mapping '
            "{user: [before, after], assistant: [before, after]}. By default the tokenizer's; else question_answer for "
            "question/answer, plain for prompt/completion, alpaca for the rest.",
        ),
    ]
    new_system_prompt: Annotated[
        str | None, Setting(None, "a system message for every example, in place of the data's own.")
    ]


@takes_settings(InstructSettings)
def instruct_dataset(
    tokenizer: Tokenizer,
    *,
    source: str,
    **settings: Unpack[InstructSettings],
) -> SFTDataset | PackedDataset:
    """Return prompts with their answers.

    Columns are recognised by name: instruction/(input)/output, prompt/completion, question/answer, input/output.

    Args:
        tokenizer: gives the ids.
        source: hub name, local json, jsonl, csv, tsv or parquet file, folder, or "json" with `data_files`.

    Raises:
        ConfigError: an argument is out of range or names what is not there.
        DataError: the source cannot be read, is not recognised, or holds nothing to learn.
    """
    rows = read_rows(source, settings)
    columns = find_instruction_columns(
        rows.columns, settings["column_map"], input_is_context=False, source=rows.report.source
    )
    system_prompt = settings["new_system_prompt"]
    default = _DEFAULT_TEMPLATES.get(columns.prompt.lower(), "alpaca")
    template = get_prompt_template(settings["prompt_template"] or template_of(tokenizer) or default)
    if isinstance(template, AlpacaInstructTemplate) and not system_prompt:
        # Alpaca has a prompt of its own for instructions that come with an input.
        return alpaca_from_rows(tokenizer, rows, columns, settings["train_on_input"], settings)
    rows.report.format = str(columns)
    transform = InputOutputToMessages(
        settings["train_on_input"],
        columns.column_map("input", "context"),
        system_prompt,
        settings["ignore_columns"] or (),
    )
    return answers_dataset(
        tokenizer, rows, transform, settings, prompt_template=template, system_prompt=system_prompt
    )
