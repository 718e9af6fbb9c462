"""What a training prints, and what its file has."""

import argparse
import io
import logging
import re
import sys
import warnings

from detectron2.config import get_cfg
from termcolor import colored

from pixelmask.engine.log import default_setup, logged


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(monkeypatch, stream: io.StringIO, work) -> list[str]:
    """The lines that a piece of work prints, without their times."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with logged() as log:
            work(log)
    return [re.sub(r"\[\d\d/\d\d [\d:]{8} ", "[", line) for line in stream.getvalue().splitlines()]


def test_the_config_goes_to_the_file_alone(tmp_path, monkeypatch):
    cfg = get_cfg()
    cfg.SEED = 1
    cfg.OUTPUT_DIR = str(tmp_path)

    def work(log):
        log.keep(str(tmp_path))
        default_setup(cfg, argparse.Namespace(config_file=""))

    lines = printed(monkeypatch, io.StringIO(), work)
    file = (tmp_path / "log.txt").read_text()
    assert "MAX_ITER: 40000" in file and "\x1b" not in file
    assert len(lines) == 5 and not any("MAX_ITER" in line for line in lines)
    long = [line for line in lines if line.endswith(f" lines in {tmp_path}/log.txt)")]
    assert [line.split(": ")[1].split(" (")[0] for line in long] == ["Environment info", "Running with full config"]


def test_only_short_tables_are_printed_whole_and_everything_is_in_the_file(tmp_path, monkeypatch):
    def work(log):
        logger = logging.getLogger("detectron2.evaluation")
        logger.info("before")
        log.keep(str(tmp_path))
        logger.info("AP:\n%s", "| 1 |\n" * 3)
        logger.info("AP:\n%s", "| 2 |\n" * 30)

    lines = printed(monkeypatch, io.StringIO(), work)
    at = "[detectron2.evaluation]: "
    long = f"{at}AP: (30 lines in {tmp_path}/log.txt)"
    assert lines == [f"{at}before", f"{at}AP:", "| 1 |", "| 1 |", "| 1 |", long]
    file = (tmp_path / "log.txt").read_text()
    assert file.count("| 2 |") == 30 and "INFO: before" in file


def test_each_warning_is_printed_once_and_again_at_the_end(tmp_path, monkeypatch):
    def work(log):
        log.keep(str(tmp_path))
        for _ in range(3):
            logging.getLogger("fvcore").warning("lost %s", "weight")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("an array is odd", UserWarning)

    lines = printed(monkeypatch, io.StringIO(), work)
    place = rf"{re.escape(__file__)}:\d+: UserWarning: an array is odd"
    expected = [
        r"\[fvcore\]: WARNING lost weight",
        rf"\[py\.warnings\]: WARNING {place}",
        r"\[pixelmask\.engine\.log\]: 2 warnings of this run, for a second look:",
        r"\[pixelmask\.engine\.log\]:   lost weight \(3 times\)",
        rf"\[pixelmask\.engine\.log\]:   {place}",
    ]
    assert len(lines) == 5 and all(map(re.fullmatch, expected, lines)), lines
    assert (tmp_path / "log.txt").read_text().count("WARNING: lost weight") == 3


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    def work(log):
        logging.getLogger("airm").info("%s", colored("name", "blue", force_color=True))

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert printed(monkeypatch, io.StringIO(), work) == ["[airm]: name"]
    assert "\x1b[34mname" in printed(monkeypatch, Terminal(), work)[0]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in printed(monkeypatch, Terminal(), work)[0]
