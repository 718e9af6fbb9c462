"""Networks as files that run without this package: torch.export's .pt2 and ONNX, of whatever module is given.

Whole detectors are not exported: how many boxes there are, and which of them remain, depends on the image's content.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .errors import UserError

TOLERANCE = 1e-4
"""Largest difference between the answers of a file and of the model that counts as none."""
SUFFIXES = (".pt2", ".onnx")
# The key in an ONNX file, and the name of the extra file in a .pt2, of every model: published files have it
METADATA = "patchdct"


class Export(NamedTuple):
    """An exported network, to be written to a file."""

    program: ExportedProgram
    metadata: dict[str, Any]
    """Values that JSON knows, which go into the file; :class:`ExportedFile` returns them."""
    output: str
    """Name of the one output in ONNX; inputs are called as the arguments."""
    axes: tuple[dict[int, str] | None, ...] | None
    """Names in ONNX of each input's axes that are not fixed; of axes that are always equal, of one input alone."""

    def save(self, path: Path) -> None:
        """Write one file, .pt2 or .onnx, with the parameters in it.

        Raises:
            UserError: for another suffix, or if a library that writes ONNX is missing.
        """
        check_output(path, overwrite=True)
        text = json.dumps(self.metadata)
        if path.suffix == ".pt2":
            torch.export.save(self.program, path, extra_files={METADATA: text})
            return
        onnx_program = torch.onnx.export(
            self.program, dynamo=True, output_names=[self.output], dynamic_shapes=self.axes, verbose=False
        )
        assert onnx_program is not None
        onnx_program.model.metadata_props[METADATA] = text
        onnx_program.save(path, external_data=False)


def export_module(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    metadata: dict[str, Any],
    output: str,
    dynamic: Sequence[Mapping[int, str]] | None = None,
    dims: Mapping[str, Any] | None = None,
    strict: bool = False,
) -> Export:
    """Export a module.

    Args:
        module: on the CPU, for inference.
        inputs: examples of its arguments; sides that are not the same are to be unequal.
        metadata, output: see :class:`Export`.
        dynamic: of each input its axes that are not fixed, by name: axes of one name are always equal.
        dims: what :class:`torch.export.Dim` does not say by the name alone, such as multiples and least values.
        strict: whether ``len`` and the like of a dynamic axis are followed.
    """
    names = [name for axes in dynamic or () for name in axes.values()]
    known = {name: Dim(name) for name in names} | dict(dims or {})
    shapes = dynamic and tuple({axis: known[name] for axis, name in axes.items()} for axes in dynamic)
    program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=strict)
    axes_names: list[dict[int, str] | None] = []
    for axes in dynamic or ():
        axes_names.append({axis: name for axis, name in axes.items() if name in names} or None)
        names = [name for name in names if name not in axes.values()]
    return Export(program, metadata, output, tuple(axes_names) or None)


def largest_difference(
    file: "ExportedFile", reference: Callable[..., Tensor], inputs: Iterable[tuple[Tensor, ...]]
) -> float:
    """Return the largest difference between the answers of a file and of what it was made of; NaN if one has NaN."""
    with torch.no_grad():
        differences = [(file(*values) - reference(*values)).abs().max() for values in inputs]
    return float(torch.stack(differences).max())


def check_output(path: Path, overwrite: bool = False) -> None:
    """Raise UserError for a file that cannot be written, before the work is done."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} has no known format; its name ends in .pt2 (torch.export) or .onnx")
    if path.suffix == ".onnx":
        need("onnx", "onnxscript")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; give another name, or --overwrite")


class ExportedFile:
    """A network that :class:`Export` wrote, run on the CPU: .onnx by onnxruntime, .pt2 by PyTorch.

    A .pt2 of somebody else is a program; run only what you trust.
    """

    metadata: dict[str, Any]

    def __init__(self, path: str | Path):
        """
        Raises:
            UserError: if the file is missing, cannot be read, or is none that this project wrote, or if onnxruntime is
                missing.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"no file {path}; tools/export.py writes it")
        self._session: Any = None
        self._module: Any = None
        text = self._open_onnx() if self.path.suffix == ".onnx" else self._open_pt2()
        if not text:
            raise UserError(f"{path} was not written by tools/export.py")
        self.metadata = json.loads(text)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run the network on inputs in the order of its arguments.

        Raises:
            UserError: if it takes none of these sizes, or memory runs out.
        """
        try:
            if self._session is None:
                with torch.no_grad():
                    return self._module(*inputs)
            names = [x.name for x in self._session.get_inputs()]
            values = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
            return torch.from_numpy(self._session.run(None, values)[0])
        except Exception as e:  # PyTorch's guards and onnxruntime's classes of errors have no common base
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
            raise UserError(f"{self.path} cannot be run on inputs of {shapes}: {e}") from e

    def _open_onnx(self) -> str | None:
        need("onnxruntime")
        import onnxruntime  # optional: only who runs an ONNX file needs it

        options = onnxruntime.SessionOptions()
        options.enable_mem_pattern = False  # plans for one size; for networks of any size it doubles the memory
        try:
            self._session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime has a class for each of a dozen reasons, with no common base
            raise UserError(f"cannot read {self.path}: {e}") from None
        return self._session.get_modelmeta().custom_metadata_map.get(METADATA)

    def _open_pt2(self) -> str | None:
        extra = {METADATA: ""}
        try:
            self._module = torch.export.load(self.path, extra_files=extra).module()
        except Exception as e:  # whatever unpacking a foreign or damaged archive ends in
            raise UserError(f"cannot read {self.path}: {e}") from None
        return extra[METADATA]


def need(*modules: str) -> None:
    """Raise UserError if one of the optional libraries is missing."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX needs {' and '.join(missing)}: pip install onnx onnxscript onnxruntime (or export to .pt2, which "
            "needs none of them)"
        )
