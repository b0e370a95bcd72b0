"""A recipe of one's own whose processes do not agree, one way after another.

tune run --nproc_per_node 2 ./disagreeing.py FOLDER
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tune import training
from tune.checkpoints import save_adapter, save_model
from tune.errors import TuneError
from tune.generation import generate, generate_batch
from tune.models import from_checkpoint
from tune.models.llama2 import llama2
from tune.modules import DecoderConfig, TransformerDecoder
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum
from tune.modules.peft import LoRAConfig, apply_lora, is_adapter, reset_adapters
from tune.training import TrainState
from tune.training.saving import shared_folder
from tune.training.saving.nonfinite_dump import dump_nonfinite_step, weights_are_finite
from tune.training.saving.run_state import capture_run_state, load_run_state, write_run_state
from tune.utils import get_logger
from tune.utils.mesh import Mesh
from tune.utils.sharding import full_tensor, is_sharded, local_part

CPU = torch.device("cpu")


def fail_with_a_strange_error(mesh: Mesh) -> None:
    class Strange(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(f"{a} and {b}")

    mesh.from_rank_zero(lambda: (_ for _ in ()).throw(Strange(3, 5)))


def return_what_cannot_be_sent(mesh: Mesh) -> None:
    mesh.from_rank_zero(threading.Lock)


def keep_a_shard_to_oneself(mesh: Mesh) -> None:
    """The second process has a disk of its own under the folder's name."""
    folder = Path(sys.argv[1]) / str(mesh.rank)
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(7, 3)).sum().backward()
    optimizer.step()
    write_run_state(folder, capture_run_state(model, optimizer, {"step": 1}, {}), mesh)


def hold_different_folders(mesh: Mesh) -> None:
    folder = Path(sys.argv[1]) / str(mesh.rank)
    folder.mkdir(parents=True)
    shared_folder.require_shared_folder(folder, mesh)


def break_the_saving_thread(mesh: Mesh) -> None:
    """What writes the model fails in a way that nobody thought of, while training goes on."""
    model = nn.Linear(3, 5)
    optimizer = torch.optim.SGD(model.parameters())
    checkpoints = training.Checkpoints(sys.argv[1], mesh, in_background=True)
    checkpoints.save(TrainState(0, step=1), model, optimizer, lambda model, folder: {}["no such key"])
    checkpoints.wait()


def have_different_memory(mesh: Mesh) -> None:
    """The base fits the first machine alone: all must shard it."""
    from tune.training.distributed import frozen_base

    frozen_base._memory_of = lambda device: 1e9 if mesh.rank == 0 else 10.0
    assert training.shard_dim_of_base(nn.Linear(3, 5), mesh, required=False)


def _fail(*_: object, **__: object) -> None:
    raise RuntimeError("the device is lost")


def save_adapters_of_a_sharded_base(mesh: Mesh) -> None:
    """The first process never holds more of the base than its part and the largest module."""
    torch.manual_seed(4)
    with torch.device("meta"):
        model = llama2(31, 3, 4, 24, 16, num_kv_heads=2, intermediate_dim=20)
        lora = LoRAConfig(
            rank=2, alpha=4, attn_modules=("q_proj", "v_proj"), apply_to_mlp=True, use_dora=True
        )
        apply_lora(model, lora)
    training.shard_model(model, mesh)
    model.reset_parameters()
    reset_adapters(model, torch.float32)
    base = {path: module for path, module in model.named_modules() if not is_adapter(f"{path}.weight")}
    largest = max(sum(w.numel() for w in module.parameters(recurse=False)) for module in base.values())
    held = []

    def write(lent: Any, folder: Path) -> None:
        lending = lent.lending

        @contextmanager
        def watch(module: nn.Module) -> Iterator[None]:
            with lending(module):
                weights = [weight for name, weight in lent.named_parameters() if not is_adapter(name)]
                held.append(sum(weight.numel() for weight in weights if not weight.is_meta))
                yield

        lent.lending = watch
        save_adapter(lent, folder / "adapter", "base")
        save_model(lent, folder / "model")

    optimizer = torch.optim.SGD(model.parameters())
    wholes = {name: full_tensor(weight.detach()).clone() for name, weight in model.named_parameters()}
    for step, in_background in ((1, False), (2, True)):
        checkpoints = training.Checkpoints(sys.argv[1], mesh, in_background=in_background)
        checkpoints.save(TrainState(0, step=step), model, optimizer, write)
        if in_background:
            with torch.no_grad():  # training goes on
                for weight in model.parameters():
                    local_part(weight).zero_()
        checkpoints.wait()
        assert held == [] or len(held) > 20 * step
        assert all(number <= largest for number in held), held
        saved = from_checkpoint(Path(sys.argv[1]) / f"step_{step:06d}" / "model").state_dict()
        assert torch.equal(saved["tok_embeddings.weight"], wholes["tok_embeddings.weight"])
        assert torch.equal(saved["norm.scale"], wholes["norm.scale"])
        # B is zero and magnitudes are the lengths of the rows: merged, the matrix is itself, to rounding.
        torch.testing.assert_close(saved["layers.2.mlp.w1.weight"], wholes["layers.2.mlp.w1.weight"])


def choose_different_tokens(mesh: Mesh) -> None:
    """Whoever holds one model together says the same, though it computes otherwise and draws otherwise."""
    model, prompt = _make_sharded_model(mesh), [3, 30, 0, 17, 17]
    for settings in ({}, {"temperature": 1.0, "seed": 5 + mesh.rank}, {"temperature": 1.0, "top_k": 7}):
        for use_cache in (True, False):
            expected = generate(model, prompt, max_new_tokens=9, use_cache=use_cache, **settings)
            assert all(tokens == expected for tokens in mesh.gather_to_all(expected)), settings
            # What ends the answer, for the first process alone and for the second one alone.
            for stop_id in (expected[4], 1):
                stopped = generate(
                    model, prompt, max_new_tokens=9, use_cache=use_cache, stop_ids=[stop_id], **settings
                )
                assert all(tokens == stopped for tokens in mesh.gather_to_all(stopped)), settings
    plain = model.unembed
    expected = generate(model, prompt, max_new_tokens=9)
    if mesh.rank == 1:
        model.unembed = lambda hidden: -plain(hidden)
    rows = generate_batch(model, [prompt, prompt[:3]], max_new_tokens=9)
    assert rows[0] == expected
    assert all(other == rows for other in mesh.gather_to_all(rows))


def fail_while_a_bad_step_is_studied(mesh: Mesh) -> None:
    """At one place after another of a sharded forward pass; each time the weights can be saved as they were."""
    folder = Path(sys.argv[1])
    batch = {"tokens": torch.randint(0, 31, (2, 7)), "labels": torch.randint(0, 31, (2, 7))}
    for number, place in enumerate(
        ["", "tok_embeddings", "layers.1.mlp", "norm", "loss", "nowhere"], start=1
    ):
        model = _make_sharded_model(mesh)
        optimizer = torch.optim.AdamW(model.parameters())
        loss_of = partial(_loss_of, model, "")
        for _ in range(2):
            loss_of(batch)[0].backward()
            optimizer.step()
        if mesh.rank == 1 and place in ("", "loss"):
            loss_of = partial(_loss_of, model, place or "start")
        elif mesh.rank == 1 and place != "nowhere":
            model.get_submodule(place).register_forward_hook(_fail)
        kept = dump_nonfinite_step(folder, number, model, [batch], mesh, batch_loss=loss_of)
        assert (kept is None) == (place != "nowhere"), place
        assert weights_are_finite(model, mesh)
        checkpoints = training.Checkpoints(folder, mesh)
        state = TrainState(0, step=number)
        checkpoints.save(state, model, optimizer, lambda model, folder: (folder / "model").mkdir())
        again = torch.optim.AdamW(model.parameters())
        load_run_state(folder / f"step_{number:06d}" / "state", model, again, {})
        for name, weight in model.named_parameters():
            assert is_sharded(weight), name
            for key, value in optimizer.state[weight].items():
                assert torch.equal(local_part(again.state[weight][key]), local_part(value)), (place, name)


def fail_while_the_weights_are_gathered(mesh: Mesh) -> None:
    """Nothing but its end can bring the other process back: the last thing that this file does."""
    model = _make_sharded_model(mesh)
    batch = {"tokens": torch.randint(0, 31, (2, 7)), "labels": torch.randint(0, 31, (2, 7))}
    if mesh.rank == 1:
        block: Any = model.layers[1]
        block.set_custom_all_gather(NoRoom())
    dump_nonfinite_step(Path(sys.argv[1]), 7, model, [batch], mesh, batch_loss=partial(_loss_of, model, ""))


class NoRoom:
    """A gather for which there is no memory."""

    allocate = __call__ = _fail


def gather_matrices_as_they_multiply(mesh: Mesh) -> None:
    """Weights in fp32 that multiply in bf16: half the bytes of blocks are sent, and no bit of a gradient differs."""
    gradients, sent = [], []
    for compute_dtype in (None, torch.bfloat16):
        model = _make_sharded_model(mesh, compute_dtype)
        tokens = (torch.arange(14).view(2, 7) + 5 * mesh.rank) % 31
        with GatheredBytes() as gathered:
            for _ in range(2):  # which are accumulated
                with torch.autocast("cpu", torch.bfloat16):
                    loss = loss_sum(LinearCrossEntropyLoss(), model, tokens, tokens)
                loss.backward()
        gradients.append([local_part(weight.grad) for weight in model.parameters()])
        sent.append(gathered.num_bytes)
    for theirs, ours in zip(*gradients, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
    matrices = sum(weight.numel() for weight in model.layers.parameters() if weight.dim() == 2)
    vectors = sum(weight.numel() for weight in model.layers.parameters() if weight.dim() == 1)
    # Of each number of a matrix two bytes less in both passes, and vectors once for both of them; twice.
    assert sent[0] - sent[1] == 2 * (2 * 2 * matrices + 4 * vectors), (sent, matrices, vectors)


class GatheredBytes(TorchDispatchMode):
    """Counts what is gathered from all processes."""

    num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "allgather" in str(func):
            self.num_bytes += sum(leaf.nbytes for leaf in tree_leaves(args[0]) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))


def _make_sharded_model(mesh: Mesh, compute_dtype: torch.dtype | None = None) -> TransformerDecoder:
    torch.manual_seed(2)
    sizes = {"num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 12, "head_dim": 6}
    with torch.device("meta"):
        model = TransformerDecoder(DecoderConfig(vocab_size=31, **sizes, intermediate_dim=20, max_seq_len=16))
    training.shard_model(model, mesh, compute_dtype=compute_dtype)
    model.reset_parameters()
    return model


def _loss_of(model: TransformerDecoder, failing: str, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
    if failing == "start":
        _fail()
    loss = loss_sum(LinearCrossEntropyLoss(), model, batch["tokens"], batch["labels"])
    if failing == "loss":
        _fail()
    return loss, 14


MODES: dict[str, Callable[[Mesh], None]] = {
    made.__name__: made
    for made in (
        fail_with_a_strange_error,
        return_what_cannot_be_sent,
        keep_a_shard_to_oneself,
        hold_different_folders,
        break_the_saving_thread,
        have_different_memory,
        fail_while_a_bad_step_is_studied,
        choose_different_tokens,
        save_adapters_of_a_sharded_base,
        gather_matrices_as_they_multiply,
    )
}


def main() -> None:
    """Run one mode after another, and say on each process how it ended."""
    shared_folder.SEEN_WITHIN_S = 0.3
    mesh = training.init_mesh(CPU)
    root = sys.argv[1]
    for name, mode in MODES.items():
        sys.argv[1] = f"{root}/{name}"
        try:
            mode(mesh)
            outcome = "fine"
        except (TuneError, Exception) as error:  # noqa: BLE001 - what it is, is what the test looks at
            outcome = f"{type(error).__name__}: {error}"
        Path(root, f"{name}.{mesh.rank}").write_text(outcome)
    get_logger().info("done")
    sys.argv[1] = root
    fail_while_the_weights_are_gathered(mesh)
    mesh.close()


if __name__ == "__main__":
    main()
