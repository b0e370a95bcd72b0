"""A step of each recipe asks a GPU once, whether it may be taken, and nothing else between two logged lines."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from tune import training
from tune.modules.loss import LinearCrossEntropyLoss
from tune.training.batches import NUM_TARGETS, NUM_TEXT_TARGETS

LORA = {"lora_rank": 3, "apply_lora_to_mlp": True}
ADAM = {"_component_": "AdamW", "lr": 0.01}
ROOT = Path(training.__file__).resolve().parents[2]
OURS = tuple(f"{ROOT / part}/" for part in ("tune", "recipes"))
ATEN = torch.ops.aten
VALUES = {ATEN._local_scalar_dense, ATEN.is_nonzero, ATEN.equal}
SHAPES = {ATEN.nonzero, ATEN.masked_select, ATEN._unique2, ATEN.unique_dim, ATEN.bincount}
INDEXING = {ATEN.index, ATEN.index_put, ATEN.index_put_}
COUNTS = (NUM_TARGETS, NUM_TEXT_TARGETS)  # which stay on the host
TO_HOST = {Tensor.tolist, Tensor.numpy, Tensor.cpu}


class Device:
    """Follows what would be on a GPU, from weights and batches on, and who would wait for it."""

    def __init__(self) -> None:
        self._tensors = WeakIdKeyDictionary()
        self.waits: Counter[str] = Counter()

    def take(self, values: Any) -> None:
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                self._tensors[value] = True

    def has(self, values: Any) -> bool:
        return any(isinstance(value, Tensor) and value in self._tensors for value in tree_leaves(values))

    def note_wait(self, name: str) -> None:
        """Count it under the line of ours that asks."""
        frame: Any = sys._getframe(1)
        while frame and not frame.f_code.co_filename.startswith(OURS):
            frame = frame.f_back
        where = f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}" if frame else "?"
        self.waits[f"{where}: {name}"] += 1

    def unwatched(self, work: Callable[[], None]) -> None:
        before = self.waits.copy()
        work()
        self.waits = before

    @contextmanager
    def watched(self) -> Iterator[None]:
        with _Operators(self), _Functions(self):
            yield


class _Operators(TorchDispatchMode):
    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        on_device = self.device.has(given)
        packet = func.overloadpacket
        if on_device:
            masks = packet in INDEXING and any(
                isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
            )
            counts = packet is ATEN.repeat_interleave and given[1].get("output_size") is None
            if packet in VALUES or packet in SHAPES or masks or counts:
                self.device.note_wait(str(packet))
        found = func(*args, **(kwargs or {}))
        if on_device:
            self.device.take(found)
        return found


class _Functions(TorchFunctionMode):
    """What a CPU answers without an operator."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in TO_HOST and self.device.has(args[0]):
            self.device.note_wait(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device, to_device = Device(), training.to_device

    def copy(batch: Any, to: torch.device) -> dict[str, Tensor]:
        moved = {
            name: tensor if name in COUNTS else tensor.clone()
            for name, tensor in to_device(batch, to).items()
        }
        device.take([tensor for name, tensor in moved.items() if name not in COUNTS])
        return moved

    monkeypatch.setattr(training, "to_device", copy)
    monkeypatch.setattr("tune.training.reference.to_device", copy)
    # Only a CPU, which waits for nobody, looks at targets before they are used.
    monkeypatch.setattr(LinearCrossEntropyLoss, "check_targets", lambda *_: None)
    return device


def waits_of(device: Device, recipe_name: str, values: dict[str, Any]) -> tuple[Counter[str], int]:
    """Return who waits in a run without a line, and its number of steps."""
    params_module = import_module(f"tune.recipes.params.{recipe_name}")
    stem = "".join(word.capitalize() for word in recipe_name.split("_"))
    recipe_class = getattr(import_module(f"tune.recipes.{recipe_name}"), f"{stem}Recipe")
    recipe = recipe_class(getattr(params_module, f"{stem}Params")(**values))
    recipe.setup()
    device.take([*recipe.model.parameters(), *recipe.model.buffers()])
    for name in ("teacher", "reference"):
        held = vars(getattr(recipe, name, object)) if hasattr(recipe, name) else {}
        for part in held.values():
            if isinstance(part, torch.nn.Module):
                device.take([*part.parameters(), *part.buffers()])
    save = recipe.save_checkpoint
    recipe.save_checkpoint = lambda: device.unwatched(save)
    with device.watched():
        recipe.train()
    recipe.cleanup()
    return device.waits, recipe.state.step


CASES = {
    "full": ("full_finetune", {}),
    "full_packed": ("full_finetune", {"packed": True}),
    "lora": ("lora_finetune", LORA),
    "qlora": ("lora_finetune", LORA | {"quantize_base": True, "dtype": "bf16"}),
    "dpo": ("preference_finetune", {}),
    "dpo_lora": ("preference_finetune", LORA),
    "orpo": ("preference_finetune", {"loss": "orpo"}),
    "kto": ("preference_finetune", {"loss": "kto"}),
    "reward": ("reward_finetune", {}),
    "distill": ("distill", {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_asks_once(
    device: Device, name: str, base: Path, data_file: Path, pairs_file: Path, tmp_path: Path
) -> None:
    recipe_name, changes = CASES[name]
    changes = dict(changes)
    source = pairs_file if recipe_name in ("preference_finetune", "reward_finetune") else data_file
    kind = "preference" if source is pairs_file else "instruct"
    dataset: dict[str, Any] = {"_component_": kind, "source": str(source)}
    if changes.pop("packed", False):
        dataset |= {"packed": True}
    if changes.get("loss") == "kto":
        dataset["_component_"] = "tune.datasets.unpaired_dataset"
    values = {
        "output_dir": str(tmp_path / "out"),
        "model_checkpoint": str(base),
        "dataset": dataset,
        "dataset_val": dict(dataset),
        "run_val_every_n_steps": 2,
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        "epochs": 2,
        "optimizer": ADAM,
        "clip_grad_norm": 1.0,
        "dtype": "fp32",
        "device": "cpu",
        "log_every_n_steps": 1000,
        "save_every_epoch": False,
        "log_level": "WARNING",
        **changes,
    }
    if recipe_name == "distill":
        values |= {"teacher_checkpoint": str(base)}
    waits, num_steps = waits_of(device, recipe_name, values)
    asked = waits.pop("step_guard.allows: aten._local_scalar_dense")
    assert asked == num_steps > 1
    # Each validation reads its loss, and what was measured beside it. The one line, which comes at the end, reads the
    # loss of every step in it, the last gradient norm, and what was measured.
    num_validations = waits.pop("validation.mean_loss: aten._local_scalar_dense")
    assert num_validations <= num_steps // 2 + 2
    assert waits.pop("loss_parts._means: tolist", 0) in (0, num_validations + 1)
    assert waits.pop("loss_mean._read_waiting: aten._local_scalar_dense") == num_steps
    assert waits.pop("monitor.measure: aten._local_scalar_dense") == 1
    assert not waits
