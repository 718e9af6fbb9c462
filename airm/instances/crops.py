"""Refinement of instance masks at an image's own resolution, in a crop around each; also behind a detector.

In short:

    refiner = InstanceRefiner()  # or InstanceRefiner(Refiner("airm.pth"))
    results = refiner.refine_results("photo.jpg", results).results  # COCO results of one image, masks as RLE
    detect = RefinedPredictor(Predictor(cfg), refiner)  # any instance model of Detectron2
    instances = detect(read_picture("photo.jpg"))

AIRM's encoder sees image and mask together, as four channels, so that its features belong to one mask: they cannot be
computed once for an image and shared by its instances, and those of a union of masks would be others. Shared are the
reading of the image and, in a batch of crops of one size, the passes through the network. What is made of an instance
does not depend on the other ones.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.structures import Instances
from pycocotools import mask as mask_util

from pixelmask.drawing import Window
from pixelmask.errors import UserError
from pixelmask.images import ImageLike, to_rgb
from pixelmask.rle import decode, encode, to_rle

from ..guard import GUARD, INSTANCE_GUARD, find_resolution, guard_mask
from ..refine.memory import estimate_peak
from ..refiner import Refiner
from ..tiles import grid_axis

SMALLEST_MARGIN = 32  # pixels around an instance; below, the network sees next to nothing of what is not the object
SIDE_STEP = 32  # sides of crops are multiples of this where the image allows it, so that several have one size
LARGEST_SIDE = 4096  # to which crops can be enlarged
BATCH_PIXELS = 2**20  # encoded at once, in batches of more than one crop

Box = Sequence[int]  # left, top, width, height


class RefinedResults(NamedTuple):
    """COCO results of an image, in their order, and what became of them."""

    results: list[dict[str, Any]]
    refined: int
    """Results that were given to the network."""
    changed: int
    """Among these, those whose mask it changed."""
    emptied: int
    """Among these, those of whose mask nothing would be left; they keep it."""
    refused: int
    """Among these, those whose refinement the guard refused; they keep theirs, too."""
    faults: list[str]
    """A sentence for each result whose mask cannot be used; these are as they were."""


class InstanceRefiner:
    """Refines the masks of an image's instances, each in a crop around it, with a trained AIRM."""

    def __init__(
        self,
        refiner: Refiner | None = None,
        margin: float = 0.2,
        batch_size: int = 8,
        min_side: int = 224,
        min_area: int = 1024,
    ):
        """
        Args:
            refiner: its tiles, memory limit and guard hold for each crop, and the memory limit for each batch; by
                default one with the weights that come with the project. Without a ``resolution`` of its own, that of
                each mask is found by :func:`~airm.guard.find_resolution`; and in place of the default guard stands
                :data:`~airm.guard.INSTANCE_GUARD`, which is stricter.
            margin: width of what a crop shows around the box of a mask, as a share of the box's longer side; it is at
                least 32 pixels.
            batch_size: crops that go through the network at once, if they have one size and are not tiled. Good for
                GPUs; on a CPU it neither gains nor loses.
            min_side: pixels that the longer side of a crop has at least. Smaller ones are enlarged for the network, by
                a whole number, and what it finds is averaged back; 0 for no enlarging.
            min_area: masks of fewer pixels stay as they are: the grids of detectors lose next to nothing of them.

        Raises:
            UserError: for a value out of range.
        """
        if not 0 <= margin < float("inf"):
            raise UserError(f"margin is {margin}; it is a share of an instance's longer side, from 0 up")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it is a number of crops, from 1 up")
        for name, value, most in (("min_side", min_side, LARGEST_SIDE), ("min_area", min_area, LARGEST_SIDE**2)):
            if not 0 <= value <= most:
                raise UserError(f"{name} is {value}; it is a number of pixels, from 0 to {most}")
        self.refiner, self.margin, self.batch_size = refiner or Refiner(), margin, batch_size
        self.min_side, self.min_area = min_side, max(min_area, 1)

    def refine(self, image: ImageLike, masks: np.ndarray) -> np.ndarray:
        """Refine (N, H, W) boolean masks of an image; one that is small, or would be empty or refused, stays as it is.

        Raises:
            UserError: if the image cannot be used, the masks have another type or size, or memory runs out.
        """
        pixels = to_rgb(image)
        if masks.dtype != bool or masks.ndim != 3 or masks.shape[1:] != pixels.shape[:2]:
            raise UserError(
                f"masks are a boolean array of (N, {pixels.shape[0]}, {pixels.shape[1]}), as many rows and columns as "
                f"the image has, not {masks.dtype} of {masks.shape}"
            )
        answer = masks.copy()
        large = [i for i, mask in enumerate(masks) if np.count_nonzero(mask) >= self.min_area]
        boxes = {i: cv2.boundingRect(masks[i].view(np.uint8)) for i in large}
        for i, window, refined, _ in self._refine_crops(pixels, boxes, lambda i: masks[i]):
            answer[i][window] = refined
        return answer

    def refine_instances(self, image: ImageLike, instances: Instances) -> Instances:
        """Return the same detections with refined ``pred_masks``, (N, H, W) boolean of the image's size; see refine."""
        answer = Instances(instances.image_size, **instances.get_fields())
        masks = instances.pred_masks
        answer.pred_masks = torch.from_numpy(self.refine(image, masks.cpu().numpy())).to(masks.device)
        return answer

    def refine_results(
        self, image: ImageLike, results: Sequence[dict[str, Any]], min_score: float = 0.0
    ) -> RefinedResults:
        """Refine COCO results of one image; of its masks only one is decoded at a time.

        Order, scores, boxes and whatever else a result holds are kept. Masks stay as they are of crowd regions, of
        results with a lower score, if they are small, or empty, or would be so, or the guard refuses what they become;
        and where no pixel changes, the RLE stays the very same.

        Args:
            image: see :func:`~pixelmask.images.to_rgb`.
            results: with "segmentation", see :func:`~pixelmask.rle.to_rle`; optionally "score" and "iscrowd".
            min_score: 0 for all.

        Returns:
            copies of the results with masks as compressed RLE, and what happened.

        Raises:
            UserError: if the image cannot be used, or memory runs out.
        """
        pixels = to_rgb(image)
        answers, faults = [dict(result) for result in results], []
        boxes: dict[int, Box] = {}
        for i, answer in enumerate(answers):
            try:
                answer["segmentation"] = to_rle(answer.get("segmentation"), *pixels.shape[:2])
            except ValueError as e:
                faults.append(f"mask {i + 1} of {len(answers)} {e}")
                continue
            # Of an empty mask with runs of 0 pixels, pycocotools' box is anything
            is_small = mask_util.area(answer["segmentation"]) < self.min_area
            if not is_small and not answer.get("iscrowd", 0) and answer.get("score", 1) >= min_score:
                boxes[i] = [int(n) for n in mask_util.toBbox(answer["segmentation"])]
        fates: Counter[str] = Counter()
        crops = self._refine_crops(pixels, boxes, lambda i: decode(answers[i]["segmentation"]))
        for i, window, refined, fate in crops:
            fates[fate] += 1
            if fate == "changed":
                whole = np.zeros(pixels.shape[:2], bool, order="F")
                whole[window] = refined  # all of the coarse mask is in the window
                answers[i]["segmentation"] = encode(whole)
        return RefinedResults(answers, len(boxes), fates["changed"], fates["emptied"], fates["refused"], faults)

    def _refine_crops(
        self, pixels: np.ndarray, boxes: dict[int, Box], read: Callable[[int], np.ndarray]
    ) -> Iterator[tuple[int, Window, np.ndarray, str]]:
        """Yield key, window, its new mask (boolean) and what became of it, of each box; ``read``: whole mask."""
        windows = {i: find_window(box, pixels.shape[:2], self.margin) for i, box in boxes.items()}
        sizes = {i: [span.stop - span.start for span in window] for i, window in windows.items()}
        factors = {i: max(1, -(-self.min_side // max(size))) for i, size in sizes.items()}
        for batch in self._make_batches({i: (size[0] * factors[i], size[1] * factors[i]) for i, size in sizes.items()}):
            masks = [read(i)[windows[i]].copy() for i in batch]
            crops = [_enlarge(pixels[windows[i]], factors[i]) for i in batch]
            coarse = [_enlarge(mask.astype(np.float32), factors[i]) for i, mask in zip(batch, masks, strict=True)]
            if len(batch) == 1:  # with the tiles that the memory limit asks for
                refined = self.refiner.refine_unguarded(crops[0], np.stack(coarse))
            else:
                refined = self.refiner.refine_batch(crops, coarse)
            for i, mask, probability in zip(batch, masks, refined, strict=True):
                yield i, windows[i], *self._judge(mask, _shrink(probability, factors[i]))

    def _judge(self, mask: np.ndarray, refined: np.ndarray) -> tuple[np.ndarray, str]:
        """Return which mask is taken, and that it is "changed" or "unchanged", or why: "emptied" or "refused"."""
        if not (refined >= 0.5).any():
            return mask, "emptied"
        guard = INSTANCE_GUARD if self.refiner.guard == GUARD else self.refiner.guard
        if guard is not None:
            resolution = self.refiner.resolution
            resolution = find_resolution(mask) if resolution is None else resolution
            refined, refusal, _ = guard_mask(mask, refined, guard, resolution)
            if refusal:
                return mask, "refused"
        after = refined >= 0.5
        return after, "unchanged" if (after == mask).all() else "changed"

    def _make_batches(self, sizes: dict[int, tuple[int, int]]) -> Iterator[list[int]]:
        """Group crops of one (height, width), in batches whose memory is bounded."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, size in sizes.items():
            groups.setdefault(size, []).append(i)
        for size, group in groups.items():
            number = self._count_at_once(size)
            for start in range(0, len(group), number):
                yield group[start : start + number]

    def _count_at_once(self, size: tuple[int, int]) -> int:
        """Return how many crops of (height, width) make a batch: 1 if it would be tiled, or too large with a second."""
        if self.batch_size == 1:
            return 1
        settings, limit = self.refiner.settings, self.refiner.max_memory
        height, width = (grid_axis(n, settings.ratios[-1], settings.padding).padded for n in size)
        largest = BATCH_PIXELS
        if settings.tile_size:
            largest = min(largest, settings.tile_size**2)
            if max(height, width) > settings.tile_size:
                return 1
        for number in range(min(self.batch_size, largest // (height * width)), 1, -1):
            peak = estimate_peak((number * size[0], size[1]), 1, number * height * width, settings.query_chunk)
            if limit is None or peak <= limit * 2**30:
                return number
        return 1


class RefinedPredictor:
    """A detector, and AIRM on every instance that it finds: from an image to pixel-accurate instances."""

    def __init__(self, predictor: Callable[[np.ndarray], Instances], refiner: InstanceRefiner):
        """
        Args:
            predictor: a :class:`~patchdct.predictor.Predictor`, or another function from an (H, W, 3) uint8 RGB image
                to instances with ``pred_masks`` (N, H, W).
            refiner: of their masks.
        """
        self.predictor, self.refiner = predictor, refiner

    def __call__(self, image: np.ndarray) -> Instances:
        """Return the detections in an image, in the detector's order and with its scores, with refined masks."""
        return self.refiner.refine_instances(image, self.predictor(image))


def find_window(box: Box, size: Sequence[int], margin: float) -> Window:
    """Return the rows and columns of an image that are shown around a box.

    Args:
        box: of a mask, in pixels; it is within the window with a margin, as far as the image goes.
        size: (H, W) of the image.
        margin: see :class:`InstanceRefiner`.
    """
    left, top, width, height = box
    width_around = max(SMALLEST_MARGIN, round(margin * max(width, height)))
    return _grow(top, height, width_around, size[0]), _grow(left, width, width_around, size[1])


def _grow(start: int, length: int, margin: int, limit: int) -> slice:
    """Put a margin on both ends of a span, and make its length a multiple of SIDE_STEP, within [0, limit)."""
    low, high = max(0, start - margin), min(limit, start + length + margin)
    length = min(limit, -(-(high - low) // SIDE_STEP) * SIDE_STEP)
    low = min(max(0, (low + high - length) // 2), limit - length)
    return slice(low, low + length)


def _enlarge(x: np.ndarray, factor: int) -> np.ndarray:
    """Enlarge (H, W, ...) pixels by a whole number, bilinearly."""
    return x if factor == 1 else cv2.resize(x, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)


def _shrink(x: np.ndarray, factor: int) -> np.ndarray:
    """Average (H, W) over squares of ``factor`` pixels; a mask that :func:`_enlarge` gave is the same from 0.5 on."""
    height, width = x.shape
    return x.reshape(height // factor, factor, width // factor, factor).mean((1, 3))
