"""Start a training or evaluation in one process, on several GPUs, on several machines, or under torchrun."""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm

from ..cli import run
from ..errors import UserError
from .compat import create_local_process_group


def launch(main: Callable[[Any], object], args: Any) -> object:
    """Run ``main(args)`` on every process.

    Under torchrun (recognised by its environment variables) this process is one of them, with NCCL on GPUs and gloo on
    the CPU; else Detectron2 starts ``args.num_gpus`` processes on each of ``args.num_machines``.

    Raises:
        UserError: if more GPUs are asked for than there are, or several machines without GPUs or an address.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _join_torchrun()
        try:
            return run(main, args)
        finally:
            # Detectron2 holds on to a group of its own, whose threads would outlive the main one and abort at exit
            comm._get_global_gloo_group.cache_clear()
            dist.destroy_process_group()
    if args.num_gpus > max(torch.cuda.device_count(), 1):
        raise UserError(
            f"--num-gpus {args.num_gpus}, but this machine has {torch.cuda.device_count()} usable GPUs; "
            f"to run on several CPU processes: torchrun --nproc_per_node={args.num_gpus} tools/train_net.py ..."
        )
    if args.num_machines > 1 and not torch.cuda.is_available():
        raise UserError("--num-machines is for machines with GPUs; on CPUs: torchrun --nnodes, see docs/distributed.md")
    if args.num_machines > 1 and args.dist_url == "auto":
        raise UserError("several machines need the first one's address on all: --dist-url tcp://ADDRESS:PORT")
    try:
        return detectron2_launch(
            run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
        )
    except torch.multiprocessing.ProcessExitedException as e:
        # The process has told what was wrong
        raise SystemExit(e.exit_code or 1) from None


def _join_torchrun() -> None:
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    # PyTorch's own timeout for NCCL is shorter than an evaluation on the first process may take
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=DEFAULT_TIMEOUT)
    create_local_process_group(local_size)
