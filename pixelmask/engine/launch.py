"""Start a training or evaluation in one process, on several GPUs, on several machines, or under torchrun."""

import datetime
import multiprocessing
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm

from ..cli import run
from ..errors import UserError
from ..interruption import Interrupted, check_interrupted
from .compat import create_local_process_group

T = TypeVar("T")


def launch(main: Callable[[Any], object], args: Any) -> object:
    """Run ``main(args)`` on every process.

    Under torchrun (recognised by its environment variables) this process is one of them, with NCCL on GPUs and gloo on
    the CPU; else Detectron2 starts ``args.num_gpus`` processes on each of ``args.num_machines``.

    Raises:
        UserError: if more GPUs are asked for than there are, or several machines without GPUs or an address.
    """
    if _under_torchrun():
        return _run_in_group(main, args)
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
    except Interrupted as e:
        for process in multiprocessing.active_children():  # which a scheduler may know nothing of
            os.kill(process.pid or 0, e.received)
            process.join()
        raise


def launch_shards(main: Callable[[Any], object], args: Any) -> object:
    """Run ``main(args)`` on this process, which under torchrun is one of several that share the work.

    They talk to each other on the CPU, seldom, and wait for each other as long as it takes; several may use one GPU.
    See :class:`~pixelmask.progress.Progress`.
    """
    return _run_in_group(main, args, shards=True) if _under_torchrun() else run(main, args)


def on_main_process(work: Callable[[], T]) -> T:
    """Do what only the first process is to do, and return its result on all.

    Raises:
        UserError: on the first process, what its work raised; the others exit.
    """
    outcome: tuple[Any, Exception | None] = None, None
    if comm.is_main_process():
        try:
            outcome = work(), None
        except (UserError, OSError) as e:
            outcome = None, e
    result, error = gather(outcome)[0]
    if error is None:
        return result
    raise error if comm.is_main_process() else SystemExit(1)


def gather(of_process: T) -> list[T]:
    """Return what each process gives, on all of them.

    Raises:
        UserError: if one of them has ended.
    """
    try:
        return comm.all_gather(of_process)
    except RuntimeError as e:
        check_interrupted()
        raise UserError(f"another process has ended, see above: {e}") from None


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _run_in_group(main: Callable[[Any], object], args: Any, shards: bool = False) -> object:
    def joined(args: Any) -> object:
        _join_torchrun(shards)
        return main(args)

    try:
        return run(joined, args)
    finally:
        # Detectron2 holds on to a group of its own, whose threads would outlive the main one and abort at exit
        comm._get_global_gloo_group.cache_clear()
        if dist.is_initialized():
            dist.destroy_process_group()


def _join_torchrun(shards: bool) -> None:
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(local_rank % gpus if shards else local_rank)
    # PyTorch's own timeout for NCCL is shorter than an evaluation on the first process may take
    timeout = datetime.timedelta(days=30) if shards else DEFAULT_TIMEOUT
    dist.init_process_group("nccl" if gpus and not shards else "gloo", timeout=timeout)
    create_local_process_group(local_size)
