"""Continue prompts with a model.

    tune run generate model_checkpoint=DIR prompt="Once upon a time" max_new_tokens=64
    tune run generate model_checkpoint=DIR prompt="Why is the sky blue?" prompt_template=chat
    tune run generate OUTPUT_DIR prompt_file=questions.jsonl
    tune run generate model_checkpoint=BASE adapter_checkpoint=OUTPUT_DIR/latest prompt="Once upon a time"
    echo "Once upon a time" | tune run generate model_checkpoint=DIR prompt=- temperature=0.8 seed=1

DIR is a folder in Hugging Face or Meta layout, or a saved step of a run; model and tokenizer are found in it. The
completion alone goes to standard output, as it is written; everything else goes to standard error.
"""

from __future__ import annotations

import io
import json
import os
import random
import sys
import time
from typing import IO, Any

import tune.config
from tune.checkpoints.run_folder import locate_trained
from tune.config import instantiate
from tune.data import get_prompt_template
from tune.errors import ConfigError, GenerationError
from tune.generation import (
    Prompt,
    Question,
    TextStream,
    ask,
    load_model,
    load_tokenizer,
    read_prompts,
    stream_texts,
    trained_template,
)
from tune.recipes.params.generate import GenerateParams
from tune.utils import expand_path, get_device, get_dtype, get_logger
from tune.utils.escape import escape_lines

STOP_REASONS = {
    "stop_id": "the model ended the text",
    "stop_string": "a stop text came",
    "max_new_tokens": "max_new_tokens was reached",
    "max_seq_len": "the model's max_seq_len was reached",
}
ROW_START = b'{"prompt": '  # how each line of output_file begins


def load(params: GenerateParams, prompts: list[Prompt]) -> tuple[Any, Any, list[Question]]:
    """Return the model with its weights, its tokenizer, and the prompts as the model reads them."""
    template = None if params.prompt_template is None else get_prompt_template(params.prompt_template)
    place: Any = params.checkpointer.kwargs
    found = locate_trained(place["checkpoint_dir"], place.get("adapter_checkpoint"))
    system, variables = params.system_prompt or "", params.chat_template_kwargs
    if template is None and found.run is None and (system or variables):
        name = "system_prompt" if system else "chat_template_kwargs"
        raise ConfigError(
            f"{name} needs a prompt_template, such as chat: no run is known that trained this model"
        )
    checkpointer = instantiate(
        params.checkpointer, checkpoint_dir=found.model, adapter_checkpoint=found.adapter
    )
    # The tokenizer first: it takes no time to find out that it is missing, or that the template is not for it.
    tokenizer = load_tokenizer(checkpointer, params.tokenizer)
    if template is None:
        template = trained_template(found.run, tokenizer, only_turns=found.is_files)
        if template is not None:
            get_logger().info(
                f"Asked as it was trained by {found.run}; prompt_template=plain takes the text as it is."
            )
    questions = [
        ask(tokenizer, template, prompt.text, system=system, variables=variables, before=prompt.before)
        for prompt in prompts
    ]
    device = get_device(params.device)
    # Half precision is what a GPU is built for; on most CPUs it is slower than fp32.
    dtype = get_dtype(params.dtype or ("fp32" if device.type == "cpu" else "bf16"), device)
    return load_model(checkpointer, params.model, device, dtype), tokenizer, questions


def collect_prompts(params: GenerateParams) -> list[Prompt]:
    """Return the prompts: the one given, standard input for "-", or those of the file."""
    if params.prompt_file is not None:
        return read_prompts(params.prompt_file)
    if params.prompt != "-":
        return [Prompt(params.prompt or "")]
    if sys.stdin.isatty():
        get_logger().info("Type the prompt; Ctrl-D at the start of a line ends it.")
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GenerationError(
            f"standard input is not UTF-8: {error.reason} at byte {error.start}."
        ) from error
    # echo ends its text with a line feed that nobody means to be part of the prompt.
    return [Prompt(text.removesuffix("\n").removesuffix("\r"))]


def write(piece: str) -> None:
    """Show a piece of text on standard output now; a terminal is spared what a model may say to it, a file is not."""
    sys.stdout.write(escape_lines(piece) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def open_streams(
    params: GenerateParams, model: Any, tokenizer: Any, questions: list[Question]
) -> list[TextStream]:
    """Return one stream per question; nothing is generated yet, but one that cannot be answered raises now."""
    seed = params.seed
    if seed is None and params.temperature > 0:
        seed = random.SystemRandom().randrange(2**31)
        get_logger().info(f"seed {seed} was drawn; seed={seed} gives the same again.")
    first = questions[0]  # all are written in one template
    return stream_texts(
        model,
        tokenizer,
        [question.prompt for question in questions],
        max_new_tokens=params.max_new_tokens,
        batch_size=params.batch_size,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        seed=seed,  # and one more for each further prompt, so that no answer depends on those before it
        stop=[*(params.stop or ()), *first.stop],
        stop_ids=first.stop_ids,
        ignore_eos=params.ignore_eos,
        show_reasoning=params.show_reasoning,
        use_cache=params.enable_kv_cache,
        compile=params.compile,
        repetition_penalty=params.repetition_penalty,
    )


def show(stream: TextStream, alone: bool) -> str:
    """Write a continuation to standard output piece by piece as it is generated, and return it."""
    started = time.perf_counter()
    first = 0.0
    pieces: list[str] = []
    try:
        with stream:
            for piece in stream:
                first = first or time.perf_counter() - started
                pieces.append(piece)
                write(piece)
    finally:
        write("\n")  # also after Ctrl-C: the shell's prompt belongs on a line of its own
    seconds = time.perf_counter() - started
    ended = f"{count_tokens(stream.num_tokens)}; {STOP_REASONS[stream.stop_reason or 'stop_id']}."
    if alone:
        speed = f"in {seconds:.2f} s"
        if stream.num_tokens > 1:
            # Reading the prompt is another kind of work than writing the answer: the rate leaves it out.
            rate = (stream.num_tokens - 1) / (seconds - first)
            speed += f" ({rate:.1f} tokens/s, first text after {first:.2f} s)"
        ended = ended.replace(";", f" {speed};", 1)
    if not pieces and stream.reasoning:
        ended += " All of it was thought: show_reasoning=true shows it, a larger max_new_tokens leaves room to answer."
    get_logger().info(ended)
    return "".join(pieces)


def count_tokens(number: int) -> str:
    """Return a number of tokens in words."""
    return f"{number:,} token{'s' * (number != 1)}"


def run(params: GenerateParams) -> None:
    """Answer every prompt, in order."""
    log = get_logger(params.log_level)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character shows a question mark; it must not end the run.
        sys.stdout.reconfigure(errors="replace")
    if params.temperature == 0 and (params.top_k or params.top_p):
        log.warning("warning: top_k and top_p do nothing at temperature 0; set temperature=1 to sample.")
    # What is quickly seen to be wrong comes before gigabytes of weights are read.
    prompts = collect_prompts(params)
    output = open_output(params)

    started = time.perf_counter()
    model, tokenizer, questions = load(params, prompts)
    weight = model.output_weight
    log.info(
        f"Loaded {sum(p.numel() for p in model.parameters()) / 1e6:,.1f}M parameters "
        f"({str(weight.dtype).removeprefix('torch.')}, {weight.device}) in {time.perf_counter() - started:.1f} s."
    )
    streams = open_streams(params, model, tokenizer, questions)

    if output is not None and output.seekable():
        output.truncate(0)  # only now is there something to replace older answers with
    started = time.perf_counter()
    for index, (prompt, stream) in enumerate(zip(prompts, streams, strict=True), 1):
        if len(prompts) > 1:
            headline = prompt.text.strip().partition("\n")[0][:72]
            write(f"=== {index} of {len(prompts)}: {headline}\n")
        completion = show(stream, alone=len(prompts) == 1)
        if output is not None:
            row: dict[str, Any] = {
                "prompt": prompt.text,
                "completion": completion,
                "num_tokens": stream.num_tokens,
                "stop_reason": stream.stop_reason,
                **({"reasoning": stream.reasoning} if stream.reasoning else {}),
            }
            if prompt.source:
                row["source"] = dict(prompt.source)
            output.write(json.dumps(row, ensure_ascii=False) + "\n")
            output.flush()
    if len(prompts) > 1:
        total, seconds = sum(stream.num_tokens for stream in streams), time.perf_counter() - started
        log.info(
            f"{len(prompts):,} answers of {count_tokens(total)} in {seconds:.1f} s ({total / seconds:.1f} tokens/s, "
            f"{min(params.batch_size, len(prompts))} prompts at a time)."
        )
    if output is not None:
        output.close()
        log.info(f"Answers: {output.name}")


def open_output(params: GenerateParams) -> IO[str] | None:
    """Return the file for the answers, still with what it held; None where none is wanted.

    Answers to a file of prompts go beside it, where nothing else is said and that can be written.
    """
    if params.output_file is None and params.prompt_file is None:
        return None
    prompts = expand_path(params.prompt_file) if params.prompt_file is not None else None
    if params.output_file is not None:
        file = expand_path(params.output_file)
    else:
        assert prompts is not None, "there is one of the two"
        file = prompts.with_name(f"{prompts.name}.answers.jsonl")
    if prompts is not None and file.resolve() == prompts.resolve():
        raise GenerationError(f"output_file is {file}, the prompt_file itself: it would be overwritten.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            with file.open("rb") as stream:
                held = stream.read(len(ROW_START))
            if held not in (b"", ROW_START):
                raise GenerationError(f"output_file {file} holds no answers, so it is left as it is.")
        return file.open("a", encoding="utf-8")
    except OSError as error:
        if params.output_file is None:
            get_logger().warning(f"{file} cannot be written: {error.strerror}. Answers are only shown.")
            return None
        raise GenerationError(f"output_file {file} cannot be written: {error.strerror}.") from error


@tune.config.parse
def recipe_main(params: GenerateParams) -> int:
    """Continue prompts with a model; the completion goes to standard output."""
    try:
        run(params)
    except KeyboardInterrupt:
        get_logger().warning("Interrupted.")
        return 130
    except BrokenPipeError:
        # Whoever was reading has seen enough (`| head`); Python would complain when it flushes once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as the shell reports it for other commands
    except OSError as error:
        raise GenerationError(f"the answer cannot be written: {error}.") from error
    return 0


if __name__ == "__main__":
    sys.exit(recipe_main())
