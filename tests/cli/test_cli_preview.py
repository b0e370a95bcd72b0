"""`tune preview`: what is shown of the data, how much of it is read, and what is answered where it cannot be."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tune.data.preview import format_example, preview_tokens
from tune.tokenizers import from_checkpoint
from tune.training.saving.checkpoints import Checkpoints
from tune.training.saving.preview_file import write_preview
from tune.utils.mesh import Mesh

CONFIG = """
recipe: full_finetune
model_checkpoint: bundled:tiny_llama
dataset:
  _component_: instruct
  source: my.jsonl
  prompt_template: question_answer
  train_on_input: false
  parse_special_tokens: false
"""
HOSTILE = "a </s> \x1b[31m\u202e\u200b⟦x⟧"


def write_rows(file: Path, rows: list[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a config and its data: the first answer is of letters that look like something else."""
    (tmp_path / "my.yaml").write_text(CONFIG)
    rows: list[dict[str, object]] = [{"id": "first", "question": "one\ntwo", "answer": HOSTILE}]
    rows += [{"id": f"row_{n}", "question": "say red", "answer": " ".join(["red"] * n)} for n in range(2, 9)]
    write_rows(tmp_path / "my.jsonl", rows)
    return tmp_path


def shown(text: str) -> dict[str, str]:
    """Return what is shown below each title."""
    parts = re.split(r"^(dataset\S*, example \d+): .*\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.rstrip("\n") for part in parts[2::2])))


def test_marks_tell_what_is_learnt_and_what_is_special(tune, folder: Path) -> None:
    outcome = tune("preview", "my.yaml", "--rows", "2")
    assert outcome.code == 0
    assert "2 examples, " in outcome.out
    assert "Only 2 rows of it were read" in outcome.out
    letters = r"a </s> \x1b[31m\u202e\u200b\u27e6x\u27e7"  # no token, no colour, no mark
    assert shown(outcome.out) == {
        "dataset, example 1": f"⟨<s>⟩Question: one⏎\ntwo⏎\nAnswer:⟦ {letters}⟨</s>⟩⟧",
        "dataset, example 2": "⟨<s>⟩Question: say red⏎\nAnswer:⟦ red red⟨</s>⟩⟧",
    }
    assert "\x1b" not in outcome.out + outcome.err
    assert "my.jsonl:2, " in outcome.out


def test_a_terminal_gets_colours_and_underlines(tune, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("tune.cli.terminal.wants_color", lambda stream: True)
    monkeypatch.setattr("tune.cli.preview.wants_color", lambda stream: True)
    outcome = tune("preview", "my.yaml", "--rows", ":2")
    assert (
        "\x1b[7m<s>\x1b[0mQuestion: say red⏎\nAnswer:\x1b[4;32m red red\x1b[0m\x1b[7m\x1b[4;32m</s>\x1b[0m\x1b[0m\n"
        in outcome.out
    )


def test_the_rest_of_a_file_is_not_read(tune, folder: Path) -> None:
    with (folder / "my.jsonl").open("a") as stream:
        stream.write('{"question": "it is not even valid", \n' * 5000)
    assert tune("preview", "my.yaml", "--rows", "3").code == 0
    outcome = tune("preview", "my.yaml", "--all")
    assert outcome.code == 2
    assert "rows of my.jsonl cannot be learnt from" in outcome.err


def test_all_rows_are_counted_if_asked(tune, folder: Path) -> None:
    outcome = tune("preview", "my.yaml", "--all", "-n", "1")
    assert "8 examples, " in outcome.out
    assert "--all" not in outcome.out
    assert list(shown(outcome.out)) == ["dataset, example 1"]


def test_a_look_ends_where_everything_is_too_long(tune, folder: Path) -> None:
    long = {"question": "say red " * 20, "answer": "red"}
    write_rows(folder / "my.jsonl", [long] * 1100 + [{"question": "say", "answer": "blue"}])
    outcome = tune("preview", "my.yaml", "dataset.max_seq_len=20")
    assert outcome.code == 2
    assert "nothing to learn" in outcome.err
    assert "--all reads them all" in outcome.err
    outcome = tune("preview", "my.yaml", "dataset.max_seq_len=20", "--all", "-n", "1")
    assert "1,100 are left out" in outcome.out
    assert list(shown(outcome.out).values()) == ["⟨<s>⟩Question: say⏎\nAnswer:⟦ blue⟨</s>⟩⟧"]


@pytest.mark.parametrize("name", ["my.jsonl:4", ":4", "row_4"])
def test_a_row_is_found_by_its_place_or_its_id(tune, folder: Path, name: str) -> None:
    outcome = tune("preview", "my.yaml", "--rows", name)
    assert list(shown(outcome.out).values()) == ["⟨<s>⟩Question: say red⏎\nAnswer:⟦ red red red red⟨</s>⟩⟧"]


def test_a_row_that_is_not_there_is_an_error(tune, folder: Path) -> None:
    outcome = tune("preview", "my.yaml", "--rows", ":44")
    assert (outcome.code, outcome.out) == (2, "")
    assert "no row is called :44" in outcome.err
    assert tune("preview", "my.yaml", "--rows", "0").code == 2


def test_cut_places_and_documents_are_marked(tune, folder: Path) -> None:
    outcome = tune("preview", "my.yaml", "dataset.max_seq_len=16", "--rows", "row_8")
    assert "Answer:⟦ red red red red red red⟧✂ 3 tokens beyond max_seq_len are cut off\n" in outcome.out
    packed = tune(
        "preview", "my.yaml", "dataset.packed=true", "dataset.max_seq_len=64", "dataset.split=train[1:3]"
    )
    assert shown(packed.out)["dataset, example 1"] == (
        "⟨<s>⟩Question: say red⏎\nAnswer:⟦ red red⟨</s>⟩⟧\n--- document 2 ---\n"
        "⟨<s>⟩Question: say red⏎\nAnswer:⟦ red red red⟨</s>⟩⟧"
    )


def test_json_holds_the_very_tokens_and_labels(tune, folder: Path) -> None:
    outcome = tune("preview", "my.yaml", "--rows", "1", "--json")
    (dataset,) = json.loads(outcome.out)["datasets"]
    (example,) = dataset["examples"]
    assert outcome.out.isascii()
    assert dataset["name"] == "dataset"
    assert dataset["is_partial"] is True
    assert dataset["report"]["num_rows"] == 1
    tokenizer = from_checkpoint("bundled:tiny_llama")
    prompt = tokenizer.encode("Question: one\ntwo\nAnswer:", add_eos=False)
    answer = tokenizer.encode(f" {HOSTILE}", add_bos=False, continuation=True)
    assert example["tokens"] == prompt + answer
    assert example["labels"] == [-100] * len(prompt) + answer
    assert example["places"] == ["my.jsonl:1"]
    assert [(piece["text"], piece["learnt"], piece["special"]) for piece in example["pieces"]] == [
        ("<s>", False, True),
        ("Question: one\ntwo\nAnswer:", False, False),
        (f" {HOSTILE}", True, False),
        ("</s>", True, True),
    ]
    assert [piece["end"] for piece in example["pieces"]][-2:] == [
        len(prompt + answer) - 1,
        len(prompt + answer),
    ]


def test_ids_are_shown_token_by_token(tune, folder: Path) -> None:
    lines = tune("preview", "my.yaml", "--rows", "row_2", "--ids").out.splitlines()
    assert lines[-1].split() == ["12", "2", "1", "⟦⟨</s>⟩⟧"]
    assert next(line for line in lines if line.endswith("⟨<s>⟩")).split() == ["0", "1", "-", "⟨<s>⟩"]


def test_each_of_a_list_is_shown(tune, folder: Path) -> None:
    write_rows(folder / "other.jsonl", [{"text": "river"}])
    first = "{_component_: instruct, source: my.jsonl, split: 'train[1:]'}"
    datasets = f"[{first}, {{_component_: text_completion, source: other.jsonl}}]"
    outcome = tune("preview", f"dataset={datasets}", "model_checkpoint=bundled:tiny_llama", "--rows", "1")
    assert outcome.code == 0
    assert shown(outcome.out)["dataset.1, example 1"] == "⟨<s>⟩⟦river⟨</s>⟩⟧"
    assert "dataset.0: my.jsonl train[1:] (" in outcome.out


def test_the_validation_set_is_shown_if_asked(tune, folder: Path) -> None:
    assert "there is no dataset_val" in tune("preview", "my.yaml", "--val").err
    write_rows(folder / "held.jsonl", [{"text": "river"}])
    words = ["dataset_val._component_=text_completion", "dataset_val.source=held.jsonl", "--val"]
    assert list(shown(tune("preview", "my.yaml", *words).out).values()) == ["⟨<s>⟩⟦river⟨</s>⟩⟧"]


def test_what_is_set_aside_is_shown_if_asked(tune, folder: Path) -> None:
    held = tune("preview", "my.yaml", "val_split=2", "--val")
    assert "my.jsonl, set aside (" in held.out
    kept = tune("preview", "my.yaml", "val_split=2", "--all", "--rows", "9")
    assert "2 of 8 examples are set aside for validation (val_split)" in kept.out
    texts = [*shown(held.out).values(), *shown(kept.out).values()]
    assert len(texts) == len(set(texts)) == 8


def test_the_mixture_of_a_list_is_told(tune, folder: Path) -> None:
    write_rows(folder / "other.jsonl", [{"question": f"say {n}", "answer": "red"} for n in range(4)])
    one = "{_component_: instruct, source: %s.jsonl, weight: %s, parse_special_tokens: false}"
    words = ["preview", "my.yaml", f"dataset=[{one % ('my', 1)}, {one % ('other', 3)}]"]
    said = tune(*words, "--all").out
    assert "mixes 5 examples, until the first is exhausted: dataset.0: 1 of 8 (20.0%, of the tokens " in said
    assert "mixes" not in tune(*words, "--rows", "2").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["preview"], "which config?"),
        (["preview", "my.yaml", "dataset.sourc=x"], "did you mean source?"),
        (["preview", "my.yaml", "dataset.source=none.jsonl"], "there is no file or folder none.jsonl"),
        (["preview", "my.yaml", "--recipe", "generate"], "dataset"),
        (["preview", "my.yaml", "model_checkpoint=nowhere"], "nowhere"),
        (["preview", "my.yaml", "--html", "my.jsonl"], "--force overwrites it"),
        (["preview", "my.yaml", "--html", "no/where.html"], "cannot be written"),
        (["preview", "my.yaml", "my.yaml"], "one config at a time"),
    ],
)
def test_what_cannot_be_used_is_answered(tune, folder: Path, words: list[str], said: str) -> None:
    outcome = tune(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err
    assert "Traceback" not in outcome.err


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_and_runs_nothing(tune, folder: Path) -> None:
    write_rows(
        folder / "my.jsonl", [{"question": "<script>x()</script>", "answer": "<img src=//a.b> & \x07"}]
    )
    outcome = tune("preview", "my.yaml", "--html", "page.html")
    assert outcome.code == 0
    page = Page((folder / "page.html").read_text())
    tags = (
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "code",
        "p",
        "pre",
        "div",
        "b",
        "span",
        "hr",
    )
    assert {tag for tag, _ in page.tags} <= {*tags}
    assert not any(
        name.startswith("on") or name in ("src", "href", "style") for _, given in page.tags for name in given
    )
    policy = next(given["content"] for _, given in page.tags if "http-equiv" in given)
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "Question: <script>x()</script>⏎\nAnswer: <img src=//a.b> & \\x07</s>" in page.text
    # its own page is written anew, here with a line for each token
    assert tune("preview", "my.yaml", "--html", "page.html", "--ids").code == 0
    page = Page((folder / "page.html").read_text())
    assert {tag for tag, _ in page.tags} <= {*tags}
    assert "place      id weight  text\n     0       1      -  <s>\n" in page.text
    (folder / "page.html").write_text("precious")
    assert tune("preview", "my.yaml", "--html", "page.html").code == 2
    assert (folder / "page.html").read_text() == "precious"
    assert tune("preview", "my.yaml", "--html", "page.html", "--force").code == 0
    assert "precious" not in (folder / "page.html").read_text()


def test_weights_are_shown(tune, folder: Path) -> None:
    tokenizer = from_checkpoint("bundled:tiny_llama")
    ids = tokenizer.encode("red blue", add_eos=False)
    example = {"tokens": ids, "labels": [-100, *ids[1:]], "weights": [0.0, 0.5, *[1.0] * (len(ids) - 2)]}
    tokens = preview_tokens(tokenizer, example)
    assert [token.weight for token in tokens[:3]] == [0.0, 0.5, 1.0]
    text = format_example(tokens)
    assert text.startswith("⟨<s>⟩⟦0.5|")
    assert "⟧⟦" in text


def test_the_middle_of_a_long_example_is_left_out() -> None:
    tokenizer = from_checkpoint("bundled:tiny_llama")
    ids = [tokenizer.bos_id] * 9000
    text = format_example(preview_tokens(tokenizer, {"tokens": ids, "labels": ids}))
    assert "\n... 5,000 tokens are not shown ...\n" in text
    assert len(text) < 40_000


def test_a_run_leaves_its_first_examples(tmp_path: Path) -> None:
    tokenizer = from_checkpoint("bundled:tiny_llama")
    ids = tokenizer.encode("red")
    checkpoints = Checkpoints(tmp_path, Mesh())
    dataset = [{"tokens": ids, "labels": [-100, *ids[1:]]}] * 9
    for _ in range(2):  # the second time as a resumed run does
        write_preview(dataset, tokenizer, checkpoints, num_examples=3)
    assert (tmp_path / "preview.txt").read_text().count("⟨<s>⟩⟦red⟨</s>⟩⟧") == 3
    (tmp_path / "preview.txt").write_text("mine")
    write_preview(dataset, tokenizer, checkpoints)
    assert (tmp_path / "preview.txt").read_text() == "mine"
