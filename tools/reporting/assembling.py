"""From finished runs to the page."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from pixelmask.errors import UserError

from .gallery import Picture
from .instance_gallery import InstanceGallery
from .metric_tables import metric_tables
from .page import Content, write_page
from .refinement_gallery import RefinementGallery
from .reported_runs import choose_data_set, read_runs

T = TypeVar("T")


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
        content = _with_gallery(content, max_images, min_score, patch_labels)
    write_page(Path(output), content, image_size)
    return Path(output)


def spread(records: Sequence[T], count: int) -> list[T]:
    """Return ``count`` records spread evenly over all, or all where there are no more."""
    count = min(count, len(records))
    return [records[i * len(records) // count] for i in range(count)]


def _with_gallery(content: Content, max_images: int, min_score: float, patch_labels: bool) -> Content:
    gallery: InstanceGallery | RefinementGallery
    if not content.runs[0].is_refinement:
        gallery = InstanceGallery(content.runs, content.data_set, min_score, patch_labels)
    elif patch_labels:
        raise UserError("--patch-labels: masks of AIRM are not made of patches")
    else:
        gallery = RefinementGallery(content.runs, content.data_set)
    records = tqdm(spread(gallery.records, max_images), desc="drawing the gallery", unit="image")
    pictures: Iterator[Picture] = map(gallery.picture, records)
    return content._replace(class_names=gallery.class_names, measures=gallery.measures, pictures=pictures)
