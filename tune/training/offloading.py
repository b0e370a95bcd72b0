"""Activations that wait in host memory for the backward pass, moved beside the computation."""

from __future__ import annotations

import weakref
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from tune.errors import TrainingError
from tune.utils.sharding import is_sharded

__all__ = ["OffloadedActivations", "activation_offloading"]

# Below this a transfer costs more than the memory is worth.
MIN_OFFLOAD_BYTES = 1024**2
# Copies on their way at once, in either direction: enough to keep the bus busy, fewer than a block makes.
NUM_IN_FLIGHT = 4


def activation_offloading(
    model: nn.Module, device: torch.device, enabled: bool
) -> AbstractContextManager[object]:
    """Return a context in which activations that the backward pass needs wait in pinned host memory.

    When not enabled, the context changes nothing.

    Raises:
        TrainingError: the device is not a GPU, so there is nothing to move away from.
    """
    if not enabled:
        return nullcontext()
    if device.type != "cuda":
        raise TrainingError(
            f"enable_activation_offloading moves activations from a GPU to the host, but the device is "
            f"{device}. Set it to false."
        )
    return OffloadedActivations(model, device)


class _Copy:
    """The bytes of one storage on the host; and on the device again, once they are wanted there."""

    def __init__(self, host: Tensor, index: int) -> None:
        self.host, self.index = host, index
        self.fetched: Tensor | None = None
        self.arrived: Any = None


class OffloadedActivations(torch.autograd.graph.saved_tensors_hooks):
    """A context, to be entered for each forward pass; its backward pass comes before the next one, or not at all.

    A storage is copied once, however many views of it are saved, and comes back once: strides stay as they are. Copies
    run on streams of their own; what the backward pass wants next is fetched ahead. Weights, which autograd saves as
    well, stay where they are, and so do small tensors.

    Args:
        model: whose weights these are.
        device: what is moved away from. On a CPU the copies are made in turn.
        min_bytes: smaller storages stay.
    """

    def __init__(self, model: nn.Module, device: torch.device, min_bytes: int = MIN_OFFLOAD_BYTES) -> None:
        super().__init__(self._pack, self._unpack)
        self._device, self._min_bytes = device, min_bytes
        self._module = torch.get_device_module(device)
        self._outward, self._inward = self._module.Stream(), self._module.Stream()
        # Of this forward pass, by storage and version; no storage is given an address that a weak reference holds.
        self._known: dict[tuple[int, int], tuple[StorageWeakRef, _Copy]] = {}
        self._order: list[weakref.ref[_Copy]] = []
        self._leaving: deque[tuple[Any, Tensor]] = deque()
        self._weights: set[int] = set()
        # A quantised base is buffers, which a compiled block saves as it saves weights.
        self._keep_weights(model)
        for module in model.modules():
            if hasattr(module, "unshard"):  # FSDP gathers its weights before this hook
                module.register_forward_pre_hook(lambda module, _: self._keep_weights(module))

    def __enter__(self) -> None:
        self._order = []
        super().__enter__()

    def __exit__(self, *args: object) -> None:
        super().__exit__(*args)
        self._known.clear()
        self._let_go(0)

    def _keep_weights(self, module: nn.Module) -> None:
        for tensor in chain(module.parameters(), module.buffers()):
            if not is_sharded(tensor):
                self._weights.add(tensor.untyped_storage()._cdata)

    def _pack(self, tensor: Tensor) -> Any:
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.device.type != self._device.type:
            return tensor
        storage = tensor.untyped_storage()
        if storage.nbytes() < self._min_bytes or storage._cdata in self._weights:
            return tensor
        key = (storage._cdata, tensor._version)
        if key not in self._known:
            self._known[key] = (StorageWeakRef(storage), self._send(storage))  # type: ignore[no-untyped-call]
        return self._known[key][1], tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride()

    def _send(self, storage: Any) -> _Copy:
        source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)  # [bytes]
        host = torch.empty(source.shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        self._outward.wait_stream(self._module.current_stream())
        with self._module.stream(self._outward):
            host.copy_(source, non_blocking=True)
            left = self._module.Event()
            left.record(self._outward)
        self._leaving.append((left, source))
        self._let_go(NUM_IN_FLIGHT)
        copy = _Copy(host, len(self._order))
        self._order.append(weakref.ref(copy))
        return copy

    def _let_go(self, num_left: int) -> None:
        """Free what has left the device: the computation waits for the copy before it uses that memory again."""
        while len(self._leaving) > num_left:
            left, _ = self._leaving.popleft()
            self._module.current_stream().wait_event(left)

    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        copy, dtype, offset, shape, stride = packed
        for index in range(copy.index, max(copy.index - NUM_IN_FLIGHT, -1), -1):
            earlier = self._order[index]() if index < len(self._order) else None
            if earlier is not None:
                self._fetch(earlier)
        self._fetch(copy)  # of another forward pass than the last one
        self._module.current_stream().wait_event(copy.arrived)
        view = torch.empty(0, dtype=dtype, device=self._device)
        return view.set_(copy.fetched.untyped_storage(), offset, shape, stride)

    def _fetch(self, copy: _Copy) -> None:
        if copy.fetched is not None:
            return
        copy.fetched = torch.empty(copy.host.shape, dtype=torch.uint8, device=self._device)
        # What was asked of the device so far may still use that memory.
        self._inward.wait_stream(self._module.current_stream())
        with self._module.stream(self._inward):
            copy.fetched.copy_(copy.host, non_blocking=True)
            copy.arrived = self._module.Event()
            copy.arrived.record(self._inward)
        if copy.fetched.is_cuda:
            copy.fetched.record_stream(self._inward)  # it may be freed without ever being waited for
