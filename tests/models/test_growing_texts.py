"""Texts that grow beyond every original length while they are generated: each token is the reference's."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import LLAMA3_ROPE, LONG_PHI, UNPADDED, YARN, Case, case, longrope, rope
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Ministral3Config,
    Olmo3Config,
    Phi3Config,
    PreTrainedModel,
)

import tune.models
from tune.generation import generate, generate_batch
from tune.modules import TransformerDecoder

LENGTHS = (5, 17, 11)  # of prompts
NUM_NEW = 60
GROWING: dict[str, Case] = {
    "longrope": case(Phi3Config, **LONG_PHI, rope_parameters=longrope(4), sliding_window=262_144),
    "longrope-window": case(Phi3Config, **LONG_PHI, rope_parameters=longrope(4), sliding_window=7),
    "olmo3-longrope": case(
        Olmo3Config,
        **UNPADDED,
        max_position_embeddings=90,
        num_hidden_layers=2,
        layer_types=["full_attention", "sliding_attention"],
        sliding_window=7,
        rope_parameters={
            "full_attention": {**longrope(4), "original_max_position_embeddings": 24},
            "sliding_attention": rope("default", 300.0),
        },
    ),
    "dynamic": case(
        LlamaConfig, max_position_embeddings=23, rope_parameters=rope("dynamic", 500.0, factor=4.0)
    ),
    "yarn": case(LlamaConfig, max_position_embeddings=90, rope_parameters=YARN),
    "olmo3": case(
        Olmo3Config,
        **UNPADDED,
        max_position_embeddings=270,
        num_hidden_layers=4,
        sliding_window=7,
        rope_parameters={"full_attention": YARN, "sliding_attention": rope("default", 300.0)},
    ),
    "ministral3": case(
        Ministral3Config,
        **UNPADDED,
        max_position_embeddings=270,
        head_dim=10,
        rope_parameters={**YARN, "llama_4_scaling_beta": 0.4},
    ),
    "llama3": case(LlamaConfig, max_position_embeddings=90, rope_parameters=LLAMA3_ROPE),
}


@pytest.fixture(params=GROWING, scope="module")
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, TransformerDecoder]:
    torch.manual_seed(7)
    config: Any = GROWING[request.param]()
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    directory: Path = tmp_path_factory.mktemp("reference")
    reference.save_pretrained(directory)
    return reference, tune.models.from_checkpoint(directory)


def prompt_tokens(length: int) -> list[int]:
    return torch.randint(0, 61, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def their_answers(
    reference: PreTrainedModel, prompts: list[list[int]], num_new: int = NUM_NEW
) -> list[list[int]]:
    """The reference's greedy answers, from prompts padded on the left, by a model that has read nothing before."""
    fresh = deepcopy(reference)
    fresh.generation_config.eos_token_id = None
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    shown = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    answers = fresh.generate(
        padded, attention_mask=shown, max_new_tokens=num_new, do_sample=False, pad_token_id=0
    )
    return answers[:, longest:].tolist()


def test_an_answer_goes_on_as_the_reference_s(pair: tuple[PreTrainedModel, TransformerDecoder]) -> None:
    reference, ours = pair
    prompt = prompt_tokens(9)
    num_new = 200 if ours.config.max_seq_len > 200 else NUM_NEW
    answer = generate(ours, prompt, max_new_tokens=num_new)
    assert [answer] == their_answers(reference, [prompt], num_new)
    if not follows_length_of_each_token(ours) and num_new == NUM_NEW:
        assert generate(ours, prompt, max_new_tokens=num_new, use_cache=False) == answer
    assert len(set(answer)) > 3


def test_rows_of_other_lengths_go_on_as_the_reference_s(
    pair: tuple[PreTrainedModel, TransformerDecoder],
) -> None:
    reference, ours = pair
    prompts = [prompt_tokens(length) for length in LENGTHS]
    assert generate_batch(ours, prompts, max_new_tokens=NUM_NEW) == their_answers(reference, prompts)


def test_positions_of_packed_texts_equal_the_reference_s(
    pair: tuple[PreTrainedModel, TransformerDecoder],
) -> None:
    reference, ours = pair
    for lengths in ((11, 12, 7), (31, 3, 40), (3, 90)):
        tokens = torch.tensor([prompt_tokens(sum(lengths))])
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        block_diagonal = torch.block_diag(*(torch.ones(length, length).tril() for length in lengths))
        additive = torch.zeros(1, 1, sum(lengths), sum(lengths)).masked_fill(
            block_diagonal == 0, torch.finfo(torch.float32).min
        )
        if ours.config.sliding_layers:
            continue  # the reference takes a mask in place of its windows
        with torch.no_grad():
            theirs = deepcopy(reference)(tokens, position_ids=positions, attention_mask=additive).logits
            torch.testing.assert_close(ours(tokens, input_pos=positions), theirs, rtol=1e-4, atol=1e-4)


def follows_length_of_each_token(model: TransformerDecoder) -> bool:
    """Whether keys that are kept were turned by another length than a text without caches is."""
    scaling = model.config.rope_scaling
    return scaling is not None and scaling.follows_length and scaling.switch_len is None
