"""Two machines under torchrun, as docs/distributed.md has it: both on this one, with gloo on the CPU."""

import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.training import PATCHDCT, metrics_of, same


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(machine: int, endpoint: str, output: Path, *opts: str) -> subprocess.Popen:
    """Start one machine's part of a training; its output goes to a file, as a full pipe would stop it."""
    launcher = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d"]
    launcher += ["--rdzv_id", "two_machines", "--rdzv_endpoint", endpoint]
    command = PATCHDCT.command("OUTPUT_DIR", output / "out", *opts, launcher=launcher)
    with open(output / f"machine_{machine}.txt", "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_two_machines_train_and_evaluate_as_one_does(tmp_path):
    endpoint = f"127.0.0.1:{free_port()}"
    machines = [start(machine, endpoint, tmp_path, "SOLVER.MAX_ITER", "2") for machine in (0, 1)]
    try:
        statuses = [machine.wait(timeout=120) for machine in machines]
    finally:
        for machine in machines:
            machine.terminate()  # torchrun then ends its processes, too; one that has ended is left alone
    assert statuses == [0, 0], (tmp_path / "machine_0.txt").read_text()[-3000:]
    out = tmp_path / "out"
    for rank, log in enumerate(("log.txt", "log.txt.rank1")):
        assert f"Rank of current process: {rank}. World size: 2" in (out / log).read_text()

    assert same(PATCHDCT.evaluate(tmp_path / "alone", out / "model_final.pth"), metrics_of(out))
