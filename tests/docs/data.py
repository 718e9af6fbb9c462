"""Drawn stand-ins for what the documentation's commands read: photos, annotations, published data sets and weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from pycocotools import mask as mask_util

from airm.data.datasets import COARSE_SOURCES
from airm.data.synthetic import draw_pair
from airm.data.synthetic_dataset import coarse_mask
from patchdct.data.lvis_format import COCO_NAME_OF_SYNSET
from patchdct.data.shapes import SHAPES_CLASSES, draw_scene
from pixelmask.files import write_json
from pixelmask.rle import encode
from tests.support import swin_reference
from tests.support.cityscapes_tree import write_tree
from tests.support.mit_reference import B1, hugging_face_shapes, published_shapes, random_state

SIZE = 128
THREE = [{"id": i, "name": name} for i, name in enumerate(SHAPES_CLASSES[:3], start=1)]
EIGHTY = [{"id": entry["id"], "name": entry["name"]} for entry in COCO_CATEGORIES if entry["isthing"]]
SYNSETS = [{"id": i, "name": name, "synset": synset} for i, (synset, name) in enumerate(COCO_NAME_OF_SYNSET.items(), 1)]

# Images and masks of the published refinement sets, below $DETECTRON2_DATASETS
LAYOUTS = {
    "MSRA10K": ("Imgs", "Imgs"),
    "DUTS-TR": ("DUTS-TR-Image", "DUTS-TR-Mask"),
    "DUTS-TE": ("DUTS-TE-Image", "DUTS-TE-Mask"),
    "DUT-OMRON": ("DUT-OMRON-image", "pixelwiseGT-new-PNG"),
    "ECSSD": ("images", "ground_truth_mask"),
    "FSS-1000": ("", ""),
}
CLASSES = ("bus", "jet_aircraft", "swan")
PAIRS = 12


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an (H, W, 3) RGB image or an (H, W) bool mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image.astype(np.uint8) * 255)


def draw_annotated(folder: Path, ids: Sequence[int], categories: list[dict[str, Any]]) -> dict[str, Any]:
    """Write images named as COCO's, and return their annotations in COCO's format, as polygons."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in ids:
        scene = draw_scene(7, number, SIZE)
        name = f"{number:012d}.jpg"
        write_image(folder / name, scene.image)
        images.append({"id": number, "file_name": name, "height": SIZE, "width": SIZE})
        for mask, label in zip(scene.masks, scene.classes, strict=True):
            contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            polygons = [contour.astype(float).flatten().tolist() for contour in contours if len(contour) > 2]
            rle = mask_util.merge(mask_util.frPyObjects(polygons, SIZE, SIZE))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": categories[label % len(categories)]["id"],
                    "segmentation": polygons,
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "area": float(mask_util.area(rle)),
                    "iscrowd": 0,
                }
            )
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def results_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return COCO results: the annotated masks, grown a little."""
    results = []
    for entry in content["annotations"]:
        mask = mask_util.decode(mask_util.merge(mask_util.frPyObjects(entry["segmentation"], SIZE, SIZE)))
        rle = encode(cv2.dilate(mask, np.ones((5, 5), np.uint8)))
        box = mask_util.toBbox(rle).tolist()
        same = {key: entry[key] for key in ("image_id", "category_id")}
        results.append({**same, "bbox": box, "score": 0.9, "segmentation": rle})
    return results


def write_photos(root: Path) -> None:
    """Write photo.jpg, mask.png, photos/, masks/, clip.mp4, annotations.json and results.json."""
    pair = draw_pair(1, 1, 640, 480)
    write_image(root / "photo.jpg", pair.image)
    write_image(root / "mask.png", coarse_mask(pair.mask, np.random.default_rng(0)))
    content = draw_annotated(root / "photos", range(1, 11), THREE)
    write_json(root / "annotations.json", content)
    write_json(root / "results.json", results_of(content))
    clip = cv2.VideoWriter(str(root / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (SIZE, SIZE))
    for number in range(1, 11):
        scene = draw_scene(7, number, SIZE)
        write_image(root / "masks" / f"{number:012d}.png", coarse_mask(scene.masks[0], np.random.default_rng(number)))
        clip.write(scene.image[..., ::-1])
    clip.release()


def write_coco_and_lvis(root: Path) -> None:
    contents = {
        "train": draw_annotated(root / "coco/train2017", range(101, 109), EIGHTY),
        "val": draw_annotated(root / "coco/val2017", range(1, 5), EIGHTY),
    }
    test = draw_annotated(root / "coco/test2017", range(201, 204), EIGHTY)
    del test["annotations"]
    write_json(root / "coco/annotations/image_info_test-dev2017.json", test)
    for split, content in contents.items():
        write_json(root / f"coco/annotations/instances_{split}2017.json", content)
        for version in ("v0.5", "v1"):
            write_json(root / f"lvis/lvis_{version}_{split}.json", as_lvis(content, split))


def as_lvis(content: dict[str, Any], split: str) -> dict[str, Any]:
    """Return the same annotations as LVIS has them, its categories in the order of COCO's."""
    lists: dict[str, list[int]] = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    url = f"http://images.cocodataset.org/{split}2017/"
    images = [{**image, **lists, "coco_url": url + image["file_name"]} for image in content["images"]]
    position = {category["id"]: i for i, category in enumerate(content["categories"], start=1)}
    annotations = [{**entry, "category_id": position[entry["category_id"]]} for entry in content["annotations"]]
    counts = {"frequency": "f", "instance_count": 1, "image_count": 1}
    categories = [{**category, **counts} for category in SYNSETS]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def write_refinement_sets(root: Path) -> None:
    pairs = [draw_pair(3, i, 120, 96) for i in range(PAIRS)]
    for name, (images, masks) in LAYOUTS.items():
        for part in CLASSES if name == "FSS-1000" else ("",):
            for i, pair in enumerate(pairs, start=1):
                write_image(root / name / part / images / f"{i}.jpg", pair.image)
                write_image(root / name / part / masks / f"{i}.png", pair.mask)
    for name in ("BIG", "VOC2012_relabelled"):
        for number, source in enumerate(COARSE_SOURCES):
            for i, pair in enumerate(pairs[:2]):
                stem = root / name / source / f"{i}"
                write_image(stem.with_name(f"{i}_im.jpg"), pair.image)
                write_image(stem.with_name(f"{i}_gt.png"), pair.mask)
                write_image(stem.with_name(f"{i}_seg.png"), coarse_mask(pair.mask, np.random.default_rng(number)))


def write_weights(root: Path) -> None:
    """Write random tensors under published names: weights/mit_b1.pth, pytorch_model.bin, Swin-B's file."""
    (root / "weights").mkdir()
    torch.save(random_state(published_shapes(*B1)), root / "weights" / "mit_b1.pth")
    torch.save(random_state(hugging_face_shapes(*B1)), root / "pytorch_model.bin")
    # In half precision, as the file is large enough with it
    shapes = swin_reference.published_shapes(**swin_reference.SWIN_B)
    state = {name: torch.full(shape, 0.01, dtype=torch.float16) for name, shape in shapes.items()}
    index = swin_reference.position_index(swin_reference.SWIN_B["window_size"])
    state |= {name: index for name in state if name.endswith("relative_position_index")}
    torch.save({"model": state}, root / "swin_base_patch4_window7_224_22k.pth")


def write_all(root: Path) -> None:
    write_photos(root)
    write_coco_and_lvis(root / "datasets")
    for split in ("train", "val"):
        write_tree(root / "datasets", split)
    write_refinement_sets(root / "datasets")
    write_weights(root)
