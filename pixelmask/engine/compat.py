"""What exists only because of a library's age, each piece with the version from which it can go."""

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch.distributed as dist
from detectron2.engine import AMPTrainer, DefaultTrainer
from detectron2.utils import comm

# Goes after Detectron2 v0.6: whether its AMPTrainer takes another precision than float16
AMP_TAKES_PRECISION = "precision" in inspect.signature(AMPTrainer).parameters


class StatefulTrainer(DefaultTrainer):
    """DefaultTrainer whose checkpoints keep the state of the optimizer and of AMP. Goes with Detectron2 v0.6."""

    def state_dict(self) -> dict[str, Any]:
        return {"_trainer": self._trainer.state_dict(), **super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "load_state_dict" not in vars(DefaultTrainer):
            self._trainer.load_state_dict(state_dict["_trainer"])


def create_local_process_group(size: int) -> None:
    """Make the group of the ``size`` processes on this machine. Goes after Detectron2 v0.6, whose launcher has it only.

    Args:
        size: the same on all machines, whose processes have ranks in a row.
    """
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(size)
        return
    for first in range(0, dist.get_world_size(), size):
        group = dist.new_group(list(range(first, first + size)))
        if first <= dist.get_rank() < first + size:
            comm._LOCAL_PROCESS_GROUP = group


def numpy_float() -> AbstractContextManager[None]:
    """Give numpy its old name of ``float``, which numpy 1.24 dropped. Goes after lvis 0.5.3, which asks for it."""
    return replaced(np, "float", float)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give a module, class or object another attribute for as long as the context lasts."""
    absent = object()
    before = vars(owner).get(name, absent)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is absent:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
