"""How good masks can be that pass through a mask representation (PatchDCT, Table 1), from ground truth alone.

Letters: D detections of an image, R of them with an object, M side of a mask.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks, pairwise_iou
from pycocotools import mask as mask_util
from torch import Tensor
from tqdm import tqdm

from pixelmask.evaluation.coco import ResultsEvaluator
from pixelmask.evaluation.matching import match

from ..dct import DCTMaskCodec
from ..patches import assemble_patches, classify_patches, fill_uniform_patches, split_into_patches

MASK_SIZE = 112
# Side of a patch and elements of its vector, in the order of the paper's table
REPRESENTATIONS = ((1, 1), (8, 3), (8, 6), (8, 9), (8, 12), (112, 200), (112, 300))


def reconstruct(masks: Tensor, codec: DCTMaskCodec) -> Tensor:
    """Push (R, M, M) boolean masks through patch labels and the codec of a patch; returns (R, M, M) soft masks."""
    patches = split_into_patches(masks, codec.mask_size)
    decoded = codec.decode(codec.encode(patches))
    return assemble_patches(fill_uniform_patches(decoded, classify_patches(patches)))


def cut_out(annotations: list[dict[str, Any]], boxes: Tensor) -> Tensor:
    """Rasterise each annotation's mask in the box at its place: (R, 4) boxes to (R, M, M) boolean masks."""
    masks = torch.zeros(len(boxes), MASK_SIZE, MASK_SIZE, dtype=torch.bool)
    for mask, annotation, box in zip(masks, annotations, boxes, strict=True):
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, dict):
            shape = BitMasks(torch.from_numpy(mask_util.decode(segmentation)).bool()[None])
        else:
            shape = PolygonMasks([segmentation])
        mask[:] = shape.crop_and_resize(box[None], MASK_SIZE)[0]
    return masks


def objects_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return an image's annotations without crowd regions."""
    return [annotation for annotation in record["annotations"] if not annotation.get("iscrowd", 0)]


def boxes_of(entries: list[dict[str, Any]]) -> Tensor:
    """Return the boxes of annotations or results, [left, top, width, height], as (N, 4) corners."""
    boxes = [BoxMode.convert(entry["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for entry in entries]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


@dataclass
class ImageMasks:
    """What of an image is the same for every representation: its detections, and the masks of their objects.

    Attributes:
        instances: R detections that have an object: ``pred_boxes``, ``pred_classes`` and ``scores``.
        bits: (R, M * M / 8) uint8, the masks of these objects in the boxes, packed. They are kept for all images.
        others: COCO results of the D - R others, which have their whole box as mask; ``category_id`` is the class.
            Where the image has nothing of that class, they are false whatever their mask: an empty one is quickest.
    """

    record: dict[str, Any]
    instances: Instances
    bits: np.ndarray
    others: list[dict[str, Any]]

    @classmethod
    def of_truth(cls, record: dict[str, Any]) -> "ImageMasks":
        """Take an image's objects as detections with a score of 1."""
        objects = objects_of(record)
        return cls._pack(record, [{**entry, "score": 1.0} for entry in objects], objects, [])

    @classmethod
    def of_detections(
        cls, record: dict[str, Any], results: list[dict[str, Any]], one_to_one: bool = False
    ) -> "ImageMasks":
        """Give each detection the object that its box overlaps most, as the authors do: of any class, be it ever so
        little, and several detections one object.

        Args:
            record: Detectron2's dict of the image.
            results: with "bbox", "score", and the class as "category_id".
            one_to_one: give each, best score first, the free object of its class, with an IoU of at least 0.5.
        """
        results = sorted(results, key=lambda result: -result["score"])
        objects = objects_of(record)
        ious = pairwise_iou(Boxes(boxes_of(results)), Boxes(boxes_of(objects))).numpy()
        classes = [[entry["category_id"] for entry in entries] for entries in (results, objects)]
        owners: list[int | None] = [None] * len(results)
        if one_to_one:
            owners = match(ious, (classes[0], classes[1]))
        elif objects:
            owners = ious.argmax(1).tolist()
        matched = [result for result, owner in zip(results, owners, strict=True) if owner is not None]
        others = [result for result, owner in zip(results, owners, strict=True) if owner is None]
        return cls._pack(record, matched, [objects[owner] for owner in owners if owner is not None], others)

    @classmethod
    def _pack(cls, record: dict[str, Any], matched: list[dict], owners: list[dict], others: list[dict]) -> "ImageMasks":
        size = record["height"], record["width"]
        instances = Instances(size)
        instances.pred_boxes = Boxes(boxes_of(matched))
        instances.pred_classes = torch.tensor([entry["category_id"] for entry in matched], dtype=torch.int64)
        instances.scores = torch.tensor([entry["score"] for entry in matched])
        bits = np.packbits(cut_out(owners, instances.pred_boxes.tensor).flatten(1).numpy(), axis=1)
        present = {annotation["category_id"] for annotation in record["annotations"]}
        filled = [entry["bbox"] if entry["category_id"] in present else [0, 0, 0, 0] for entry in others]
        rles = mask_util.frPyObjects(np.array(filled, np.float64), *size) if others else []
        false = [
            {**entry, "image_id": record["image_id"], "segmentation": {**rle, "counts": rle["counts"].decode()}}
            for entry, rle in zip(others, rles, strict=True)
        ]
        return cls(record, instances, bits, false)

    @property
    def masks(self) -> Tensor:
        """(R, M, M) boolean."""
        return torch.from_numpy(np.unpackbits(self.bits, axis=1)).bool().unflatten(1, (MASK_SIZE, MASK_SIZE))

    def results(self, codec: DCTMaskCodec) -> list[dict[str, Any]]:
        """Return COCO results whose masks went through a codec and were pasted at a threshold of 0.5."""
        soft = reconstruct(self.masks, codec)
        pasted = paste_masks_in_image(soft, self.instances.pred_boxes, self.instances.image_size)
        # Copies, because evaluation puts other category ids into them
        found = instances_to_coco_json(self.instances, self.record["image_id"])
        # RLE runs along columns: all masks at once take half the time of one after the other
        columns = pasted.transpose(1, 2).contiguous().numpy().view(np.uint8)
        for result, rle in zip(found, mask_util.encode(columns.transpose(2, 1, 0)), strict=True):
            result["segmentation"] = {**rle, "counts": rle["counts"].decode()}
        return found + [dict(result) for result in self.others]


def upper_bounds(
    dataset_name: str,
    records: list[dict[str, Any]],
    results: dict[Any, list[dict[str, Any]]] | None = None,
    one_to_one: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table, each as it is done: resolution, patch_size, dim, AP and AP_B.

    Args:
        dataset_name: registered, in COCO format.
        records: its dicts.
        results: detections by image id; None takes the ground truth's boxes.
        one_to_one: see :meth:`ImageMasks.of_detections`.
    """
    evaluator = ResultsEvaluator(dataset_name, tasks=("segm", "boundary"), distributed=False)
    images = [
        ImageMasks.of_truth(record)
        if results is None
        else ImageMasks.of_detections(record, results[record["image_id"]], one_to_one)
        for record in tqdm(records, desc="cutting out masks", unit="image")
    ]
    for patch_size, vector_dim in REPRESENTATIONS:
        codec = DCTMaskCodec(patch_size, vector_dim)
        evaluator.reset()
        for image in tqdm(images, desc=f"{patch_size} x {patch_size}, {vector_dim}", unit="image"):
            evaluator.process([image.record["image_id"]], [image.results(codec)])
        metrics = evaluator.evaluate()
        row = {"resolution": MASK_SIZE, "patch_size": patch_size, "dim": vector_dim}
        yield {**row, "AP": metrics["segm"]["AP"], "AP_B": metrics["boundary"]["AP"]}
