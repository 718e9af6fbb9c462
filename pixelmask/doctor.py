"""Tell what is installed, what is missing, and how to get it: ``python -m pixelmask.doctor``.

Libraries are imported one by one while they are examined, so the report also comes where some are absent or broken.
Where importing the package itself fails, for want of a torch and torchvision that match, run the file:
``python pixelmask/doctor.py``.
"""

import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import NamedTuple

INSTALL = "make install"
DETECTRON2_SOURCE = "https://github.com/facebookresearch/detectron2/blob/main/INSTALL.md"
TORCH_PAIR = "a matching pair of torch and torchvision: https://pytorch.org/get-started/locally/"


class Check(NamedTuple):
    """One row: what was looked for, how it stands, what was found, and what to do about it.

    ``status`` is "ok", "missing", "broken" (there, but unusable) or "partial" (some of its files). A ``required``
    thing that is not "ok" makes the exit status 1.
    """

    name: str
    status: str
    found: str
    remedy: str = ""
    required: bool = False


class DataSet(NamedTuple):
    """The paths of a data set below ``$DETECTRON2_DATASETS``, and where to get them."""

    name: str
    paths: tuple[str, ...]
    remedy: str


COCO_PAGE = "https://cocodataset.org/#download"
LVIS_PAGE = "https://www.lvisdataset.org/dataset"
CASCADEPSP_PAGE = "https://github.com/hkchengrex/CascadePSP/blob/master/docs/dataset.md"
LAYOUT = "layout: datasets/README.md"
COCOFIED = "python datasets/prepare_lvis_cocofied.py (datasets/README.md) makes it from"
DATA_SETS = (
    DataSet(
        "COCO 2017",
        (
            "coco/annotations/instances_train2017.json",
            "coco/annotations/instances_val2017.json",
            "coco/train2017",
            "coco/val2017",
        ),
        f"{COCO_PAGE}; {LAYOUT}",
    ),
    DataSet("LVIS v0.5", ("lvis/lvis_v0.5_train.json", "lvis/lvis_v0.5_val.json"), f"{LVIS_PAGE}; {LAYOUT}"),
    DataSet("LVIS v0.5 cocofied", ("lvis/lvis_v0.5_val_cocofied.json",), f"{COCOFIED} LVIS v0.5"),
    DataSet("LVIS v1", ("lvis/lvis_v1_train.json", "lvis/lvis_v1_val.json"), f"{LVIS_PAGE}; {LAYOUT}"),
    DataSet("LVIS v1 cocofied", ("lvis/lvis_v1_val_cocofied.json",), f"{COCOFIED} LVIS v1"),
    DataSet(
        "Cityscapes",
        tuple(f"cityscapes/{kind}/{split}" for kind in ("leftImg8bit", "gtFine") for split in ("train", "val")),
        f"https://www.cityscapes-dataset.com/downloads; {LAYOUT}",
    ),
    DataSet("AIRM training", ("MSRA10K", "DUTS-TR", "DUTS-TE", "ECSSD", "FSS-1000"), f"where to get them, {LAYOUT}"),
    DataSet("DUT-OMRON", ("DUT-OMRON",), f"http://saliencydetection.net/dut-omron; {LAYOUT}"),
    DataSet("BIG", ("BIG",), f"{CASCADEPSP_PAGE}; {LAYOUT}"),
    DataSet("VOC 2012 relabelled", ("VOC2012_relabelled",), f"{CASCADEPSP_PAGE}; {LAYOUT}"),
    DataSet("shapes (synthetic)", ("shapes",), "made on first use, for example by: make demo"),
)


def examine() -> list[Check]:
    """Examine this interpreter and the data sets, in the order of the report."""
    return [
        Check("Python", "ok", f"{platform.python_version()} at {sys.executable}"),
        *_examine_torch(),
        _examine_detectron2(),
        _examine_library("pycocotools", "pycocotools.mask", required=True),
        _examine_library("faster-coco-eval", "faster_coco_eval", required=True),
        _examine_library("lvis", "lvis"),
        _examine_library("cityscapesscripts", "cityscapesscripts.helpers.labels"),
        *_examine_data_sets(Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()),
    ]


def main() -> int:
    """Print the report; return the exit status, 1 if something required is missing or broken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what old libraries say about new ones while they are imported
        checks = examine()
    sys.stdout.write(_render(checks))
    return int(any(check.required and check.status != "ok" for check in checks))


def _probe(name: str, module: str, describe: Callable[[], str], remedy: str, required: bool) -> Check:
    """Return the row of ``module``, which is "ok" when ``describe`` can use it and say what it found."""
    try:
        return Check(name, "ok", describe(), required=required)
    except ModuleNotFoundError as error:
        status = "missing" if error.name == module else "broken"  # broken: it lacks something of its own
        return Check(name, status, f"no module {error.name}", remedy, required)
    except Exception as error:  # a library built for another one fails in whatever way it likes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Check(name, "broken", reason, remedy, required)


def _examine_torch() -> Iterator[Check]:
    def torchvision() -> str:
        ops, torch = import_module("torchvision.ops"), import_module("torch")
        ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # what fails first where the two do not match
        return f"{metadata.version('torchvision')}, its operators work with this torch"

    def cuda() -> str:
        cuda = import_module("torch").cuda
        if not cuda.is_available():
            return "no device; everything runs on the CPU"
        return ", ".join(cuda.get_device_name(index) for index in range(cuda.device_count()))

    yield _probe("torch", "torch", lambda: str(import_module("torch").__version__), INSTALL, required=True)
    yield _probe("torchvision", "torchvision", torchvision, TORCH_PAIR, required=True)
    yield _probe("CUDA", "torch", cuda, INSTALL, required=False)


def _examine_detectron2() -> Check:
    def describe() -> str:
        package = import_module("detectron2")
        folder = Path(str(package.__file__)).parent
        import_module("detectron2.modeling")
        compiled = any(folder.glob("_C.*"))
        if compiled:
            import_module("detectron2._C")  # fails where it was compiled for another torch
        return f"{package.__version__}, {'compiled' if compiled else 'pure Python'}, at {folder}"

    remedy = f"pure Python: python tools/install_detectron2.py; compiled: {DETECTRON2_SOURCE}"
    return _probe("Detectron2", "detectron2", describe, remedy, required=True)


def _examine_library(distribution: str, module: str, required: bool = False) -> Check:
    def describe() -> str:
        import_module(module)
        return metadata.version(distribution)

    return _probe(distribution, module.partition(".")[0], describe, f"pip install {distribution}", required)


def _examine_data_sets(root: Path) -> Iterator[Check]:
    """Yield a row for the root and one for each known data set; none of them is required."""
    if root.is_dir():
        yield Check("data sets", "ok", f"in {root.absolute()}")
    else:
        yield Check(
            "data sets", "missing", f"no folder {root.absolute()}", "export DETECTRON2_DATASETS=/your/data/sets"
        )
    for name, paths, remedy in DATA_SETS:
        absent = [path for path in paths if not _has_content(root / path)]
        if not absent:
            yield Check(name, "ok", ", ".join(paths))
        else:
            yield Check(
                name, "missing" if len(absent) == len(paths) else "partial", f"absent: {', '.join(absent)}", remedy
            )


def _has_content(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0


def _render(checks: list[Check]) -> str:
    """Return the report as a table; as plain lines where rich is one of the things that are missing."""
    details = ["\n".join(filter(None, (check.found, check.remedy))) for check in checks]
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return "".join(
            f"{check.name}: {check.status}\n{detail}\n" for check, detail in zip(checks, details, strict=True)
        )
    table = Table("", "status", "what was found, or how to get it", show_lines=True)
    for check, detail in zip(checks, details, strict=True):
        colour = "green" if check.status == "ok" else "red" if check.required else "yellow"
        table.add_row(check.name, Text(check.status, colour), Text(detail, overflow="fold"))
    console = Console()
    with console.capture() as captured:
        console.print(table)
    return captured.get()


if __name__ == "__main__":
    sys.exit(main())
