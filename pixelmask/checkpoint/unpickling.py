"""Unpickling checkpoints as data: what a pickle calls is looked up in a table of this module, and nothing else.

A pickle names functions and classes, gives them arguments, and hands states to what they return. numpy's and PyTorch's
own take what they get there on trust: a dtype's state can claim that bytes are pointers. So they are not called. For
each name that a checkpoint may have there is a function here, which makes a plain value of plain arguments, of no more
bytes than the file has.
"""

import math
import mmap
import pickle
import sys
from collections import Counter
from collections.abc import Callable
from typing import IO, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError


class UnreadableCheckpoint(UserError):
    """A checkpoint file that is missing, damaged, of another format, or that would run code."""


class ForbiddenError(Exception):
    """The full name of what a pickle wants to call."""


# Names of numpy's dtypes, those of storages in PyTorch's files, and of PyTorch's dtypes
_DTYPES = {kind + size: np.dtype(kind + size) for kind in "iuf" for size in "1248" if kind + size != "f1"}
_DTYPES |= {"b1": np.dtype(bool)}
_TORCH_DTYPES = {
    name: getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}
_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
# A tuple's hash is computed on the stack of C, which deeper ones overflow
_DEEPEST_TUPLE = 100
# All that is made of a file together, in files: layers that share weights have them once in the file
_MOST_SHARED = 16
_SMALL = 1024  # bytes that are not counted


class DataUnpickler(pickle._Unpickler):
    """Unpickler of tensors, arrays and numbers in Python's containers.

    It is Python's own, in Python: the one in C takes memory for whatever index and length a pickle names.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(
        self,
        file: IO[bytes] | mmap.mmap,
        size: int,
        read_storage: Callable[[str, torch.dtype, int], Tensor] | None = None,
    ):
        """
        Args:
            file: with ``read`` and ``readline``.
            size: bytes of the whole file.
            read_storage: gives the numbers of a key, as many of a dtype, as a flat tensor; None where there are none.
        """
        super().__init__(file, encoding="latin1")  # Python 2 wrote the older files
        self._left = _MOST_SHARED * size
        self._read_storage = read_storage
        self._depths: dict[int, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) not in _KNOWN:
            raise ForbiddenError(f"{module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, numel, *view = pid
        if self._read_storage is None or kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a reference to what is not in the file")
        numbers = self._read_storage(str(key), dtype, _whole(numel))
        if view and view[0] is not None:  # of PyTorch before 1.6: a part of a storage
            _, start, length = view[0]
            return numbers[_whole(start) : _whole(start) + _whole(length)]
        return numbers

    def _tensor(self, numbers: Tensor, start: int, shape: Any, strides: Any, *_: Any) -> Tensor:
        sides, steps = [_whole(n) for n in shape], [_whole(n) for n in strides]
        last = _whole(start) + sum((side - 1) * step for side, step in zip(sides, steps, strict=True))
        numel = math.prod(sides)
        if numel > numbers.numel() or (numel and last >= numbers.numel()):
            raise ValueError(f"a tensor of {sides} in a storage of {numbers.numel()} numbers")
        return numbers.as_strided(sides, steps, start) if numel else numbers.new_empty(sides)

    def _count(self) -> None:
        """Count what has just been made against what the file may become."""
        made = self.stack[-1]  # type: ignore[attr-defined]
        size = made.nbytes if isinstance(made, (Tensor, np.ndarray)) else sys.getsizeof(made)
        self._left -= size if size > _SMALL else 0
        if self._left < 0:
            raise ValueError(f"what it holds would be more than {_MOST_SHARED} times as large as the file")

    def load_reduce(self) -> None:
        super().load_reduce()  # type: ignore[misc]
        self._count()

    def load_build(self) -> None:
        state = self.stack.pop()  # type: ignore[attr-defined]
        made = self.stack[-1]  # type: ignore[attr-defined]
        if isinstance(made, (_Array, _Dtype)):
            made.__setstate__(state)
            self._count()
        elif type(made) is not dict:  # a module's state dict has the versions of its layers, which nobody reads
            raise ForbiddenError(f"{type(made).__name__}.__setstate__")

    def load_setitems(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self._checked(dict).update(zip(items[::2], items[1::2], strict=True))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()  # type: ignore[attr-defined]
        self._checked(dict)[key] = value

    def load_additems(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self._checked(set).update(items)

    def _checked(self, kind: type) -> Any:
        """Return the container that a pickle fills; a tensor would take what it is given in its own way."""
        if type(self.stack[-1]) is not kind:  # type: ignore[attr-defined]
            raise pickle.UnpicklingError(f"what it fills is no {kind.__name__}")
        return self.stack[-1]  # type: ignore[attr-defined]

    def load_instance(self) -> None:
        raise pickle.UnpicklingError("it holds an object of a class")

    def load_bytearray8(self) -> None:
        length = int.from_bytes(self.read(8), "little")  # type: ignore[attr-defined]
        self.append(bytearray(self.read(length)))  # type: ignore[attr-defined]

    def _measure(self) -> None:
        made = self.stack[-1]  # type: ignore[attr-defined]
        depth = 1 + max((self._depths.get(id(item), 0) for item in made if type(item) is tuple), default=0)
        if depth > _DEEPEST_TUPLE:
            raise ValueError(f"tuples in tuples, more than {_DEEPEST_TUPLE} deep")
        self._depths[id(made)] = depth

    for _opcode in (pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4):
        dispatch[_opcode[0]] = load_instance
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def _then_measured(load: Callable[[Any], None]) -> Callable[[DataUnpickler], None]:
    def load_tuple(unpickler: DataUnpickler) -> None:
        load(unpickler)
        unpickler._measure()

    return load_tuple


for _opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    DataUnpickler.dispatch[_opcode[0]] = _then_measured(DataUnpickler.dispatch[_opcode[0]])


class _Dtype:
    """Stands for a numpy dtype while a pickle is read."""

    def __init__(self, name: Any, *_: Any):
        name = name.decode("latin1") if isinstance(name, bytes) else name
        if not isinstance(name, str) or name not in _DTYPES:
            raise ForbiddenError(f"numpy.dtype({name!r:.40})")
        self.dtype = _DTYPES[name]

    def __setstate__(self, state: Any) -> None:
        _, order, subdtype, names, fields, *_ = state
        order = order.decode("latin1") if isinstance(order, bytes) else order
        if (subdtype, names, fields) != (None, None, None):
            raise ForbiddenError("numpy.dtype.__setstate__")
        if order not in ("<", "|", "="):
            raise ValueError("it is of a big-endian machine; save it again on one like this")


class _Array(np.ndarray):
    """An array that takes the state of plain numbers only."""

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, is_fortran, content = state
        content = content.encode("latin1") if isinstance(content, str) else content
        sides = tuple(_whole(side) for side in shape)
        if not isinstance(kind, _Dtype) or not isinstance(content, bytes):
            raise ForbiddenError("numpy.ndarray.__setstate__")
        if len(content) != math.prod(sides) * kind.dtype.itemsize:
            raise ValueError(f"an array of {sides} in {len(content)} bytes")
        super().__setstate__((1, sides, kind.dtype, bool(is_fortran), content))  # type: ignore[arg-type]


def _reconstruct(*_: Any) -> np.ndarray:
    return _Array(0, np.uint8)


def _from_buffer(content: bytes | bytearray, kind: _Dtype, shape: Any, order: str) -> np.ndarray:
    return np.frombuffer(content, kind.dtype).reshape(tuple(map(_whole, shape)), order="F" if order == "F" else "C")


def _scalar(kind: _Dtype, content: bytes | str) -> Any:
    content = content.encode("latin1") if isinstance(content, str) else content
    (number,) = np.frombuffer(content, kind.dtype)
    return number


def _whole(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**62:
        raise ValueError(f"{number!r:.40} where a size belongs")
    return number


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Stand in for ``codecs.encode`` in the one use that pickles of bytes make of it."""
    if encoding != "latin1":
        raise ForbiddenError(f"_codecs.encode with {encoding}")
    return text.encode("latin1")


def _bytearray(content: bytes | str = b"", encoding: str = "latin1") -> bytearray:
    return bytearray(_encode_latin1(content, encoding) if isinstance(content, str) else bytes(memoryview(content)))


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    return dict(pairs)


def _counter(counts: dict[Any, int]) -> Counter[Any]:
    return Counter(dict(counts))


def _first(value: Any, *_: Any) -> Any:
    return value


# By module and name, functions that take what they need, and complain of the rest by whatever exception
_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _dict,
    ("collections", "Counter"): _counter,
    ("_codecs", "encode"): _encode_latin1,
    **{(m, c.__name__): c for m in ("builtins", "__builtin__") for c in (set, frozenset, complex)},
    **{(m, "bytearray"): _bytearray for m in ("builtins", "__builtin__")},
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Dtype,
    **{
        (f"{core}.{module}", name): function
        for core in ("numpy.core", "numpy._core")  # of numpy 1 and 2
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch", "Size"): _first,
    ("torch", "device"): _first,
    **{("torch", name): dtype for name, dtype in _TORCH_DTYPES.items()},
    **{("torch", f"{name}Storage"): dtype for name, dtype in zip(_STORAGES, _TORCH_DTYPES.values(), strict=True)},
    ("torch.storage", "UntypedStorage"): torch.uint8,
}
