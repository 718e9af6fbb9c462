"""Building models that this machine has the memory for."""

import math
import os
from typing import Any

import torch
from detectron2 import modeling
from detectron2.config import CfgNode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import UserError

_WAY_OUT = "correct the config's numbers of channels, classes and dimensions"


def build_model(cfg: CfgNode) -> Any:
    """Build a config's model as Detectron2 does.

    Raises:
        UserError: before it takes more memory than the machine has, and for layers of less than no channels.
    """
    try:
        with _Bounded(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
            return modeling.build_model(cfg)
    except RuntimeError as e:
        if "negative dimension" not in str(e):
            raise
        raise UserError(f"the model cannot be built: {e}; {_WAY_OUT}") from None


class _Bounded(TorchDispatchMode):
    """Counts the tensors that are made, most of which a model that is being built keeps."""

    def __init__(self, limit: int):
        super().__init__()
        self.limit, self.taken = limit, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FACTORIES:
            dtype = (kwargs or {}).get("dtype") or torch.get_default_dtype()
            self.taken += math.prod(args[0]) * dtype.itemsize
            if self.taken > self.limit:
                sides = " x ".join(map(str, args[0]))
                raise UserError(
                    f"the model takes more than the {self.limit / 2**30:.0f} GiB of memory here, as far as a layer of "
                    f"{sides}; {_WAY_OUT}"
                )
        return func(*args, **(kwargs or {}))


_FACTORIES = {getattr(torch.ops.aten, name).default for name in ("zeros", "ones", "rand", "randn")}
_FACTORIES |= {torch.ops.aten.empty.memory_format}
