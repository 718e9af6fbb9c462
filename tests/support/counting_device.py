"""A second device for machines without a GPU, which shows what a program would cost or break on one.

Its tensors say that they live on ``privateuseone``, the name that torch keeps free for a device of others. Each holds a
tensor of the CPU, which computes. Every operation passes the :class:`CountingDevice`, which notes

- mixes: operations on tensors of both devices, which a GPU refuses or mends by a copy. A tensor of the CPU without
  dimensions is a number, and may take part;
- copies: what is brought to the device;
- waits: what the host needs a value of the device for, so that it stands still until the device has done all that it
  was asked for: ``.cpu()``, ``.item()``, ``bool(tensor)``, ``tolist()``, and operations whose result has as many
  elements as the values say, such as ``nonzero`` and indexing by a boolean mask. Copies that do not block are none:
  who uses them waits for an event, and thus only for what the device was asked for before.
"""

import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("privateuseone", 0)
VALUES_DECIDE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class _Module(backend_registration._DummyBackendModule):
    """What ``torch.privateuseone`` is."""

    Event = torch.cpu.Event  # nothing is ever under way

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class DeviceTensor(Tensor):
    """A tensor of the device."""

    held: Tensor
    """The tensor of the CPU that has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "DeviceTensor":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        tensor = Tensor._make_wrapper_subclass(cls, held.size(), device=DEVICE, **layout)
        tensor.held = held
        return tensor

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.held} of the device"

    def tolist(self) -> Any:
        return self.cpu().tolist()  # What torch refuses to do for subclasses

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on a tensor of the device outside of its CountingDevice")


class CountingDevice(TorchDispatchMode):
    """The device, while this is entered. Each list has the operations of its kind and the lines that asked for them."""

    def __init__(self) -> None:
        super().__init__()
        self.mixes: list[str] = []
        self.copies: list[str] = []
        self.waits: list[str] = []

    def __enter__(self) -> "CountingDevice":
        if not hasattr(torch, DEVICE.type):
            backend_registration._setup_privateuseone_for_python_backend(backend_module=_Module())
        torch._C._set_only_lift_cpu_tensors(True)  # Else torch.tensor(..., device=...) copies before it asks here
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        given = {id(_held(x)): x for x in tensors}
        on_device = any(isinstance(x, DeviceTensor) for x in tensors)
        if kwargs.get("device") is not None:
            on_device = kwargs["device"].type == DEVICE.type
            kwargs = {**kwargs, "device": torch.device("cpu")}
        self._note(func, args, tensors, on_device, bool(kwargs.get("non_blocking")))
        args, kwargs = tree_map_only(Tensor, _held, (args, kwargs))
        result = func(*args, **kwargs)
        # What was computed in place is the tensor that was given
        made = DeviceTensor if on_device else lambda x: x
        return tree_map_only(Tensor, lambda x: given[id(x)] if id(x) in given else made(x), result)

    def _note(self, func: Any, args: Any, tensors: list[Tensor], on_device: bool, non_blocking: bool) -> None:
        """Note what an operation does besides computing, if it does; ``on_device`` is where its result is to be."""
        ours = [isinstance(x, DeviceTensor) for x in tensors]
        kinds = []
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            target = on_device if len(tensors) == 1 else ours[0]
            if target != ours[-1] and (target or not non_blocking):
                kinds.append(self.copies if target else self.waits)
        elif any(ours):
            if any(x.dim() for x in tensors if not isinstance(x, DeviceTensor)):
                kinds.append(self.mixes)
            by_index = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_)
            masked = any(x.dtype == torch.bool for x in tree_leaves(args[1:2]) if isinstance(x, Tensor))
            if masked if by_index else VALUES_DECIDE & set(func.tags):
                kinds.append(self.waits)
        for kind in kinds:
            kind.append(f"{func} at {_asked_at()}")


def _held(x: Tensor) -> Tensor:
    return x.held if isinstance(x, DeviceTensor) else x


def _asked_at() -> str:
    """Return the innermost line of ours, after that of Detectron2 which it called, if it did."""
    called, frame = [], sys._getframe(2)
    while frame.f_back:
        frame = frame.f_back
        module = frame.f_globals.get("__name__", "")
        package = module.partition(".")[0]
        if package in ("patchdct", "airm", "pixelmask", "tests") and module != __name__:
            return " for ".join([*called, f"{module}:{frame.f_lineno}"])
        if package == "detectron2":
            called = [f"{module}:{frame.f_lineno}"]
    return "an unknown line"
