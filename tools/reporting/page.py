"""From finished runs to the HTML page: its template, style and script are in ``assets/``.

The script draws curves and gallery. The page carries a content security policy: only its own script and style, known by
their hashes, and images within it.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import jinja2  # torch has brought it
from tqdm import tqdm

from pixelmask.errors import UserError
from pixelmask.files import whole_or_not_at_all

from .gallery import Picture
from .instance_gallery import InstanceGallery
from .metric_tables import Table, metric_tables
from .refinement_gallery import RefinementGallery
from .reported_runs import Curve, ReportedRun, choose_data_set, read_runs

FOLDER = Path(__file__).parent / "assets"
SCRIPTS = ("masks.js", "panels.js", "curves.js", "gallery.js", "zoom.js", "link.js", "main.js")
ACCURACY = re.compile(r"(^|/)(bbox|segm|boundary|refinement|lvis_v[\d.]+_(segm|boundary))/[^/]+$")
LOSS = re.compile(r"loss")


T = TypeVar("T")


class Shown(Protocol):
    """What a page has to know of a run, or of another source of masks."""

    @property
    def name(self) -> str: ...
    @property
    def about(self) -> str: ...
    @property
    def is_refinement(self) -> bool: ...
    @property
    def curves(self) -> dict[str, Curve]: ...


class Content(NamedTuple):
    """What a page is about. ``measures`` has the names of the pictures' values; no pictures, no gallery.

    With ``side_by_side`` a card shows image, all runs and truth, and there are no curves.
    """

    runs: Sequence[Shown]
    data_set: str
    tables: Sequence[Table]
    class_names: list[str]
    measures: dict[str, str]
    pictures: Iterable[Picture]
    side_by_side: bool = False


def write_report(
    folders: Sequence[str | Path],
    output: str | Path,
    names: Sequence[str] = (),
    data_set: str = "",
    max_images: int = 100,
    image_size: int = 640,
    min_score: float = 0.5,
    patch_labels: bool = False,
) -> Path:
    """Write a page with the tables, curves and pictures of finished evaluations, and return its path.

    Args:
        folders: OUTPUT_DIRs of ``tools/train_net.py``.
        output: the HTML file to write.
        names: what to call the runs; by default their folders' names.
        data_set: of the gallery; by default the first that all runs were evaluated on.
        max_images: in the gallery, spread evenly over the data set; 0 for no gallery, which needs no data set.
        image_size: longest side of the gallery's images in pixels; of larger ones, which are reduced, there is also the
            part where masks differ most, as it is.
        min_score: detections below it are not shown.
        patch_labels: run the PatchDCT models on the gallery's images for the labels of patches.

    Raises:
        UserError: for runs that are not finished, damaged, or of different data sets, and images that cannot be read.
    """
    runs = read_runs(folders, names)
    data_set = choose_data_set(runs, data_set)
    content = Content(runs, data_set, metric_tables(runs), [], {}, iter(()))
    if max_images:
        content = _with_gallery(content, runs, max_images, min_score, patch_labels)
    write_page(Path(output), content, image_size)
    return Path(output)


def spread(records: Sequence[T], count: int) -> list[T]:
    """Return ``count`` records spread evenly over all, or all where there are no more."""
    count = min(count, len(records))
    return [records[i * len(records) // count] for i in range(count)]


def _with_gallery(
    content: Content, runs: Sequence[ReportedRun], max_images: int, min_score: float, patch_labels: bool
) -> Content:
    gallery: InstanceGallery | RefinementGallery
    if not runs[0].is_refinement:
        gallery = InstanceGallery(runs, content.data_set, min_score, patch_labels)
    elif patch_labels:
        raise UserError("--patch-labels: masks of AIRM are not made of patches")
    else:
        gallery = RefinementGallery(runs, content.data_set)
    records = tqdm(spread(gallery.records, max_images), desc="drawing the gallery", unit="image")
    pictures = map(gallery.picture, records)
    return content._replace(class_names=gallery.class_names, measures=gallery.measures, pictures=pictures)


def write_page(path: Path, content: Content, image_size: int) -> None:
    """Write a page; what was at this path stays there if it fails.

    Raises:
        UserError: if an image cannot be read.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["csp_hash"] = _hash
    pieces = environment.get_template("page.html").generate(
        title=f"{', '.join(run.name for run in content.runs)} on {content.data_set}",
        style=(FOLDER / "page.css").read_text(encoding="utf-8"),
        script="\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS),
        runs=content.runs,
        side_by_side=content.side_by_side,
        tables=content.tables,
        data=_data(content, image_size),
    )
    with whole_or_not_at_all(path) as partial, open(partial, "w", encoding="utf-8") as f:
        f.writelines(pieces)  # one by one: the page may be large


def _data(content: Content, image_size: int) -> Iterator[tuple[str, str]]:
    """Yield the name and the JSON of each piece of data, those of pictures first."""
    summaries = []
    for i, picture in enumerate(content.pictures):
        yield f"item-{i}", to_json(picture.views(image_size))
        summaries.append(picture.summary())
    data = {
        "runs": [run.name for run in content.runs],
        "sideBySide": content.side_by_side,
        "isRefinement": content.runs[0].is_refinement,
        "classes": content.class_names,
        "measures": content.measures,
        "curves": {
            "loss": _curves(content.runs, lambda key: bool(LOSS.search(key)) or key == "lr"),
            "accuracy": _curves(content.runs, lambda key: bool(ACCURACY.search(key))),
        },
        "items": summaries,
    }
    yield "data", to_json(data)


def to_json(value: Any) -> str:
    """Return a value as JSON in which no text can end the script element that it is in.

    Raises:
        ValueError: if the value has NaN or infinities, which JSON cannot tell.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _curves(runs: Sequence[Shown], is_wanted: Any) -> dict[str, list[list[tuple[int, float]]]]:
    """Return a list of points of each run for each quantity; an empty one for a run without it."""
    keys = dict.fromkeys(key for run in runs for key in run.curves if is_wanted(key))
    return {key: [[(x, _rounded(y)) for x, y in run.curves.get(key, [])] for run in runs] for key in keys}


def _rounded(value: float) -> float:
    """Keep six digits."""
    return float(f"{value:.6g}") if math.isfinite(value) else value


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
