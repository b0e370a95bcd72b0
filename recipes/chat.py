"""Talk to a model: what a run has trained, a model from anywhere, or an adapter on its base.

    tune chat out/my_run
    tune chat checkpoints/Qwen3-0.6B temperature=0.7 system_prompt="Answer in one sentence."
    tune chat out/my_run < questions.txt > answers.txt

The model is loaded once. A run's is asked in the template it was trained in, with its system prompt, and sampled as is
saved with it. On a terminal lines are edited as in a shell (readline, which is Python's own: arrows, Ctrl-R, a history
that outlives the chat); from a pipe each line is a message, and only answers go to standard output.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from contextlib import closing
from typing import Any

import tune.config
from tune.checkpoints.run_folder import locate_trained
from tune.config import instantiate
from tune.data import get_prompt_template
from tune.errors import ConfigError, DataError, GenerationError, TuneError
from tune.generation import Chat, Sampling, load_model, load_tokenizer, saved_sampling, trained_template
from tune.generation.terminal import Terminal
from tune.recipes.params.chat import ChatParams
from tune.tokenizers import Message
from tune.utils import expand_path, get_device, get_dtype, get_logger

HELP = """\
/help            this
/system [TEXT]   set what the system says first, from the next answer on; without TEXT, show it
/reset           forget the conversation
/regen           answer the last question once more, drawn anew
/save FILE       add the conversation to FILE, as a line of JSON that can be trained on
/quit            end (also Ctrl-D)
A line that ends with \\ goes on in the next one; so does all between two lines of \"\"\".
Ctrl-C stops an answer."""
SAVED_ROW = b'{"messages": '


def open_chat(params: ChatParams) -> Chat:
    """Return the conversation with the model that is named, which has been loaded."""
    started = time.perf_counter()
    place: Any = params.checkpointer.kwargs
    found = locate_trained(place["checkpoint_dir"], place.get("adapter_checkpoint"))
    checkpointer = instantiate(
        params.checkpointer, checkpoint_dir=found.model, adapter_checkpoint=found.adapter
    )
    # The tokenizer first: it takes no time to find out that it is missing, or that the template is not for it.
    tokenizer = load_tokenizer(checkpointer, params.tokenizer)
    if params.prompt_template is not None:
        template: Any = get_prompt_template(params.prompt_template)
    else:
        template = trained_template(found.run, tokenizer)
        if template is None and found.run is None and tokenizer.chat_template is not None:
            template = get_prompt_template("chat")
    if template is None and (params.system_prompt or params.chat_template_kwargs):
        raise ConfigError(
            "system_prompt and chat_template_kwargs need a prompt_template: this model has none"
        )

    settings: dict[str, Any] = {"temperature": params.temperature or 0.0}
    if params.temperature is None:
        settings |= saved_sampling(checkpointer.find_model_dir())
    given = {"top_k": params.top_k, "top_p": params.top_p}
    settings |= {name: value for name, value in given.items() if value is not None}
    sampling = Sampling(**settings, repetition_penalty=params.repetition_penalty)
    device = get_device(params.device)
    # Half precision is what a GPU is built for; on most CPUs it is slower than fp32.
    dtype = get_dtype(params.dtype or ("fp32" if device.type == "cpu" else "bf16"), device)
    model = load_model(checkpointer, params.model, device, dtype)
    chat = Chat(
        model,
        tokenizer,
        template,
        system=params.system_prompt or "",
        variables=params.chat_template_kwargs,
        sampling=sampling,
        max_new_tokens=params.max_new_tokens,
        seed=random.SystemRandom().randrange(2**31) if params.seed is None else params.seed,
        stop=params.stop or (),
        show_reasoning=params.show_reasoning,
    )
    how = ", ".join(f"{name} {value:g}" for name, value in settings.items())
    written = "no template: texts are gone on from" if template is None else f"template {template.name}"
    get_logger().info(
        f"Loaded {sum(p.numel() for p in model.parameters()) / 1e6:,.1f}M parameters "
        f"({str(dtype).removeprefix('torch.')}, {device}) in {time.perf_counter() - started:.1f} s; {written}; {how}."
    )
    return chat


def answer(chat: Chat, terminal: Terminal, text: str | None) -> None:
    """Show the answer to a message, or another one to the last; the chat outlives what goes wrong with it."""
    started = time.perf_counter()
    num_pieces = 0
    try:
        with (
            terminal.interruptible(),
            closing(chat.ask_again() if text is None else chat.ask(text)) as pieces,
        ):
            for piece in pieces:
                if chat.num_left_out and not num_pieces:
                    terminal.note(f"({chat.num_left_out} older messages no longer fit and are left out)")
                num_pieces += 1
                terminal.write(piece)
    except KeyboardInterrupt:
        if not terminal.is_shown:
            raise
        terminal.write("\n")
        terminal.note("(stopped)")
        return
    except (GenerationError, DataError) as error:
        terminal.note(f"error: {error}")
        return
    terminal.write("\n")
    if not num_pieces and chat.messages[-1].reasoning_content:
        terminal.note(
            "(all of it was thought: show_reasoning=true shows it, a larger max_new_tokens leaves room)"
        )
    if terminal.is_shown:
        terminal.note(f"({time.perf_counter() - started:.1f} s)")


def obey(chat: Chat, terminal: Terminal, line: str) -> bool:
    """Do what a line that begins with / says; return whether the chat goes on."""
    command, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if command == "/quit":
        return False
    if command == "/help":
        terminal.note(HELP)
    elif command == "/reset":
        chat.reset()
        terminal.note("(forgotten)")
    elif command == "/system":
        chat.system = rest or chat.system
        terminal.note(f"(system: {chat.system or 'as the template has it'})")
    elif command == "/regen":
        answer(chat, terminal, None)
    elif command == "/save":
        terminal.note(save(chat, rest))
    else:
        terminal.note(
            f"there is no {command}; /help lists what there is. A message that begins so: put a space first"
        )
    return True


def save(chat: Chat, name: str) -> str:
    """Add the conversation to a file; return what to say of it."""
    if not name or not chat.messages:
        return "/save needs a file's name" if not name else "nothing has been said yet"
    system = [Message("system", chat.system)] if chat.system else []
    rows = [message.to_dict() for message in [*system, *chat.messages]]
    try:
        file = expand_path(name)
        if file.is_file():
            with file.open("rb") as stream:
                if stream.read(len(SAVED_ROW)) not in (b"", SAVED_ROW):
                    return f"{file} holds something else than conversations, so it is left as it is"
        with file.open("a", encoding="utf-8") as stream_out:
            stream_out.write(json.dumps({"messages": rows}, ensure_ascii=False) + "\n")
    except OSError as error:
        return f"{name} cannot be written: {error.strerror}"
    except TuneError as error:  # no path at all
        return str(error)
    return f"(added to {file})"


def run(params: ChatParams) -> None:
    """Load the model, then answer until there is nothing more to be said."""
    get_logger(params.log_level)
    terminal = Terminal()
    chat = open_chat(params)
    if terminal.is_shown:
        terminal.note("/help lists what else can be typed; Ctrl-D ends the chat.")
    try:
        with terminal.outliving_interrupts():
            for message in terminal.messages():
                if message.startswith("/"):
                    if not obey(chat, terminal, message):
                        break
                elif message.strip():
                    answer(chat, terminal, message)
    finally:
        terminal.keep_history()
        chat.close()


@tune.config.parse
def recipe_main(params: ChatParams) -> int:
    """Talk to a model."""
    try:
        run(params)
    except BrokenPipeError:
        # Whoever was reading has seen enough (`| head`); Python would complain when it flushes once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as the shell reports it for other commands
    return 0


if __name__ == "__main__":
    sys.exit(recipe_main())
