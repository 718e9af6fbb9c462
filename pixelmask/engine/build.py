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
        UserError: before it takes more than half of the memory that the machine has, or one layer more than an 8th, and
            for layers of less than no channels.
    """
    try:
        with _Bounded(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2):
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
            size = math.prod(args[0]) * dtype.itemsize
            self.taken += size
            # The second before much of it is taken: what is out of all bounds comes as one layer among small ones
            if self.taken > self.limit or size > self.limit // 4:
                sides = " x ".join(map(str, args[0]))
                raise UserError(
                    f"the model takes more than it can have of the {self.limit / 2**29:.0f} GiB of memory here, as far "
                    f"as a layer of {sides}; {_WAY_OUT}"
                )
        return func(*args, **(kwargs or {}))


_FACTORIES = {getattr(torch.ops.aten, name).default for name in ("zeros", "ones", "rand", "randn")}
_FACTORIES |= {torch.ops.aten.empty.memory_format}
