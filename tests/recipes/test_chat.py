"""`tune chat`: a conversation through a pipe, on a terminal, and with what a run has trained."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import warm_python
from tune.checkpoints import save_model
from tune.errors import DataError, GenerationError
from tune.generation import Chat, Sampling, Session, saved_sampling
from tune.generation import generate as generate_tokens
from tune.generation.terminal import Terminal
from tune.models.llama2 import llama2
from tune.recipes.full_finetune import recipe_main as fine_tune
from tune.recipes.generate import recipe_main as generate
from tune.recipes.params.generate import GenerateParams
from tune.tokenizers import from_checkpoint

TEMPLATE = """{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"""
GREEDY = Sampling()


def make_model(vocab_size: int, max_seq_len: int = 200) -> Any:
    torch.manual_seed(5)
    model = llama2(
        vocab_size=vocab_size,
        num_layers=2,
        num_heads=3,
        embed_dim=24,
        max_seq_len=max_seq_len,
        intermediate_dim=44,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@pytest.fixture
def tokenizer(chat_folder: Callable[..., Path]) -> Any:
    return from_checkpoint(chat_folder(TEMPLATE))


def chat_with(tokenizer: Any, **settings: Any) -> Chat:
    model = make_model(tokenizer.vocab_size, settings.pop("max_seq_len", 200))
    given = {"sampling": GREEDY, "max_new_tokens": 9, "seed": 0} | settings
    return Chat(model, tokenizer, tokenizer.chat_template, **given)


# ---- the session and its cache


def test_each_turn_is_what_it_would_be_alone() -> None:
    model = make_model(61)
    session, text, answers = Session(model), [1, 7, 9, 4], []
    for turn in range(4):
        answers.append(list(session.stream(text, 6, GREEDY)))
        # The last token of the answer was chosen and not read; with two more that makes three.
        assert session.num_read == (4 if turn == 0 else 3)
        text = [*text, *answers[-1], 3 + turn, 5]
    session.close()
    text = [1, 7, 9, 4]
    for turn, answer in enumerate(answers):
        assert answer == generate_tokens(model, text, max_new_tokens=6)
        text = [*text, *answer, 3 + turn, 5]


def test_a_text_that_differs_early_and_one_left_halfway() -> None:
    model = make_model(61)
    session = Session(model)
    list(session.stream([1, 7, 9, 4, 11, 12], 8, GREEDY))
    pieces = session.stream([1, 7, 30, 31], 8, GREEDY)
    first = [next(pieces), next(pieces)]
    pieces.close()
    for text in ([1, 7, 30, 31, *first], [1, 7, 30], [2, 3], [1, 7, 9, 4, 11, 12]):
        answer = list(session.stream(text, 8, GREEDY))
        assert session.num_read >= 1
        assert answer == generate_alone(text, 8)
    session.close()
    assert not model.caches_are_enabled()


def generate_alone(text: list[int], number: int) -> list[int]:
    return generate_tokens(make_model(61), text, max_new_tokens=number)


def test_the_cache_grows_with_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune.generation.session._SLOTS", 16)
    session, text = Session(make_model(61)), [1, 7, 9]
    for turn in range(6):
        answer = list(session.stream(text, 7, GREEDY))
        assert answer == generate_alone(text, 7)
        text = [*text, *answer, 3 + turn]


def test_a_repeated_token_is_made_less_likely() -> None:
    model = make_model(61)
    plain = generate_tokens(model, [1, 7, 9], max_new_tokens=40)
    session = Session(model)
    penalised = list(session.stream([1, 7, 9], 40, Sampling(repetition_penalty=1e3)))
    assert len(set(penalised)) > len(set(plain))
    assert not set(penalised[:20]) & {1, 7, 9}
    session.close()


# ---- the conversation


def test_the_conversation_is_kept_and_written_as_trained(tokenizer: Any) -> None:
    chat = chat_with(tokenizer, system="S")
    first = "".join(chat.ask("walk"))
    "".join(chat.ask("seven"))
    said = [("user", "walk"), ("assistant", first), ("user", "seven")]
    messages = [{"role": "system", "content": "S"}, *({"role": role, "content": text} for role, text in said)]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    alone = generate_tokens(
        make_model(tokenizer.vocab_size), ids, max_new_tokens=9, stop_ids=tokenizer.stop_ids
    )
    assert chat.messages[-1].content == tokenizer.decode(alone)
    assert chat.num_read < len(ids)  # the first turn was known


def test_older_turns_make_room(tokenizer: Any) -> None:
    chat = chat_with(tokenizer, max_seq_len=90)
    left_out = []
    for _ in range(6):
        "".join(chat.ask("walk the green river"))
        left_out.append(chat.num_left_out)
    assert left_out[0] == 0
    assert left_out[-1] > 0
    assert left_out == sorted(left_out)
    assert len(chat.messages) == 12  # nothing is forgotten, it is only not read
    with pytest.raises(GenerationError, match="Ask a shorter one"):
        "".join(chat.ask("walk " * 200))
    assert len(chat.messages) == 12


def test_another_answer_and_a_stopped_one(tokenizer: Any) -> None:
    chat = chat_with(tokenizer, sampling=Sampling(temperature=1.5), max_new_tokens=30)
    with pytest.raises(GenerationError, match="nothing has been asked"):
        "".join(chat.ask_again())
    answers = {"".join(chat.ask("walk"))} | {"".join(chat.ask_again()) for _ in range(3)}
    assert len(answers) > 1
    assert [message.role for message in chat.messages] == ["user", "assistant"]
    pieces = chat.ask("seven")
    begun = next(pieces)
    pieces.close()
    assert chat.messages[-1].content == begun
    chat.reset()
    assert chat.messages == []


def test_a_question_that_the_template_refuses_is_forgotten(chat_folder: Callable[..., Path]) -> None:
    refusing = from_checkpoint(chat_folder("{{ raise_exception('closed today') }}"))
    chat = chat_with(refusing)
    with pytest.raises(DataError, match="closed today"):
        "".join(chat.ask("walk"))
    assert chat.messages == []


@pytest.mark.parametrize(
    ("held", "found"),
    [
        ({}, {}),
        ({"temperature": 0.7}, {}),  # without do_sample nothing is sampled
        ({"do_sample": True}, {"temperature": 1.0}),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
            {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
        ),
        ({"do_sample": True, "top_k": 0, "top_p": "x"}, {"temperature": 1.0}),
        ({"do_sample": True, "top_p": 7}, {}),
    ],
)
def test_sampling_as_saved(tmp_path: Path, held: dict[str, Any], found: dict[str, Any]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(held))
    assert saved_sampling(tmp_path) == found


# ---- through the command line


@pytest.fixture
def saved(tokenizer: Any, tmp_path: Path) -> Path:
    save_model(make_model(tokenizer.vocab_size, 4000), tmp_path / "saved", tokenizer=tokenizer)
    return tmp_path / "saved"


def start(folder: Path, *settings: str, **how: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tune", "chat", str(folder), "device=cpu", "max_new_tokens=6", *settings]
    return warm_python.Popen(command, env={**os.environ, "XDG_STATE_HOME": str(folder / "state")}, **how)


def test_messages_through_a_pipe(saved: Path, tmp_path: Path) -> None:
    file = tmp_path / "said.jsonl"
    lines = ["walk", "", '"""', "two", "lines", '"""', "/regen", "/nothing", f"/save {file}", "/quit", "x"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    chat = start(saved, **pipes)
    out, err = chat.communicate("\n".join(lines).encode(), timeout=120)
    assert chat.returncode == 0, err
    assert b"there is no /nothing" in err
    row = json.loads(file.read_text())
    assert [message["content"] for message in row["messages"]][::2] == ["walk", "two\nlines"]
    answers = [message["content"] for message in row["messages"]][1::2]
    assert out.decode() == "".join(f"{answer}\n" for answer in (answers[0], answers[1], answers[1]))


@pytest.mark.parametrize(("said", "heard"), [('"""\ntwo\nlines', "two\nlines"), ("two \\", "two ")])
def test_the_end_of_a_pipe_ends_a_message(said: str, heard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said.encode())))
    assert list(Terminal().messages()) == [heard]


class Screen:
    """The other end of a terminal: types, and waits for what is to be seen."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self.text = descriptor, ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def wait_for(self, text: str, seconds: float = 100.0) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self._descriptor], [], [], 1.0)[0]:
                self.text += os.read(self._descriptor, 4096).decode(errors="replace")
        self.text = self.text.partition(text)[2]

    def interrupt(self, chat: subprocess.Popen[bytes], *until: str) -> str:
        """Press Ctrl-C until one of ``until`` is seen: one that comes while a key is being read waits for the next."""
        for _ in range(100):
            chat.send_signal(signal.SIGINT)
            again = time.monotonic() + 1.0
            while time.monotonic() < again:
                if select.select([self._descriptor], [], [], 0.1)[0]:
                    self.text += os.read(self._descriptor, 4096).decode(errors="replace")
                for text in until:
                    if text in self.text:
                        self.wait_for(text)
                        return text
        raise AssertionError(self.text)


@pytest.fixture
def terminal(saved: Path) -> Iterator[tuple[Screen, subprocess.Popen[bytes]]]:
    ours, theirs = pty.openpty()
    ends = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    chat = start(saved, "max_new_tokens=3000", **ends)
    os.close(theirs)
    yield Screen(ours), chat
    chat.kill()
    chat.wait()
    os.close(ours)


def test_a_conversation_on_a_terminal(terminal: tuple[Screen, subprocess.Popen[bytes]], saved: Path) -> None:
    screen, chat = terminal
    screen.wait_for("/help lists")
    screen.wait_for("> ")
    screen.type("/help\n")
    screen.wait_for("/regen")
    screen.wait_for("> ")
    screen.type("walk \\\n")  # goes on
    screen.wait_for(". ")
    for _ in range(30):  # a busy machine may press Ctrl-C before Enter is read, or after the answer has ended
        screen.type("seven\n")
        screen.wait_for("seven")  # as typed
        screen.wait_for("\n")  # and read; what comes now is the answer
        if screen.interrupt(chat, "(stopped)", "Ctrl-D ends the chat") == "(stopped)":
            break  # the answer was stopped, and not the chat
    else:
        raise AssertionError(screen.text)
    screen.wait_for("> ")
    screen.type("half a line")
    screen.wait_for("half a line")
    screen.interrupt(chat, "Ctrl-D ends the chat")
    screen.type("/quit\n")
    assert chat.wait(100) == 0
    assert "/help" in (saved / "state" / "tune" / "chat_history").read_text()


# ---- what a run has trained


def test_a_run_is_asked_as_it_was_trained(
    make_params: Callable[..., Any], data_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    dataset = {"_component_": "tune.datasets.instruct_dataset", "source": str(data_file)}
    params = make_params(dataset=dataset | {"prompt_template": "question_answer"}, epochs=1)
    assert fine_tune(params) == 0
    folder = Path(params.output_dir)
    asked = {"prompt": "river", "device": "cpu", "max_new_tokens": 7}
    capsys.readouterr()
    outputs = {}
    for name, settings in {
        "trained": {
            "model_checkpoint": str(folder / "latest" / "model"),
            "prompt_template": "question_answer",
        },
        "run": {"model_checkpoint": str(folder)},
        "step": {"model_checkpoint": str(folder / "latest")},
        "plain": {"model_checkpoint": str(folder), "prompt_template": "plain"},
    }.items():
        assert generate(GenerateParams(**asked, **settings)) == 0
        outputs[name] = capsys.readouterr().out
    assert outputs["run"] == outputs["step"] == outputs["trained"] != outputs["plain"]
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["data"]["template"] == "question_answer"
    for name in ("report.html", "loss_curve.png", "console.log"):
        assert (folder / name).stat().st_size > 0
