"""Make cocofied LVIS files, which AP* is measured against: LVIS's annotations of COCO's 80 categories.

Of every LVIS file that is there (lvis_v0.5_val.json, lvis_v1_val.json and their training files, in
$DETECTRON2_DATASETS/lvis), into lvis_v0.5_val_cocofied.json and so on beside it:

    python datasets/prepare_lvis_cocofied.py

Of some files, into another folder:

    python datasets/prepare_lvis_cocofied.py /data/lvis_v1_val.json --output /data/cocofied

Check the cocofied files that are there, or some files:

    python datasets/prepare_lvis_cocofied.py --check

A validation file keeps the images of COCO's val2017, a training file those of train2017, by their coco_url, or by the
ids in a COCO annotation file (--coco-annotations): LVIS v1 validates on images of COCO's training set too. The exit
status is 1 if anything is wrong. Where to get LVIS: datasets/README.md.
"""

import argparse
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from patchdct.data.lvis_format import (
    COCO_ID_OF_NAME,
    COCO_NAME_OF_SYNSET,
    VERSIONS,
    cocofied_file,
    lvis_file,
    read_cocofied,
    read_lvis,
)
from patchdct.evaluation.lvis_eval import Truth
from pixelmask.cli import run
from pixelmask.errors import UserError
from pixelmask.files import read_json, write_json

IMAGE_URL = "http://images.cocodataset.org/{split}/{id:012d}.jpg"
FREQUENCIES = "rcf"  # rare, common, frequent


class Report(NamedTuple):
    """What became of an LVIS file: images of other splits, and instances on them or of other categories, are dropped.

    ``missing`` are COCO's categories that this LVIS does not have, ``empty`` those without an instance here.
    """

    images: int
    dropped_images: int
    instances: int
    dropped_instances: int
    missing: list[str]
    empty: list[str]

    def __str__(self) -> str:
        counts = f"{self.images:,} images ({self.dropped_images:,} dropped), {self.instances:,} instances"
        return (
            f"{counts} ({self.dropped_instances:,} dropped), {len(COCO_ID_OF_NAME) - len(self.missing)} categories; "
            f"LVIS lacks: {', '.join(self.missing) or 'none'}; "
            f"without instances: {', '.join(self.empty) or 'none'}"
        )


def split_of(path: Path) -> str:
    """Return COCO's split that an LVIS file belongs to, "train2017" or "val2017", by its name."""
    found = re.search(r"_(train|val)(?![a-z])", path.stem)
    if not found:
        raise UserError(
            f"{path} is not named as LVIS names its files, lvis_v1_val.json or lvis_v1_train.json; rename it"
        )
    return f"{found[1]}2017"


def chosen_images(images: Sequence[dict[str, Any]], split: str, ids: Collection[int] | None) -> list[dict[str, Any]]:
    """Return the images of a split, each with a coco_url, which Detectron2 finds the file by.

    Args:
        images: of an LVIS file.
        split: "train2017" or "val2017".
        ids: image ids of that split; None goes by coco_url.
    """
    if ids is not None:
        images = [image for image in images if image["id"] in ids]
        return [{"coco_url": IMAGE_URL.format(split=split, id=image["id"]), **image} for image in images]
    for image in images:
        if not isinstance(image.get("coco_url"), str):
            raise UserError(f"image {image['id']} has no coco_url that names its split; give --coco-annotations")
    return [image for image in images if f"/{split}/" in image["coco_url"]]


def merge_categories(categories: Sequence[dict[str, Any]]) -> tuple[dict[int, int], list[dict[str, Any]]]:
    """Return COCO's category id of each LVIS category that has one, and the categories of a cocofied file."""
    coco_ids: dict[int, int] = {}
    merged: dict[int, dict[str, Any]] = {}
    for category in categories:
        name = COCO_NAME_OF_SYNSET.get(category["synset"])
        if name is None:
            continue
        coco_id = coco_ids[category["id"]] = COCO_ID_OF_NAME[name]
        entry = merged.setdefault(coco_id, {**category, "id": coco_id, "name": name})
        entry["frequency"] = max(entry["frequency"], category["frequency"], key=FREQUENCIES.index)
    return coco_ids, [merged[coco_id] for coco_id in sorted(merged)]


def cocofy(content: Mapping[str, Any], split: str, ids: Collection[int] | None = None) -> tuple[dict[str, Any], Report]:
    """Make the content of a cocofied file of an LVIS file's; ``split`` and ``ids`` as of :func:`chosen_images`.

    Where several LVIS categories are one of COCO's, their instances come together; it is not exhaustive where one of
    them is not, and absent where one is verified to be and there is no instance.
    """
    coco_ids, categories = merge_categories(content["categories"])
    images = chosen_images(content["images"], split, ids)
    kept = {image["id"] for image in images}
    annotations = [
        {**annotation, "category_id": coco_ids[annotation["category_id"]]}
        for annotation in content["annotations"]
        if annotation["image_id"] in kept and annotation["category_id"] in coco_ids
    ]
    present: dict[int, set[int]] = {image_id: set() for image_id in kept}
    for annotation in annotations:
        present[annotation["image_id"]].add(annotation["category_id"])
    for index, image in enumerate(images):
        mapped = {
            key: {coco_ids[category] for category in image[key] if category in coco_ids}
            for key in ("neg_category_ids", "not_exhaustive_category_ids")
        }
        mapped["neg_category_ids"] -= present[image["id"]]
        images[index] = {**image, **{key: sorted(category_ids) for key, category_ids in mapped.items()}}
    instances = Counter(annotation["category_id"] for annotation in annotations)
    seen = Counter(category_id for category_ids in present.values() for category_id in category_ids)
    for category in categories:
        category.update(instance_count=instances[category["id"]], image_count=seen[category["id"]])
    return {**content, "images": images, "annotations": annotations, "categories": categories}, Report(
        images=len(images),
        dropped_images=len(content["images"]) - len(images),
        instances=len(annotations),
        dropped_instances=len(content["annotations"]) - len(annotations),
        missing=[name for name in COCO_ID_OF_NAME if COCO_ID_OF_NAME[name] not in coco_ids.values()],
        empty=[category["name"] for category in categories if not category["instance_count"]],
    )


def prepare(sources: Sequence[Path], output: Path | None, coco_annotations: Path | None) -> int:
    """Make the cocofied form of each LVIS file and print its report; return the exit status, 0."""
    ids = None if coco_annotations is None else read_image_ids(coco_annotations)
    for source in sources:
        content, report = cocofy(read_lvis(source), split_of(source), ids)
        if not report.images:
            raise UserError(f"{source} has no images of COCO's {split_of(source)}")
        target = cocofied_file(source if output is None else output / source.name)
        write_json(target, content)
        print(f"{target}: {report}")
    return 0


def read_image_ids(path: Path) -> set[int]:
    """Read the image ids of a COCO annotation file."""
    try:
        return {image["id"] for image in read_json(path)["images"]}
    except (KeyError, TypeError) as e:
        raise UserError(f"{path} is not a COCO annotation file: {e!r}") from None


def check(paths: Sequence[Path]) -> int:
    """Check the cocofied files named, or all that are there, as evaluation reads them; return the exit status."""
    wrong = found = 0
    for path in paths or map(cocofied_file, known_files()):
        if not path.is_file():
            wrong += bool(paths)
            print(f"absent {path}")
            continue
        found += 1
        try:
            truth = Truth(path, read_cocofied)
        except UserError as e:
            wrong += 1
            print(f"wrong  {e}")
        else:
            print(f"ok     {path}: {len(truth.imgs):,} images, {len(truth.anns):,} instances")
    return int(wrong > 0 or not found)


def known_files() -> list[Path]:
    """Return where Detectron2 looks for LVIS files, there or not."""
    return [lvis_file(version, split) for version in VERSIONS for split in ("val", "train")]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="LVIS files, with --check cocofied ones")
    parser.add_argument("--check", action="store_true", help="check cocofied files and make none")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of what is made; beside the LVIS file if not"
    )
    parser.add_argument(
        "--coco-annotations", type=Path, metavar="FILE", help="keep the images that this COCO annotation file has"
    )
    options = parser.parse_args(arguments)
    if options.check:
        return check(options.files)
    if options.coco_annotations and not options.files:
        parser.error("--coco-annotations wants the LVIS files that it is for, of one split")
    sources = options.files or [path for path in known_files() if path.is_file()]
    if not sources:
        folder = known_files()[0].parent.absolute()
        raise UserError(f"no LVIS file (lvis_v0.5_val.json, ...) in {folder}; where to get them: datasets/README.md")
    return prepare(sources, options.output, options.coco_annotations)


if __name__ == "__main__":
    raise SystemExit(run(main))
