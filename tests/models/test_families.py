"""Every family against transformers' implementation, on small random weights of awkward shapes.

Every test here runs on every case of the table in `cases.py`.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from cases import CASES, stir
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

import tune.models
from tune.checkpoints import save_model
from tune.errors import CheckpointError
from tune.generation import generate_batch
from tune.modules import TransformerDecoder
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum

# fp32 sums in another order; logits here have a deviation of about 1.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}
DOCUMENTS = (11, 3, 19, 4)  # lengths, one beyond every window and original length of the cases


class Pair(NamedTuple):
    """The reference, our model with its weights, and the directory between them."""

    reference: PreTrainedModel
    ours: TransformerDecoder
    directory: Path


@pytest.fixture(params=CASES, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.manual_seed(5)
    config = CASES[request.param]()
    # Eager attention: the other kernels of the reference leave soft caps out.
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    stir(reference)
    directory = tmp_path_factory.mktemp("reference")
    reference.save_pretrained(directory)
    return Pair(reference, tune.models.from_checkpoint(directory), directory)


def common_part(content: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What `content` says of the names in `other`, entry by entry where these are nested."""
    return {
        name: common_part(content[name], value) if isinstance(value, dict) else content[name]
        for name, value in other.items()
    }


def tokens_for(pair: Pair, b: int, s: int) -> Tensor:
    vocab_size = pair.ours.config.vocab_size
    return torch.randint(0, vocab_size, (b, s), generator=torch.Generator().manual_seed(b * s))


def test_the_model_is_what_the_case_says(pair: Pair) -> None:
    num_theirs = sum(parameter.numel() for parameter in pair.reference.parameters())
    assert sum(parameter.numel() for parameter in pair.ours.parameters()) == num_theirs
    assert pair.ours.config.num_parameters() == num_theirs


def test_logits_equal_the_reference(pair: Pair) -> None:
    tokens = tokens_for(pair, 3, 23)
    with torch.no_grad():
        logits = pair.ours(tokens)
        torch.testing.assert_close(logits, pair.reference(tokens).logits, **TOLERANCE)
    assert logits.std() > 0.1


def test_all_gradients_equal_the_reference(pair: Pair, tmp_path: Path) -> None:
    tokens, labels = tokens_for(pair, 3, 23), tokens_for(pair, 3, 23).roll(-1, 1)
    labels[1, 9:] = -100  # a row padded on the right
    pair.reference.zero_grad()
    pair.ours.zero_grad()
    logits = pair.reference(tokens).logits.flatten(0, 1)
    F.cross_entropy(logits, labels.flatten(), reduction="sum").backward()
    loss_sum(LinearCrossEntropyLoss(), pair.ours, tokens, labels).backward()
    # Gradients take the way of the weights, through files, so that both have one name for everything.
    with torch.no_grad():
        twin = type(pair.reference)(pair.reference.config)
        for mine, parameter in zip(twin.parameters(), pair.reference.parameters(), strict=True):
            mine.copy_(parameter.grad)
    twin.save_pretrained(tmp_path)
    expected = dict(tune.models.from_checkpoint(tmp_path).named_parameters())
    for name, parameter in pair.ours.named_parameters():
        assert parameter.grad is not None, name
        # The reference's gradient of how fast a state forgets is a difference of large sums, a hundred times as far
        # from the one in fp64 as ours (tests/modules/test_gated_delta_rule.py).
        atol = 3e-4 if name.endswith(("attn.a_log", "attn.dt_bias", "attn.in_proj_a.weight")) else 5e-5
        torch.testing.assert_close(
            parameter.grad, expected[name].data, rtol=2e-4, atol=atol, msg=partial("{}: {}".format, name)
        )


def test_right_padding_needs_no_mask(pair: Pair) -> None:
    tokens, lengths = tokens_for(pair, 3, 21), (21, 4, 13)
    kept = torch.arange(21) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        ours = pair.ours(tokens.where(kept, 0))
        theirs = pair.reference(tokens, attention_mask=kept.long()).logits
    torch.testing.assert_close(ours[kept], theirs[kept], **TOLERANCE)


def test_packed_documents_equal_each_alone(pair: Pair) -> None:
    tokens = tokens_for(pair, 1, sum(DOCUMENTS))
    positions = torch.cat([torch.arange(length) for length in DOCUMENTS])[None]
    with torch.no_grad():
        ours = pair.ours(tokens, input_pos=positions)
        theirs = [pair.reference(document).logits for document in tokens.split(DOCUMENTS, 1)]
    torch.testing.assert_close(ours, torch.cat(theirs, 1), **TOLERANCE)


@pytest.mark.parametrize("offset", [30, 3000])
def test_far_positions_equal_the_reference(pair: Pair, offset: int) -> None:
    tokens = tokens_for(pair, 2, 23)
    positions = (torch.arange(23) + offset).expand(2, -1)
    with torch.no_grad():
        ours = pair.ours(tokens, input_pos=positions)
        theirs = pair.reference(tokens, position_ids=positions).logits
    # fp32 angles of some thousand radians carry an error of about 2e-4.
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5 if offset < 100 else 2e-3)


def test_decoding_with_caches_equals_the_full_forward(pair: Pair) -> None:
    tokens = tokens_for(pair, 2, 29)
    pair.ours.setup_caches(2, 29)
    try:
        with torch.no_grad():
            pieces = [pair.ours(part) for part in tokens.split((9, 5, *(15 * [1])), 1)]
    finally:
        pair.ours.delete_caches()
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(pieces, 1), pair.ours(tokens), **TOLERANCE)


def test_rows_of_different_lengths_go_on_as_the_reference_does(pair: Pair) -> None:
    if pair.ours.config.max_text_len < 31:
        pytest.skip("a case for no text of this length")
    if pair.ours.config.conv is not None and pair.ours.config.conv.bias:
        pytest.skip("the reference's convolutions see the bias of pads on the left")
    prompts = [tokens_for(pair, 1, length)[0].tolist() for length in (5, 17, 11)]
    ours = generate_batch(pair.ours, prompts, max_new_tokens=14)
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    shown = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    pair.reference.generation_config.eos_token_id = None
    theirs = pair.reference.generate(
        padded, attention_mask=shown, max_new_tokens=14, do_sample=False, pad_token_id=0
    )
    assert ours == theirs[:, longest:].tolist()


def test_any_mask_equals_the_reference(pair: Pair) -> None:
    if pair.ours.config.sliding_layers:
        pytest.skip("the reference takes a mask in place of its windows, we take it beside them")
    if pair.ours.config.state_layers:
        pytest.skip("a state cannot leave out single tokens, and the reference does not try")
    b, s = 2, 19
    tokens = tokens_for(pair, b, s)
    mask = (torch.rand(b, s, s, generator=torch.Generator().manual_seed(2)) < 0.5) | torch.eye(s).bool()
    mask &= torch.ones(s, s).tril().bool()
    additive = torch.zeros(b, 1, s, s).masked_fill(~mask[:, None], torch.finfo(torch.float32).min)
    with torch.no_grad():
        ours = pair.ours(tokens, mask=mask)
        theirs = pair.reference(tokens, attention_mask=additive).logits
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_further_off_than_the_reference(pair: Pair, dtype: torch.dtype) -> None:
    tokens = tokens_for(pair, 3, 23)
    half = tune.models.from_checkpoint(pair.directory, dtype=dtype)
    reference = type(pair.reference).from_pretrained(pair.directory, dtype=dtype, attn_implementation="eager")
    with torch.no_grad():
        exact = pair.reference(tokens).logits
        ours, theirs = half(tokens).float(), reference.eval()(tokens).logits.float()
    our_errors, their_errors = ((found - exact).norm(dim=-1) for found in (ours, theirs))  # [b, s]
    if pair.ours.config.moe is None:
        assert our_errors.norm() <= 1.25 * their_errors.norm()
    else:  # rounding sends a token that stands between two experts to the other one
        assert our_errors.median() <= 1.25 * their_errors.median()


@pytest.mark.parametrize("max_shard_bytes", [2**30, 15_000])
def test_a_saved_model_is_the_reference_again(pair: Pair, tmp_path: Path, max_shard_bytes: int) -> None:
    save_model(pair.ours, tmp_path, max_shard_bytes=max_shard_bytes)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 2) == (max_shard_bytes < 2**30)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert type(again) is type(pair.reference)
    tokens = tokens_for(pair, 2, 23)
    held = again.state_dict()
    assert all(torch.equal(held[name], weight) for name, weight in pair.reference.state_dict().items())
    with torch.no_grad():
        expected = pair.reference(tokens).logits
        if pair.ours.config.moe is None:
            assert torch.equal(again(tokens).logits, expected)
        else:  # stacks of experts lie where the file has them, and products round by how that is aligned
            torch.testing.assert_close(again(tokens).logits, expected, **TOLERANCE)
        assert torch.equal(tune.models.from_checkpoint(tmp_path)(tokens), pair.ours(tokens))
    theirs = pair.reference.config.to_dict()
    found = again.config.to_dict()
    # Written out in full, where the reference leaves the usual values out.
    found["rope_parameters"] = common_part(found["rope_parameters"], theirs["rope_parameters"])
    differing = {name for name, value in found.items() if theirs.get(name) != value}
    assert differing <= {"_name_or_path", "dtype", "bos_token_id", "eos_token_id", "pad_token_id"}


def test_an_unknown_field_is_named(pair: Pair, tmp_path: Path) -> None:
    content = json.loads((pair.directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "attention_twist": 0.5}))
    with pytest.raises(CheckpointError, match=r"`attention_twist` is 0\.5, and this"):
        tune.models.auto(str(tmp_path))
