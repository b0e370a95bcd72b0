"""What datasets make of rows for tokenizers that their family's builder made, held against torchtune's formats.

Expected texts have special tokens written out, and ⟦ ⟧ around what is learnt. The differences from torchtune 0.6.1 are
those that docs/from_torchtune.md lists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2.sandbox
import pytest
from trained_tokenizers import tiktoken_lines

from tune import datasets
from tune.models import get_tokenizer
from tune.tokenizers import BaseTokenizer, SentencePieceTokenizer, from_checkpoint

Make = Callable[..., BaseTokenizer]
FAMILIES = ("llama2", "llama3", "mistral", "gemma", "qwen2", "qwen2_5", "phi3_mini", "phi4")
SPM = ("llama2", "mistral", "gemma", "phi3_mini")
PHI4_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>")
PHI3_SPECIAL = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")

QWEN = "<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n⟦{answer}<|im_end|>⟧\n"
LLAMA3 = "<|start_header_id|>{}<|end_header_id|>\n\n"
# One question and its answer.
ONE_TURN = {
    "llama2": "<s> [INST] {asked} [/INST]⟦ {answer} </s>⟧",
    "llama3": f"<|begin_of_text|>{LLAMA3.format('user')}{{asked}}<|eot_id|>{LLAMA3.format('assistant')}"
    "⟦{answer}<|eot_id|>⟧",
    "mistral": "<s> [INST] {asked} [/INST]⟦ {answer}</s>⟧",
    "gemma": "<s> {asked}⟦{answer}</s>⟧",
    "qwen2": QWEN,
    "qwen2_5": QWEN,
    "phi3_mini": "<|user|> \n{asked}<|end|> \n<|assistant|> \n⟦{answer}<|end|>⟧ \n",
    "phi4": "<|im_start|>user<|im_sep|>{asked}<|im_end|><|im_start|>assistant<|im_sep|>⟦{answer}<|im_end|>⟧",
}
TWO_QWEN = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    "⟦Yes.<|im_end|>⟧\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n⟦So.<|im_end|>⟧\n"
)
# The system's text, and two questions with answers.
TWO_TURNS = {
    "llama2": "<s> [INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi. [/INST]⟦ Yes. </s>⟧<s> [INST] Why? [/INST]⟦ So. </s>⟧",
    "llama3": f"<|begin_of_text|>{LLAMA3.format('system')}Be brief.<|eot_id|>{LLAMA3.format('user')}Hi.<|eot_id|>"
    f"{LLAMA3.format('assistant')}⟦Yes.<|eot_id|>⟧{LLAMA3.format('user')}Why?<|eot_id|>{LLAMA3.format('assistant')}"
    "⟦So.<|eot_id|>⟧",
    "mistral": "<s> [INST] Be brief.\n\nHi. [/INST]⟦ Yes.</s>⟧ [INST] Why? [/INST]⟦ So.</s>⟧",
    "gemma": "<s> Be brief.\n\nHi.⟦Yes.</s>⟧<s> Why?⟦So.</s>⟧",
    "qwen2": TWO_QWEN,
    "qwen2_5": TWO_QWEN,
    "phi3_mini": "<|system|> \nBe brief.<|end|> \n<|user|> \nHi.<|end|> \n<|assistant|> \n⟦Yes.<|end|>⟧ \n"
    "<|user|> \nWhy?<|end|> \n<|assistant|> \n⟦So.<|end|>⟧ \n",
    "phi4": "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hi.<|im_end|>"
    "<|im_start|>assistant<|im_sep|>⟦Yes.<|im_end|>⟧<|im_start|>user<|im_sep|>Why?<|im_end|>"
    "<|im_start|>assistant<|im_sep|>⟦So.<|im_end|>⟧",
}
# Begin and end of a text that is learnt as it stands.
TEXT = {
    "llama2": "⟦<s> {}</s>⟧",
    "llama3": "⟦<|begin_of_text|>{}<|end_of_text|>⟧",
    "mistral": "⟦<s> {}</s>⟧",
    "gemma": "⟦<s> {}</s>⟧",
    "qwen2": "⟦{}<|endoftext|>⟧",
    "qwen2_5": "⟦{}<|endoftext|>⟧",
    "phi3_mini": "⟦<s> {}<|endoftext|>⟧",
    "phi4": "⟦{}<|endoftext|>⟧",
}
# Formats that take white space off the ends of what is said.
TRIMS_ASKED, TRIMS_ANSWER = ("llama2", "llama3"), ("llama2", "llama3")
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Response:\n",
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n"
    "### Response:\n",
)
ALPACA_ROWS = [
    {"instruction": "Add.", "input": "", "output": "It is 3."},
    {"instruction": "Add.", "input": "1 and 2", "output": "It is 3."},
]
PAIR = [{"input": "Hi there", "output": "Yes."}]
OPENAI = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
]
SHAREGPT = [
    {"from": {"user": "human", "assistant": "gpt"}.get(turn["role"], "system"), "value": turn["content"]}
    for turn in OPENAI
]


@pytest.fixture(scope="module")
def make(
    trained: dict[str, dict[str, Any]], spm_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Make:
    """A function that builds a family's tokenizer from files such as torchtune's configs name."""

    def write(family: str) -> dict[str, str]:
        folder = tmp_path_factory.mktemp(family)
        if family in SPM or family == "llama3":
            content = spm_file.read_bytes() if family in SPM else tiktoken_lines(trained["llama3"])
            (folder / "tokenizer.model").write_bytes(content)
            if family == "phi3_mini":
                _write_settings(folder, PHI3_SPECIAL, 600)
            return {"path": str(folder / "tokenizer.model")}
        model = trained["qwen"]["model"]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        if family == "phi4":
            _write_settings(folder, PHI4_SPECIAL, len(model["vocab"]))
        names = ("vocab_path", "merges_path") if family == "phi4" else ("path", "merges_file")
        return dict(zip(names, (str(folder / "vocab.json"), str(folder / "merges.txt"))))

    files = {family: write(family) for family in FAMILIES}
    return lambda family, **arguments: get_tokenizer(family, **files[family], **arguments)


def _write_settings(folder: Path, special: tuple[str, ...], first: int) -> None:
    added = {str(first + i): {"content": text, "special": True} for i, text in enumerate(special)}
    settings = {"eos_token": special[0], "pad_token": special[0], "added_tokens_decoder": added}
    if special is PHI3_SPECIAL:
        settings |= {"bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def marked(tokenizer: BaseTokenizer, example: dict[str, list[int]]) -> str:
    """Return an example's tokens written out, with ⟦ ⟧ around those with a label."""
    text, was_learnt = "", False
    for token, label in zip(example["tokens"], example["labels"], strict=True):
        if (label != -100) != was_learnt:
            text, was_learnt = text + "⟧⟦"[not was_learnt], not was_learnt
        assert label in (token, -100)
        piece = tokenizer.token(token)
        if isinstance(tokenizer, SentencePieceTokenizer):
            byte = re.fullmatch("<0x(..)>", piece)
            text += chr(int(byte[1], 16)) if byte else piece.replace("▁", " ")
        else:
            text += tokenizer.decode([token], skip_special=False)
    return text + "⟧" * was_learnt


def reference_ids(tokenizer: BaseTokenizer, text: str) -> list[int]:
    """Return the ids of a whole text whose special tokens are written out, each text between them in one go."""
    text = re.sub("[⟦⟧]", "", text)
    special = dict(tokenizer.special_tokens)
    if isinstance(tokenizer, SentencePieceTokenizer):
        special |= {"<s>": tokenizer.bos_id, "</s>": tokenizer.token_id("</s>")}
    ids: list[int] = []
    for part in filter(None, re.split("(" + "|".join(map(re.escape, special)) + ")", text)):
        # The space that SentencePiece puts before a text stands in the expected text already.
        has_space = part.startswith(" ") and isinstance(tokenizer, SentencePieceTokenizer)
        plain = part.removeprefix(" ") if has_space else part
        found = tokenizer.encode(plain, add_bos=False, add_eos=False, continuation=not has_space)
        ids += [special[part]] if part in special else found
    return ids


def learn_all(text: str) -> str:
    """Return an expected text in which prompts are learnt, too: all but BOS and what stands behind the last answer."""
    end = text.rindex("⟧")
    body, rest = re.sub("[⟦⟧]", "", text[:end]), text[end:]
    return (
        re.sub(r"^(<s>|<\|begin_of_text\|>)?", r"\1⟦", body, count=1).replace("</s><s>", "</s>⟧<s>⟦") + rest
    )


def fill(family: str, asked: str, answer: str) -> str:
    asked = asked.strip() if family in TRIMS_ASKED else asked
    return ONE_TURN[family].format(asked=asked, answer=answer.strip() if family in TRIMS_ANSWER else answer)


def check(tokenizer: BaseTokenizer, dataset: Any, expected: list[str]) -> None:
    assert [marked(tokenizer, dataset[index]) for index in range(len(dataset))] == expected
    for index, text in enumerate(expected):
        assert dataset[index]["tokens"] == reference_ids(tokenizer, text)


@pytest.fixture
def rows(tmp_path: Path) -> Callable[[list[dict[str, Any]]], str]:
    def write(content: list[dict[str, Any]]) -> str:
        file = tmp_path / "rows.json"
        file.write_text(json.dumps(content), encoding="utf-8")
        return str(file)

    return write


@pytest.mark.parametrize("family", FAMILIES)
def test_instructions(make: Make, rows: Callable[..., str], family: str) -> None:
    tokenizer = make(family)
    expected = [fill(family, asked, "It is 3.") for asked in ALPACA]
    source = rows(ALPACA_ROWS)
    learnt = datasets.alpaca_dataset(tokenizer, source=source)
    check(tokenizer, learnt, [learn_all(text) for text in expected])
    check(
        tokenizer,
        datasets.alpaca_cleaned_dataset(tokenizer, source=source, train_on_input=False),
        expected,
    )
    assert "template alpaca" in str(learnt.report())
    source = rows(PAIR)
    check(tokenizer, datasets.instruct_dataset(tokenizer, source=source), [fill(family, "Hi there", "Yes.")])
    check(tokenizer, datasets.grammar_dataset(tokenizer, source=source), [fill(family, "Hi there", "Yes.")])
    source = rows([{"dialogue": "A: hi", "summary": "Hi."}])
    samsum = datasets.samsum_dataset(tokenizer, source=source, train_on_input=True)
    check(tokenizer, samsum, [learn_all(fill(family, "A: hi", "Hi."))])


@pytest.mark.parametrize("family", FAMILIES)
def test_conversations(make: Make, rows: Callable[..., str], family: str) -> None:
    tokenizer = make(family)
    source = rows([{"talk": OPENAI}])
    style = {"conversation_column": "talk", "conversation_style": "openai"}
    check(tokenizer, datasets.chat_dataset(tokenizer, source=source, **style), [TWO_TURNS[family]])
    everything = datasets.chat_dataset(tokenizer, source=source, train_on_input=True, **style)
    check(tokenizer, everything, [learn_all(TWO_TURNS[family])])
    source = rows([{"conversations": SHAREGPT}])
    style = {"conversation_column": "conversations", "conversation_style": "sharegpt"}
    check(tokenizer, datasets.chat_dataset(tokenizer, source=source, **style), [TWO_TURNS[family]])
    other = datasets.slimorca_dataset(tokenizer, source=source, new_system_prompt="Be kind.")
    check(tokenizer, other, [TWO_TURNS[family].replace("brief", "kind")])
    # What is cut keeps its first tokens, and no EOS is put in the place of the last one.
    whole = other[0]
    size = len(whole["tokens"]) - 1
    cut = datasets.slimorca_dataset(tokenizer, source=source, new_system_prompt="Be kind.", max_seq_len=size)
    assert cut[0] == {key: values[:size] for key, values in whole.items()}
    packed = datasets.slimorca_dataset(
        tokenizer, source=source, new_system_prompt="Be kind.", packed=True, max_seq_len=size + 5
    )
    assert packed[0]["tokens"] == whole["tokens"]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts(make: Make, rows: Callable[..., str], family: str) -> None:
    tokenizer = make(family)
    expected = [TEXT[family].format(text) for text in ("One two.", "Three.")]
    for builder, column in (
        ("text_completion", "text"),
        ("wikitext", "page"),
        ("cnn_dailymail_articles", "article"),
    ):
        source = rows([{column: "One two."}, {column: "Three."}])
        arguments = {"column": column} if builder == "text_completion" else {}
        dataset = getattr(datasets, f"{builder}_dataset")(tokenizer, source=source, **arguments)
        check(tokenizer, dataset, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_template_stands_inside_of_turns(make: Make, rows: Callable[..., str], family: str) -> None:
    tokenizer = make(family, prompt_template="torchtune.data.GrammarErrorCorrectionTemplate")
    dataset = datasets.grammar_dataset(tokenizer, source=rows(PAIR))
    asked = "Correct this to standard English: Hi there\n---\nCorrected: "
    if family in ("llama2", "mistral", "gemma"):  # whose format is a prompt template itself
        expected = f"<s> {asked.rstrip()}⟦ Yes.</s>⟧"
    else:
        expected = fill(family, asked, "Yes.")
    check(tokenizer, dataset, [expected])


@pytest.mark.parametrize(("template", "system"), [("question_answer", "Be kind."), ("own", "<Be kind.>")])
def test_the_system_has_a_turn_of_its_own(
    make: Make, rows: Callable[..., str], template: str, system: str
) -> None:
    own = {"system": ["<", ">"], "user": ["Question: ", "\n"], "assistant": ["Answer: ", ""]}
    tokenizer = make("qwen2_5", prompt_template=own if template == "own" else template)
    dataset = datasets.instruct_dataset(tokenizer, source=rows(PAIR), new_system_prompt="Be kind.")
    expected = fill("qwen2_5", "Question: Hi there\nAnswer: ", "Yes.")
    check(tokenizer, dataset, [f"<|im_start|>system\n{system}<|im_end|>\n{expected}"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_asked_as_it_was_trained(make: Make, rows: Callable[..., str], family: str) -> None:
    tokenizer = make(family)
    dataset = datasets.alpaca_dataset(tokenizer, source=rows(ALPACA_ROWS), train_on_input=False)
    prompt = dataset.render_prompt("Add.")
    ids = tokenizer.encode(prompt, add_eos=False) if isinstance(prompt, str) else prompt
    example = dataset[0]
    assert example["tokens"][: len(ids)] == ids
    assert [label == -100 for label in example["labels"][: len(ids) + 1]] == [True] * len(ids) + [False]
    # Other tools render what is saved, with what Jinja itself has.
    saved = tokenizer.trained_template
    assert saved is not None
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(saved.source).render(
        messages=[{"role": "user", "content": "Add."}],
        add_generation_prompt=True,
        bos_token=tokenizer.special_token_names.get("bos_token", "<s>"),
    )
    add_bos = family in (
        "llama2",
        "mistral",
        "gemma",
    )  # where a text stands for it, and it is not written out
    assert tokenizer.encode(text, add_bos=add_bos, add_eos=False, parse_special=True) == ids


def test_formats_that_were_chosen_go_before_the_familys(make: Make, rows: Callable[..., str]) -> None:
    built = make("llama2")
    found = from_checkpoint(built.path.parent)
    dataset = datasets.alpaca_dataset(found, source=rows(ALPACA_ROWS[:1]), train_on_input=False)
    check(found, dataset, [f"<s> {ALPACA[0]}⟦It is 3.</s>⟧"])
    named = datasets.instruct_dataset(built, source=rows(PAIR), prompt_template="question_answer")
    check(built, named, ["<s> Question: Hi there\nAnswer:⟦ Yes.</s>⟧"])
    asked = make("llama2", prompt_template="alpaca")
    once = datasets.alpaca_dataset(asked, source=rows(ALPACA_ROWS[:1]), train_on_input=False)
    check(asked, once, [f"<s> {ALPACA[0]}⟦It is 3.</s>⟧"])
