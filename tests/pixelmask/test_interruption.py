"""Signals end a command in one sentence, where nothing is half done; so do disks that are full and streams that end."""

import argparse
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelmask.checkpoint import SafeCheckpointer
from pixelmask.cli import bounded, run, run_tool
from pixelmask.errors import UserError
from pixelmask.files import only_writer, whole_or_not_at_all, write_json, write_text
from pixelmask.images import write_picture
from pixelmask.interruption import check_interrupted, signals_wait, was_interrupted
from tests.support.training import little_space

SIGNALS = [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]


@pytest.fixture
def leaves(capsys):
    """A function that runs a command, which is to exit with a status and one sentence, and returns the sentence."""

    def check(main, status: int = 1) -> str:
        with pytest.raises(SystemExit) as left:
            run(main)
        error = capsys.readouterr().err
        assert left.value.code == status and error.count("\n") == 1 and error.startswith("error: ")
        return error

    return check


@pytest.mark.parametrize(("number", "status", "name"), SIGNALS)
def test_a_signal_ends_a_command_in_one_sentence(leaves, tmp_path, number, status, name):
    handler = signal.getsignal(number)
    write_text(tmp_path / "old", "old")

    def main() -> None:
        with whole_or_not_at_all(tmp_path / "old") as temporary:
            temporary.write_text("half of the n")
            try:
                signal.raise_signal(number)
            finally:
                signal.raise_signal(signal.SIGTERM)  # of an impatient scheduler: files are being put in order

    assert f"stopped by {name}" in leaves(main, status)
    assert [path.name for path in tmp_path.iterdir()] == ["old"] and (tmp_path / "old").read_text() == "old"
    assert signal.getsignal(number) is handler and not was_interrupted()


def test_signals_can_wait(leaves):
    done = []

    def main() -> None:
        with signals_wait():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("all of it")
            with signals_wait(False):  # has it waiting
                done.append("more")

    leaves(main, 143)
    assert done == ["all of it"]


def test_a_signal_that_a_callback_has_swallowed_is_found(leaves, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda of_python: None)

    class Deaf:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def main() -> None:
        Deaf()
        check_interrupted()

    leaves(main, 143)


def test_a_signal_that_is_ignored_stays_so():
    """As of nohup, and of what a script starts with &."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run(lambda: signal.raise_signal(signal.SIGINT) or "done") == "done"
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_tool_that_another_runs_gets_its_signal(leaves, tmp_path):
    code = "signal.signal(15, lambda *_: sys.exit(Path('stopped').touch())); Path('ready').touch(); time.sleep(60)"
    command = [sys.executable, "-c", f"import os, signal, sys, time; from pathlib import Path; {code}"]

    def stop() -> None:
        while not Path("ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        threading.Thread(target=stop).start()
        leaves(lambda: run_tool(command), 143)
    assert (tmp_path / "stopped").exists() and run_tool([sys.executable, "-c", "exit(3)"]) == 3


# Disks


NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
WRITERS = {
    "a.json": lambda path: write_json(path, list(range(5000))),
    "a.png": lambda path: write_picture(path, NOISE),
    "a.jpg": lambda path: write_picture(path, NOISE, quality=95),
    "model.pth": lambda path: SafeCheckpointer(torch.nn.Linear(100, 100), str(path.parent)).save("model"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_sentence_and_leaves_old_files(leaves, tmp_path, name):
    (tmp_path / name).write_text("old")
    with little_space(1000):
        error = leaves(lambda: WRITERS[name](tmp_path / name))
    assert f"cannot read or write {tmp_path / name}: File too large" in error
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES])
def test_what_a_disk_says_is_passed_on(leaves, tmp_path, number):
    def main() -> None:
        with whole_or_not_at_all(tmp_path / "a"):
            try:
                raise OSError(number, os.strerror(number))
            except OSError:
                raise RuntimeError("unexpected pos 64 vs 0") from None  # as torch.save has it

    assert f"{tmp_path / 'a'}: {os.strerror(number)}" in leaves(main)


def test_sizes_for_which_there_is_no_memory(leaves):
    enormous = 2**26
    for make in (lambda: np.empty((enormous, enormous)), lambda: torch.empty(enormous, enormous)):
        assert leaves(make).startswith("error: no memory left: ")


def test_sizes_are_whole_numbers_within_bounds():
    assert bounded(1, 8)("8") == 8
    for text in ("-7", "0", "1000000"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"{text} is not from 1 to 8"):
            bounded(1, 8)(text)


def test_places_that_cannot_be(leaves, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for place in ("loop/a.json", "file/a.json", f"{'x' * 300}.json", f"{'x' * 300}/a.json"):
        assert str(tmp_path) in leaves(lambda place=place: write_json(tmp_path / place, 0))
    with pytest.raises(UserError, match="its name is too long"):
        write_json(tmp_path / f"{'x' * 300}.json", 0)
    with pytest.raises(UserError, match=r"cannot write .*a\.xyz"):
        write_picture(tmp_path / "a.xyz", NOISE)
    with pytest.raises(UserError, match=r"cannot write .*a\.jpg"):
        write_picture(tmp_path / "a.jpg", np.zeros((1, 70000), np.uint8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


def test_pictures_are_what_their_names_say(tmp_path):
    for name, kind in (("a.JPG", "JPEG"), ("b.png", "PNG"), ("c.tif", "TIFF")):
        write_picture(tmp_path / "folder" / name, NOISE)
        assert Image.open(tmp_path / "folder" / name).format == kind
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "folder/b.png")), NOISE)


def test_a_folder_has_one_writer(tmp_path):
    (tmp_path / ".lock").write_text("of a process that was killed")
    with only_writer(tmp_path):
        with pytest.raises(UserError, match=f"another process writes into {tmp_path}"), only_writer(tmp_path):
            pass
        assert (tmp_path / ".lock").exists()
    with only_writer(tmp_path / "new"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


# Streams


def test_streams_that_end_and_terminals_that_know_few_letters(tmp_path):
    code = "import sys; from pixelmask.cli import run; run(lambda: print('\\u00fc' * int(sys.argv[1])))"

    def start(letters: int, redirection: str, **environment: str) -> subprocess.CompletedProcess:
        command = f'{sys.executable} -c "$CODE" {letters} {redirection}'
        environment = {**os.environ, "CODE": code, **environment}
        return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)

    assert start(1, "", PYTHONIOENCODING="ascii").stdout == "\\xfc\n"
    closed = start(1, ">&-")
    assert (closed.returncode, closed.stderr) == (0, "")
    full = start(1, ">/dev/full")
    unwritable = "error: cannot read or write standard output or a file: "
    assert (full.returncode, full.stderr) == (1, f"{unwritable}No space left on device\n")
    broken = start(200000, "| true; exit ${PIPESTATUS[0]}")
    assert (broken.returncode, broken.stderr) == (1, f"{unwritable}Broken pipe\n")
