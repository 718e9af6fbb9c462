"""Tell what is installed, what is missing, and how to get it: ``python -m pixelmask.doctor``.

First comes what Detectron2 or PyTorch tell of the environment, then a table of what these do not: whether the
libraries work together, data sets, and remedies. Libraries are imported one by one while they are examined, so the
report also comes where some are absent or broken. Where importing the package itself fails, for want of a torch and
torchvision that match, run the file: ``python pixelmask/doctor.py``.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import NamedTuple

INSTALL = "make install"
DETECTRON2_SOURCE = "https://github.com/facebookresearch/detectron2/blob/main/INSTALL.md"
TORCH_PAIR = "a matching pair of torch and torchvision: https://pytorch.org/get-started/locally/"
ENVIRONMENT = (("detectron2.utils.collect_env", "collect_env_info"), ("torch.utils.collect_env", "get_pretty_env_info"))

LAYOUT = "layout: datasets/README.md"
LVIS = f"https://www.lvisdataset.org/dataset; {LAYOUT}"
CASCADEPSP = f"https://github.com/hkchengrex/CascadePSP/blob/master/docs/dataset.md; {LAYOUT}"
COCOFIED = "python datasets/prepare_lvis_cocofied.py (datasets/README.md) makes it from"
# By name: where to get it, and its paths below $DETECTRON2_DATASETS
DATA_SETS: dict[str, tuple[str, list[str]]] = {
    "COCO 2017": (
        f"https://cocodataset.org/#download; {LAYOUT}",
        [*(f"coco/annotations/instances_{s}2017.json" for s in ("train", "val")), "coco/train2017", "coco/val2017"],
    ),
    "LVIS v0.5": (LVIS, ["lvis/lvis_v0.5_train.json", "lvis/lvis_v0.5_val.json"]),
    "LVIS v0.5 cocofied": (f"{COCOFIED} LVIS v0.5", ["lvis/lvis_v0.5_val_cocofied.json"]),
    "LVIS v1": (LVIS, ["lvis/lvis_v1_train.json", "lvis/lvis_v1_val.json"]),
    "LVIS v1 cocofied": (f"{COCOFIED} LVIS v1", ["lvis/lvis_v1_val_cocofied.json"]),
    "Cityscapes": (
        f"https://www.cityscapes-dataset.com/downloads; {LAYOUT}",
        [f"cityscapes/{kind}/{split}" for kind in ("leftImg8bit", "gtFine") for split in ("train", "val")],
    ),
    "AIRM training": (f"where to get them, {LAYOUT}", ["MSRA10K", "DUTS-TR", "DUTS-TE", "ECSSD", "FSS-1000"]),
    "DUT-OMRON": (f"http://saliencydetection.net/dut-omron; {LAYOUT}", ["DUT-OMRON"]),
    "BIG": (CASCADEPSP, ["BIG"]),
    "VOC 2012 relabelled": (CASCADEPSP, ["VOC2012_relabelled"]),
    "shapes (synthetic)": ("made on first use, for example by: make demo", ["shapes"]),
}


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


def environment() -> str:
    """Return what Detectron2, or PyTorch where that cannot, tells of libraries and devices; "" where neither can."""
    for module, function in ENVIRONMENT:
        try:
            return getattr(import_module(module), function)()
        except Exception:  # the table tells what is wrong
            continue
    return ""


def examine() -> list[Check]:
    """Examine the libraries and the data sets, in the order of the report."""
    detectron2 = f"pure Python: python tools/install_detectron2.py; compiled: {DETECTRON2_SOURCE}"
    return [
        _probe("torch", "torch", lambda: str(import_module("torch").__version__), INSTALL, required=True),
        _probe("torchvision", "torchvision", _use_torchvision, TORCH_PAIR, required=True),
        _probe("Detectron2", "detectron2", _use_detectron2, detectron2, required=True),
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
        report, checks = environment(), examine()
    sys.stdout.write(f"Python {sys.version.split()[0]} at {sys.executable}\n{report}\n{_render(checks)}")
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


def _use_torchvision() -> str:
    ops, torch = import_module("torchvision.ops"), import_module("torch")
    ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # what fails first where the two do not match
    return f"{metadata.version('torchvision')}, its operators work with this torch"


def _use_detectron2() -> str:
    package = import_module("detectron2")
    folder = Path(str(package.__file__)).parent
    import_module("detectron2.modeling")
    compiled = any(folder.glob("_C.*"))
    if compiled:
        import_module("detectron2._C")  # fails where it was compiled for another torch
    return f"{package.__version__}, {'compiled' if compiled else 'pure Python'}, at {folder}"


def _examine_library(distribution: str, module: str, required: bool = False) -> Check:
    def describe() -> str:
        import_module(module)
        return metadata.version(distribution)

    return _probe(distribution, module.partition(".")[0], describe, f"pip install {distribution}", required)


def _examine_data_sets(root: Path) -> Iterator[Check]:
    """Yield a row for the root and one for each known data set; none of them is required."""
    status, remedy = ("ok", "") if root.is_dir() else ("missing", "export DETECTRON2_DATASETS=/your/data/sets")
    yield Check("data sets", status, f"{'in' if root.is_dir() else 'no folder'} {root.absolute()}", remedy)
    for name, (remedy, paths) in DATA_SETS.items():
        if absent := [path for path in paths if not _has_content(root / path)]:
            status = "missing" if absent == paths else "partial"
            yield Check(name, status, f"absent: {', '.join(absent)}", remedy)
        else:
            yield Check(name, "ok", ", ".join(paths))


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
