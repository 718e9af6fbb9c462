"""What Detectron2 v0.5 misses when it runs as pure Python beside today's torch, numpy and Pillow.

``tools/install_detectron2.py`` copies this module into the package it builds from PyPI's source archive, as
``detectron2/_pypi_shims.py``, and has ``detectron2/__init__.py`` import it: the shims act before any other Detectron2
module is loaded. Nothing else in the package is changed, and a Detectron2 from elsewhere never sees this file.
"""

import sys
import types
import warnings
from typing import NoReturn

import numpy as np
from PIL import Image


class _NotCompiled(types.ModuleType):
    """Stands where the compiled operators would: importing it is fine, using one says what is missing."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # inspect, copy, doctest and torch.compile probe for these
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        raise ImportError(
            f"detectron2._C.{name} is a compiled operator, and this Detectron2 was installed from PyPI as pure Python. "
            "Rotated boxes, deformable convolution and the fast COCO evaluation need a compiled one: "
            "run `pip uninstall detectron2` and follow Detectron2's INSTALL.md."
        )


def _supply_compiled_module() -> None:
    """Let the `from detectron2 import _C` at the top of four v0.5 modules succeed, although the archive has no C++.

    It is an attribute of the package only, not an entry of `sys.modules`: to `import detectron2._C` and
    `importlib.util.find_spec` the module stays absent, so that Detectron2's own environment report (`default_setup`
    logs it) and other probes see the truth.
    """
    package = sys.modules[__package__]
    package._C = _NotCompiled(f"{__package__}._C")  # type: ignore[attr-defined]


def _restore_removed_aliases() -> None:
    """Give back names that v0.5 uses and newer libraries dropped, wherever they are absent.

    Pillow 10 removed `Image.LINEAR`, a default argument in `data/transforms/transform.py`. numpy 1.24 removed the
    aliases of Python's own types (2.0 brought `bool` back): bitmasks need `np.bool`, and without `np.int`
    `data/build.py` silently skips its class histogram and with it the check of the category ids.
    """
    if not hasattr(Image, "LINEAR"):
        Image.LINEAR = Image.BILINEAR  # type: ignore[attr-defined]
    for alias in (bool, float, int, str):
        if alias.__name__ not in vars(np):
            setattr(np, alias.__name__, alias)


def _silence_notices_to_authors() -> None:
    """Drop what torch and setuptools tell the authors of v0.5, which will not change any more, on every run."""
    for message in (
        "torch.meshgrid: in an upcoming",
        "`torch.jit.script` is deprecated",
        "pkg_resources is deprecated",
    ):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", message="Creating a tensor from a list of numpy", module=__package__)


_supply_compiled_module()
_restore_removed_aliases()
_silence_notices_to_authors()
