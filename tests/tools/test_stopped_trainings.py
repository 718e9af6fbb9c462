"""Trainings that a signal stops, that find a disk full, or another training at work: nothing is lost."""

import os
import signal
import time

import pytest

from patchdct import Trainer
from pixelmask.files import only_writer
from tests.support.training import CLEAN, PATCHDCT, little_space, metrics_of

pytestmark = pytest.mark.usefixtures("data_root")


def train(environment: dict[str, str], *opts: object) -> None:
    os.environ.update(environment)
    PATCHDCT.run(*opts)


def test_sigterm_writes_a_checkpoint_to_resume_from(tmp_path):
    opts = ["OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "7"]
    process = CLEAN.Process(target=train, args=[dict(os.environ), *opts, "DATALOADER.NUM_WORKERS", "1"])
    process.start()
    deadline = time.time() + 120
    while not (tmp_path / "model_0000006.pth").exists() and time.time() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143
    last = (tmp_path / "last_checkpoint").read_text()
    done = int(last.removeprefix("model_").removesuffix(".pth")) + 1
    assert done >= 7 and not list(tmp_path.glob("*.partial")) and not (tmp_path / ".lock").exists()
    log = tmp_path / "log.txt"
    before = len(log.read_text())
    PATCHDCT.run("OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", done + 2, options=["--resume"])
    assert f"Starting training from iteration {done}" in log.read_text()[before:]
    assert "Traceback" not in log.read_text() and (tmp_path / "model_final.pth").is_file()


def test_an_evaluation_stops_at_once(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(Trainer, "evaluate", lambda *_: signal.raise_signal(signal.SIGINT))
        PATCHDCT.run("OUTPUT_DIR", tmp_path, "TEST.EVAL_PERIOD", "2", "SOLVER.CHECKPOINT_PERIOD", "100")
    printed = capsys.readouterr()
    assert left.value.code == 130 and "Traceback" not in printed.out + printed.err
    assert f"error: stopped by Ctrl-C: 2 of 3 iterations are done and kept in {tmp_path}; --resume" in printed.err
    assert [path.name for path in tmp_path.glob("*.pth")] == ["model_0000001.pth"]
    PATCHDCT.run("OUTPUT_DIR", tmp_path, options=["--resume"])
    assert set(metrics_of(tmp_path)) == {"bbox", "segm", "boundary"}


def test_a_full_disk_is_one_sentence(tmp_path, capsys):
    opts = ["OUTPUT_DIR", tmp_path, "SOLVER.CHECKPOINT_PERIOD", "1"]
    for name in ("model_0000000.pth", "last_checkpoint"):
        (tmp_path / name).write_text("old")
    with little_space(2**17), pytest.raises(SystemExit) as left:
        PATCHDCT.run(*opts)
    printed = capsys.readouterr()
    assert left.value.code == 1 and "Traceback" not in printed.out + printed.err
    assert printed.err.endswith(f"error: cannot read or write {tmp_path / 'model_0000000.pth'}: File too large\n")
    assert all((tmp_path / name).read_text() == "old" for name in ("model_0000000.pth", "last_checkpoint"))


def test_one_training_writes_into_a_folder(tmp_path, fails):
    with only_writer(tmp_path), fails(f"another process writes into {tmp_path}"):
        PATCHDCT.run("OUTPUT_DIR", tmp_path, options=["--resume"])
    assert not list(tmp_path.iterdir())
