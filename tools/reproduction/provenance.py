"""What a figure stands on: the commit of the code, the annotations, and the schedule that was really run."""

import hashlib
import statistics
import subprocess
from pathlib import Path
from typing import Any

import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from msgspec import Struct

from pixelmask.checkpoint.files import read_torch
from pixelmask.schema import Number, read_lines

ROOT = Path(__file__).resolve().parents[2]


def commit(digits: int = 12) -> str | None:
    """Return the commit of this checkout, with "-dirty" if it was changed since; None outside of one."""
    command = ["git", "-C", str(ROOT), "describe", "--always", f"--abbrev={digits}", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def annotation_version(name: str) -> str:
    """Return the first digits of the sha256 of a registered data set's annotations.

    That of the JSON file where it has one; else that of the names and contents of its mask files, in their order.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file"):
        return file_version(Path(metadata.json_file))
    if metadata.get("gt_dir"):
        files = sorted(Path(metadata.gt_dir).rglob("*_instanceIds.png"))
    else:
        masks = ("mask_file_name", "coarse_file_name")
        files = [Path(record[key]) for record in DatasetCatalog.get(name) for key in masks if key in record]
    return _version(b"".join(file.name.encode() + hashlib.sha256(file.read_bytes()).digest() for file in files))


def file_version(path: Path) -> str:
    """Return the first digits of a file's sha256."""
    return _version(path.read_bytes())


def _version(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()[:12]}"


def schedule_of(checkpoint: Path) -> dict[str, Any]:
    """Return the schedule that led to a checkpoint of this project's trainer, as scaled to the processes that ran it.

    "iterations" are those really done, "batch" is in images of all processes, "lr" the highest learning rate.
    """
    content = read_torch(str(checkpoint))
    solver = yaml.safe_load(content["config"])["SOLVER"]
    return {"iterations": content["iteration"] + 1, "batch": solver["IMS_PER_BATCH"], "lr": solver["BASE_LR"]}


class _Timed(Struct):
    time: Number


def hours_of(metrics: Path, iterations: int) -> float | None:
    """Return the hours that the iterations took by the times in Detectron2's ``metrics.json``; None without any.

    Interruptions do not count. Times are logged once in several iterations.
    """
    times = [entry["time"] for entry in read_lines(metrics, _Timed)]
    return statistics.fmean(times) * iterations / 3600 if times else None
