"""A GPU for machines without one: tensors that say they are on it and may not be mixed with others, as on a real one.

    with PretendedGPU() as gpu:
        task, batch = task.to(gpu.device), batch.to(gpu.device)
        task(batch)["loss"].backward()

Everything is computed on the CPU. What a GPU refuses is refused: operands on two devices, a generator of the other
device, numpy arrays of its memory. Not seen is what happens within one function of torch, in a backward pass and in
other threads; nothing is compiled.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from lightning_fabric.accelerators import CPUAccelerator
from lightning_fabric.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map

from ssl3d.fabric import Fabric


def _attribute(name: str) -> Any:
    return getattr(Tensor, name)


_GPU, _CPU = torch.device("cuda", 0), torch.device("cpu")
_MARK = "_ssl3d_on_pretended_gpu"
# What a tensor on it says of itself. (Methods of attributes are made anew by each access: equal, not identical.)
_SAID = (
    (_attribute("device").__get__, _GPU), (_attribute("is_cuda").__get__, True), (_attribute("is_cpu").__get__, False),
    (Tensor.get_device, 0),
)  # fmt: skip
_MOVED_IN_PLACE = _attribute("data").__set__
# Asked of torch before anything is computed or moved: a device stays what it is.
_ASKED = {torch.device, torch._C._nn._parse_to, torch._has_compatible_shallow_copy_type}
# Take operands on two devices.
_CROSSING = {Tensor.copy_, Tensor.to, Tensor.__getitem__, Tensor.__setitem__, Tensor.type_as}
_FOR_NUMPY: set[Any] = {Tensor.numpy, Tensor.__array__}
# Their result, or its size, is a number that the GPU must have computed before the CPU goes on.
_WAITING: set[Any] = {
    Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.cpu,
    Tensor.nonzero, torch.nonzero, torch.unique, Tensor.unique, torch.masked_select, Tensor.masked_select,
    torch.equal, Tensor.equal,
}  # fmt: skip


class PretendedGPU(TorchFunctionMode):
    """Within it `device` is a GPU. `waits`: how often the CPU had to wait for it, by function.

    Within it torch raises RuntimeError where a GPU would refuse operands, TypeError for numpy arrays of its memory.
    """

    device = _GPU

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> PretendedGPU:
        for name, made in _PATCHES.items():
            self._patches.enter_context(mock.patch(name, made))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {key: value for key, value in (kwargs or {}).items() if key != "pin_memory"}
        if func in _ASKED:
            return func(*args, **kwargs)
        if func is Tensor.pin_memory:
            return args[0]
        operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        marked = any(on_gpu(x) for x in operands)
        if marked and (said := [answer for asked, answer in _SAID if func == asked]):
            return said[0]
        there = _goes_to_gpu(func, args, kwargs, marked)
        _refuse(func, args, operands, kwargs.get("generator"), there)
        if marked and func in _WAITING:
            self.waits[_name(func)] += 1
        result = func(*map(_here, args), **{key: _here(value) for key, value in kwargs.items()})
        if func == _MOVED_IN_PLACE:
            setattr(args[0], _MARK, on_gpu(args[1]))
        return _marked(result, there, operands)


def on_gpu(x: Tensor) -> bool:
    """Whether a tensor was made on the pretended GPU, or moved there."""
    return getattr(x, _MARK, False)


def pretended_fabric(**options: Any) -> Fabric:
    """What Fabric makes of one GPU, in the precision that is asked for."""
    strategy = SingleDeviceStrategy(_GPU, accelerator=_Accelerator())
    return Fabric(strategy=strategy, precision=options["precision"])


def _goes_to_gpu(func: Any, args: Any, kwargs: Any, marked: bool) -> bool:
    """Whether the result of a function is on the pretended GPU."""
    if func is Tensor.cpu:
        return False
    if func is Tensor.__getitem__:
        return on_gpu(args[0])
    to = args[1:] if func is Tensor.to else ()
    for device in (kwargs.get("device"), *to):
        if isinstance(device, str | torch.device):
            return torch.device(device).type == "cuda"
        if isinstance(device, Tensor):
            return on_gpu(device)
    return marked


def _refuse(func: Any, args: Any, operands: list[Tensor], generator: Any, there: bool) -> None:
    marked = [x for x in operands if on_gpu(x)]
    if marked and func in _FOR_NUMPY:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")
    elsewhere = [x for x in operands if not on_gpu(x) and x.dim() > 0]  # a number may come from anywhere
    by_the_gpu = func is Tensor.__getitem__ and not on_gpu(args[0])  # indices of the CPU are taken, not the reverse
    if marked and elsewhere and (by_the_gpu or (func not in _CROSSING and func != _MOVED_IN_PLACE)):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"({_name(func)}, on the CPU {[tuple(x.shape) for x in elsewhere]})"
        )
    if generator is not None and generator.device.type != (wanted := "cuda" if there else "cpu"):
        raise RuntimeError(
            f"Expected a '{wanted}' device type for generator but found '{generator.device.type}' ({_name(func)})"
        )


def _name(func: Any) -> str:
    return resolve_name(func) or getattr(func, "__qualname__", repr(func))


def _here(x: Any) -> Any:
    """An argument with the CPU in the place of the pretended GPU."""
    return _CPU if isinstance(x, str | torch.device) and str(x).startswith("cuda") else x


def _marked(result: Any, there: bool, operands: list[Tensor]) -> Any:
    """The result with its tensors marked. One that is an operand itself keeps its place: a view of it is marked."""

    def mark(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if on_gpu(x) != there and any(x is operand for operand in operands):
            x = x.view_as(x)
        setattr(x, _MARK, there)
        return x

    return result if isinstance(result, torch.Size) else tree_map(mark, result)


class _Generator(torch.Generator):
    """A generator that says which device it was made for, and draws on the CPU."""

    _made_for: torch.device

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        made._made_for = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """What it was made for."""
        return self._made_for

    def manual_seed(self, seed: int) -> _Generator:
        """Itself, seeded."""
        super().manual_seed(seed)
        return self


class _Stream:
    """A stream of work, all of which is done at once."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cuda"

    def wait_stream(self, other: _Stream) -> None:
        """Nothing is left to wait for."""


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        """Nothing is to be set up."""


@contextlib.contextmanager
def _fork_rng(devices: Any = (), **_: Any) -> Iterator[None]:
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


_PATCHES: dict[str, Any] = {
    "torch.Generator": _Generator,
    "torch.random.fork_rng": _fork_rng,
    "torch.Tensor.record_stream": lambda tensor, stream: None,
    "torch.cuda.is_available": lambda: True,
    "torch.cuda.device_count": lambda: 1,
    "torch.cuda.get_device_name": lambda device=None: "a pretended GPU",
    "torch.cuda.is_bf16_supported": lambda including_emulation=True: True,
    "torch.cuda.max_memory_allocated": lambda device=None: 0,
    "torch.cuda.reset_peak_memory_stats": lambda device=None: None,
    "torch.cuda.synchronize": lambda device=None: None,
    "torch.cuda.Stream": _Stream,
    "torch.cuda.current_stream": _Stream,
    "torch.cuda.stream": lambda stream: contextlib.nullcontext(),
    "ssl3d.devices.Fabric": pretended_fabric,
    "ssl3d.devices.compile_backbones": lambda *_: None,
}
# What an optimiser asks of the driver, by the version of torch.
_PATCHES |= {
    f"torch.optim.Optimizer.{name}": lambda self: None
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check")
    if hasattr(torch.optim.Optimizer, name)
}
