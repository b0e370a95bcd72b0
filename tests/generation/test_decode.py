from __future__ import annotations

import pytest
import torch

from tune.errors import GenerationError
from tune.generation import generate, generate_batch, stream, stream_batch
from tune.modules import DecoderConfig, TransformerDecoder

VOCAB, MAX_SEQ_LEN = 89, 47


def make_model(seed: int = 0, **changes: object) -> TransformerDecoder:
    sizes = {
        "vocab_size": VOCAB,
        "num_layers": 2,
        "num_heads": 6,
        "num_kv_heads": 3,
        "embed_dim": 36,
        "head_dim": 10,
        "intermediate_dim": 52,
        "max_seq_len": MAX_SEQ_LEN,
    }
    torch.manual_seed(seed)
    model = TransformerDecoder(DecoderConfig(**{**sizes, **changes}))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():  # larger than a fresh model's, so that the text does not settle
            parameter.add_(torch.randn_like(parameter) * 0.25)
    return model


@pytest.fixture(scope="module")
def model() -> TransformerDecoder:
    return make_model()


PROMPT = [3, 88, 0, 17, 17]


def greedy_by_hand(model: TransformerDecoder, prompt: list[int], num_tokens: int) -> list[int]:
    """Full forward passes and argmax; refuses to be a reference where two tokens are nearly tied."""
    tokens = list(prompt)
    model.eval()
    for _ in range(num_tokens):
        with torch.no_grad():
            best = model(torch.tensor([tokens]))[0, -1].topk(2)
        assert float(best.values[0] - best.values[1]) > 1e-4, "a near tie: choose another seed"
        tokens.append(int(best.indices[0]))
    return tokens[len(prompt) :]


def test_200_greedy_tokens_equal_full_forward_passes() -> None:
    model = make_model(max_seq_len=211)
    expected = greedy_by_hand(model, PROMPT, 200)
    assert generate(model, PROMPT, max_new_tokens=200) == expected
    assert generate(model, PROMPT, max_new_tokens=200, use_cache=False) == expected
    assert list(stream(model, PROMPT, max_new_tokens=200)) == expected
    assert len(set(expected)) > 20, "the text settled into a loop and proves little"


def test_200_greedy_tokens_equal_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = make_model(seed=2, max_seq_len=223)
    config = ours.config
    reference = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.embed_dim,
            intermediate_size=config.intermediate_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.norm_eps,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    ).eval()
    state = ours.state_dict()
    names = {
        "attn.q_proj": "self_attn.q_proj",
        "attn.k_proj": "self_attn.k_proj",
        "attn.v_proj": "self_attn.v_proj",
        "attn.output_proj": "self_attn.o_proj",
        "mlp.w1": "mlp.gate_proj",
        "mlp.w2": "mlp.down_proj",
        "mlp.w3": "mlp.up_proj",
    }
    theirs = {
        "model.embed_tokens.weight": state["tok_embeddings.weight"],
        "model.norm.weight": state["norm.scale"],
        "lm_head.weight": state["output.weight"],
    }
    for layer in range(config.num_layers):
        for name, their_name in names.items():
            theirs[f"model.layers.{layer}.{their_name}.weight"] = state[f"layers.{layer}.{name}.weight"]
        theirs[f"model.layers.{layer}.input_layernorm.weight"] = state[f"layers.{layer}.sa_norm.scale"]
        theirs[f"model.layers.{layer}.post_attention_layernorm.weight"] = state[
            f"layers.{layer}.mlp_norm.scale"
        ]
    reference.load_state_dict(theirs)
    answer = reference.generate(torch.tensor([PROMPT]), max_new_tokens=200, do_sample=False)[0, len(PROMPT) :]
    assert generate(ours, PROMPT, max_new_tokens=200) == answer.tolist()


def test_every_step_of_a_batch_is_the_row_alone(model: TransformerDecoder) -> None:
    prompts = [[5], PROMPT, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [60, 61, 62]]
    for use_cache in (True, False):
        together = generate_batch(model, prompts, max_new_tokens=19, use_cache=use_cache)
        assert together == [generate(model, prompt, max_new_tokens=19) for prompt in prompts]


def test_rows_of_a_batch_end_by_themselves(model: TransformerDecoder) -> None:
    prompts = [[5], PROMPT, [60, 61, 62]]
    free = generate_batch(model, prompts, max_new_tokens=13)
    stop = free[1][4]
    expected = [row[: row.index(stop)] if stop in row else row for row in free]
    assert generate_batch(model, prompts, max_new_tokens=13, stop_ids=[stop]) == expected
    assert len({len(row) for row in expected}) > 1
    # A row at its max_seq_len ends, the others go on, and none of them notices.
    long = [(7 * i) % VOCAB for i in range(MAX_SEQ_LEN - 4)]
    assert generate_batch(model, [long, [5]], max_new_tokens=13) == [
        generate(model, long, max_new_tokens=13),
        free[0],
    ]
    assert generate_batch(model, [], max_new_tokens=3) == []


def test_streams_come_in_batches(model: TransformerDecoder) -> None:
    prompts = [PROMPT, [5], [7, 7, 1], [88] * 40, [2, 3]]
    alone = [generate(model, prompt, max_new_tokens=9) for prompt in prompts]
    assert len(alone[3]) == MAX_SEQ_LEN - 40
    stop = alone[0][4]
    streams = stream_batch(model, prompts, max_new_tokens=9, batch_size=2, stop_ids=[stop])
    # Whatever of a batch is read first, the other row waits with what has come meanwhile.
    second = [next(streams[1]) for _ in range(6)]
    with pytest.raises(GenerationError, match="another generation is running"):
        next(streams[2])
    streams = stream_batch(model, prompts, max_new_tokens=9, batch_size=2, stop_ids=[stop])
    second = [next(streams[1]) for _ in range(6)]
    first = list(streams[0])
    assert (first, second) == (alone[0][: alone[0].index(stop)], alone[1][:6])
    assert (streams[0].stop_reason, streams[0].num_tokens) == ("stop_id", len(first))
    assert model.caches_are_enabled()  # one row of the batch may still be read
    streams[1].close()
    assert not model.caches_are_enabled()
    assert [list(row) for row in stream_batch(model, prompts, max_new_tokens=9, batch_size=2)] == alone


def test_sampled_rows_have_their_own_seeds(model: TransformerDecoder) -> None:
    prompts = [[5, 6], PROMPT, [5, 6]]
    settings = {"max_new_tokens": 11, "temperature": 1.2, "top_k": 40, "top_p": 0.97}
    rows = generate_batch(model, prompts, seed=21, **settings)  # type: ignore[arg-type]
    assert rows == [generate(model, prompt, seed=21 + i, **settings) for i, prompt in enumerate(prompts)]  # type: ignore[arg-type]
    assert rows[0] != rows[2]
    unseeded = [generate(model, PROMPT, **settings) for _ in range(3)]  # type: ignore[arg-type]
    assert len({tuple(row) for row in unseeded}) > 1


def test_cached_sampling_is_uncached_sampling(model: TransformerDecoder) -> None:
    settings = {"max_new_tokens": 29, "temperature": 0.9, "top_p": 0.9, "seed": 5}
    assert generate(model, PROMPT, **settings) == generate(model, PROMPT, use_cache=False, **settings)  # type: ignore[arg-type]


def test_stop_reasons(model: TransformerDecoder) -> None:
    free = generate(model, PROMPT, max_new_tokens=9)
    stopped = stream(model, PROMPT, max_new_tokens=9, stop_ids=[free[3]])
    assert (list(stopped), stopped.stop_reason) == (free[: free.index(free[3])], "stop_id")
    counted = stream(model, PROMPT, max_new_tokens=9)
    assert counted.stop_reason is None
    assert (list(counted), counted.stop_reason, counted.num_tokens) == (free, "max_new_tokens", 9)
    bounded = stream(model, PROMPT, max_new_tokens=10_000)
    assert len(list(bounded)) == MAX_SEQ_LEN - len(PROMPT)
    assert bounded.stop_reason == "max_seq_len"
    assert list(bounded) == []  # an ended stream stays ended, and keeps its reason
    assert bounded.stop_reason == "max_seq_len"


def test_training_state_is_left_as_it_was() -> None:
    model = make_model(attn_dropout=0.3)
    model.train()
    model.layers[1].eval()  # a part kept in eval mode on purpose
    modes = [module.training for module in model.modules()]
    tokens = torch.randint(VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))

    def step() -> torch.Tensor:
        model.zero_grad()
        model(tokens).logsumexp(-1).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    torch.manual_seed(3)
    before = step()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    generate(model, PROMPT, max_new_tokens=6, temperature=1.0)
    generate_batch(model, [PROMPT, [1]], max_new_tokens=6, temperature=1.0, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert not model.caches_are_enabled()
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(step(), before)


def test_first_use_by_generation_does_not_poison_training() -> None:
    model = make_model()
    generate(model, PROMPT, max_new_tokens=2)
    model(torch.tensor([PROMPT])).sum().backward()


def test_an_abandoned_stream_gives_the_model_back(model: TransformerDecoder) -> None:
    model.train()
    tokens = stream(model, PROMPT, max_new_tokens=9)
    assert model.training  # nothing is taken before the first token
    next(tokens)
    assert torch.is_grad_enabled()
    assert not model.training
    assert model.caches_are_enabled()
    with pytest.raises(GenerationError, match="already"):
        generate(model, PROMPT, max_new_tokens=2)
    assert model.caches_are_enabled()  # the refused one took nothing away
    next(tokens)
    tokens.close()
    assert model.training
    assert not model.caches_are_enabled()
    assert list(tokens) == []
    assert tokens.stop_reason is None  # it did not end by itself

    for _token in stream(model, PROMPT, max_new_tokens=9):
        break
    assert not model.caches_are_enabled()

    class Interrupted(BaseException):
        pass

    def interrupted_answer() -> None:
        with stream(model, PROMPT, max_new_tokens=9) as tokens:
            next(tokens)
            raise Interrupted

    with pytest.raises(Interrupted):
        interrupted_answer()
    assert not model.caches_are_enabled()


def test_an_error_on_the_way_gives_the_model_back() -> None:
    model = make_model()
    with torch.no_grad():
        model.norm.scale.fill_(float("nan"))
    model.train()
    with pytest.raises(GenerationError, match="not finite"):
        generate(model, PROMPT, max_new_tokens=3)
    assert model.training
    assert not model.caches_are_enabled()


def test_autocast_is_followed(model: TransformerDecoder) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        cached = generate(model, PROMPT, max_new_tokens=8)
        assert cached == generate(model, PROMPT, max_new_tokens=8, use_cache=False)


@pytest.mark.parametrize(
    ("prompt", "settings", "words"),
    [
        ([], {}, "the prompt has no tokens"),
        ([1] * MAX_SEQ_LEN, {}, f"has {MAX_SEQ_LEN} tokens, but the model's max_seq_len is {MAX_SEQ_LEN}"),
        ([1] * 1000, {}, f"has 1000 tokens, but the model's max_seq_len is {MAX_SEQ_LEN}"),
        ([1, VOCAB], {}, f"token id {VOCAB}, but the model's vocabulary has {VOCAB} entries"),
        ([-1], {}, "token id -1"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ([1], {"temperature": -1.0}, "temperature is -1.0"),
        ([1], {"temperature": 1.0, "seed": -5}, "seed is -5"),
    ],
)
def test_what_cannot_be_done_is_said_at_the_call(
    model: TransformerDecoder, prompt: list[int], settings: dict[str, float], words: str
) -> None:
    with pytest.raises(GenerationError, match=words):
        stream(model, prompt, **{"max_new_tokens": 3, **settings})  # type: ignore[arg-type]


def test_a_wrong_row_of_a_batch_is_named(model: TransformerDecoder) -> None:
    with pytest.raises(GenerationError, match="prompt 2 of 3 has no tokens"):
        generate_batch(model, [[1], [], [2]], max_new_tokens=3)


@pytest.mark.gpu
def test_on_a_gpu_as_on_a_cpu() -> None:
    model = make_model(max_seq_len=211)
    expected = generate(model, PROMPT, max_new_tokens=100)
    model.to("cuda")
    assert generate(model, PROMPT, max_new_tokens=100) == expected
    sampled = {"max_new_tokens": 30, "temperature": 1.0, "top_k": 40, "top_p": 0.9, "seed": 7}
    before = torch.cuda.get_rng_state()
    first = generate(model, PROMPT, **sampled)  # type: ignore[arg-type]
    assert first == generate(model, PROMPT, **sampled)  # type: ignore[arg-type]
    assert first == generate_batch(model, [PROMPT, [1, 2]], **sampled)[0]  # type: ignore[arg-type]
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert not model.caches_are_enabled()
