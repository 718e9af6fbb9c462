"""From the dict of a refinement data set to a sample for the model: crops, augmentation and coarse masks."""

import math
import zlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable

from pixelmask.data.mapper import OwnRandomNumbers
from pixelmask.errors import UserError
from pixelmask.images import read_mask, read_picture, read_soft_mask

from ..query_inputs import colour_table
from .coarse_masks import KINDS, make_coarse_mask
from .perturbation import KINDS as PERTURBATIONS
from .perturbation import perturb_mask

CROP_ATTEMPTS = 10
# Luma, and the two axes of chroma, of ITU-R BT.601
YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
RGB = np.linalg.inv(YIQ)


class RefinementDatasetMapper:
    """Read a picture and its masks, and make a sample of them.  See AIRM, Sec. 4.3, "Training details".

    For training, a random crop (of what is reflected at its borders where the picture is smaller), flipped, with its
    colours changed, and a coarse mask made from the truth by :func:`.coarse_masks.make_coarse_mask`, in the crop or
    before it is cut. All is drawn from numpy's global generator, from a place of this mapper's own. Crops without
    foreground are drawn again, up to 10 times.

    For testing, the whole picture, and the coarse mask of the data set. Where it has none, one is made from the truth,
    of kind "contour" whatever training has, the same in every run.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        crop_size: int = 224,
        crop_at_contour: bool = False,
        flip_prob: float = 0.5,
        color_jitter: Sequence[float] = (0.3, 0.3, 0.3, 0.1),
        grayscale_prob: float = 0.1,
        perturbation: str = "regions",
        iou_range: Sequence[float] = (0.8, 1.0),
        perturb_before_crop: bool = False,
        coarse_masks: Sequence[str] = (),
        scale_range: Sequence[float] = (1.0, 1.0),
        query_inputs: Sequence[str] = (),
        seed: int = 0,
    ):
        """
        Args:
            is_train: whether to crop and augment.
            crop_size: height and width of training crops in pixels.
            crop_at_contour: whether they are laid around a place of the mask's contour, where it has one.
            flip_prob: probability of a horizontal flip.
            color_jitter: largest change of brightness, contrast and saturation as shares of what they are, and of hue
                in turns.
            grayscale_prob: probability to take the colour away.
            perturbation: how training makes coarse masks, a key of :data:`.perturbation.KINDS`.
            coarse_masks: several ways instead, of :data:`.coarse_masks.KINDS`, one of which is drawn for each sample.
            scale_range: least and largest factor by which pictures of training are resized before a crop is cut.
            query_inputs: of the model; what it is to know of colours is of the whole picture.
            iou_range: least and largest IoU of a coarse mask that is made from the truth.
            perturb_before_crop: whether training perturbs the mask of the whole picture, as testing does, instead of
                the crop's. Errors are then as large, and stretches without any as long, as in testing; the IoU is that
                of the whole mask.
            seed: of the coarse masks made for testing, not negative.

        Raises:
            UserError: for a value out of its range, naming its config key.
        """
        jitter_is_valid = len(color_jitter) == 4 and all(value >= 0 for value in color_jitter)
        scales_are_valid = len(scale_range) == 2 and 0 < scale_range[0] <= scale_range[1]
        range_is_valid = len(iou_range) == 2 and 0 < iou_range[0] <= iou_range[1] <= 1
        for is_valid, key, value, wanted in (
            (crop_size >= 1, "CROP_SIZE", crop_size, "a number of pixels"),
            (0 <= flip_prob <= 1, "FLIP_PROB", flip_prob, "a probability"),
            (0 <= grayscale_prob <= 1, "GRAYSCALE_PROB", grayscale_prob, "a probability"),
            (jitter_is_valid, "COLOR_JITTER", color_jitter, "[brightness, contrast, saturation, hue], from 0 up"),
            (perturbation in PERTURBATIONS, "PERTURBATION", perturbation, " or ".join(PERTURBATIONS)),
            (set(coarse_masks) <= set(KINDS), "COARSE_MASKS", coarse_masks, f"a list of {', '.join(KINDS)}"),
            (scales_are_valid, "SCALE_RANGE", scale_range, "[least, largest] above 0"),
            (range_is_valid, "IOU_RANGE", iou_range, "[least, largest] in (0, 1]"),
            (seed >= 0, "SEED", seed, "a number from 0 up"),
        ):
            if not is_valid:
                raise UserError(f"INPUT.REFINEMENT.{key} is {value}, but has to be {wanted}")
        self.is_train = is_train
        self.crop_size, self.crop_at_contour = crop_size, crop_at_contour
        self.flip_prob = flip_prob
        self.color_jitter = tuple(color_jitter)
        self.grayscale_prob = grayscale_prob
        self.coarse_masks = tuple(coarse_masks) or (perturbation,)
        self.scale_range = scale_range[0], scale_range[1]
        self.query_inputs = tuple(query_inputs)
        self.iou_range = iou_range[0], iou_range[1]
        self.perturb_before_crop = perturb_before_crop
        self.seed = seed
        self._random = OwnRandomNumbers()

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read the keys of INPUT.REFINEMENT."""
        keys = (
            "CROP_SIZE", "CROP_AT_CONTOUR", "FLIP_PROB", "COLOR_JITTER", "GRAYSCALE_PROB", "PERTURBATION", "IOU_RANGE",
            "PERTURB_BEFORE_CROP", "COARSE_MASKS", "SCALE_RANGE", "SEED",
        )  # fmt: skip
        own = {key.lower(): cfg.INPUT.REFINEMENT[key] for key in keys}
        return {"is_train": is_train, "query_inputs": cfg.MODEL.AIRM.QUERY_INPUTS, **own}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            dataset_dict: "file_name" of the picture, "mask_file_name" of the truth, "coarse_file_name", "image_id". The
                truth may be absent in testing if there is a coarse mask, which training does not use.

        Returns:
            "image" (3, H, W) uint8 RGB, "coarse_mask" (1, H, W) float32 in [0, 1], "mask" (1, H, W) float32 of 0 and 1
            (if there is a truth), "height", "width", "file_name", "image_id"; in training "colours", (K^3,)
            float32, if the model asks for them.

        Raises:
            UserError: for a file that cannot be read, or masks of another size than the picture.
        """
        image, colours = read_picture(dataset_dict["file_name"]), None
        mask = self._read(dataset_dict, "mask_file_name", image.shape[:2])
        coarse = None if self.is_train else self._read(dataset_dict, "coarse_file_name", image.shape[:2])
        if mask is None:
            if coarse is None:
                wanted = "mask_file_name" if self.is_train else "mask_file_name and no coarse_file_name"
                raise UserError(f"image {dataset_dict['file_name']} has no {wanted} in its data set")
        elif self.is_train:
            with self._random.drawn():
                rng = np.random.default_rng(np.random.randint(2**31))
            image, mask, coarse, colours = self.augment(image, mask, rng)
        elif coarse is None:
            rng = np.random.default_rng([self.seed, zlib.crc32(str(dataset_dict["image_id"]).encode())])
            coarse = perturb_mask(mask, rng.uniform(*self.iou_range), rng, "contour")
        sample = {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "coarse_mask": _to_tensor(coarse),
            "height": image.shape[0],
            "width": image.shape[1],
            "file_name": dataset_dict["file_name"],
            "image_id": dataset_dict["image_id"],
        }
        if colours is not None:
            sample["colours"] = colours
        return sample if mask is None else {**sample, "mask": _to_tensor(mask)}

    def _read(self, dataset_dict: dict[str, Any], key: str, size: tuple[int, ...]) -> np.ndarray | None:
        path = dataset_dict.get(key)
        if path is None:
            return None
        mask = read_mask(path) if key == "mask_file_name" else read_soft_mask(path)
        if mask.shape != size:
            raise UserError(
                f"image {dataset_dict['file_name']} is {size[1]} x {size[0]} pixels, but its mask {path} is "
                f"{mask.shape[1]} x {mask.shape[0]}; is it the mask of this image?"
            )
        return mask

    def augment(
        self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, torch.Tensor | None]:
        """Make a sample of an (H, W, 3) uint8 image and its (H, W) bool mask.

        Returns:
            crops of both and of a coarse mask, and the table of the whole picture's colours if the model asks for it.
        """
        kind = self.coarse_masks[int(rng.integers(len(self.coarse_masks)))]
        image, mask = resize(image, mask, math.exp(rng.uniform(*np.log(self.scale_range))))
        image = self._recolour(image, rng)
        coarse = colours = None
        if self.perturb_before_crop or "colour" in self.query_inputs:
            coarse = make_coarse_mask(mask, kind, rng, self.iou_range)
            colours = _colour_table(image, coarse) if "colour" in self.query_inputs else None
        mask, image, coarse = random_crop(self.crop_size, rng, mask, image, coarse, at_contour=self.crop_at_contour)
        if coarse is None:
            coarse = make_coarse_mask(mask, kind, rng, self.iou_range)
        if rng.random() < self.flip_prob:
            image, mask, coarse = image[:, ::-1], mask[:, ::-1], coarse[:, ::-1]
        return image, mask, coarse, colours

    def _recolour(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        *factors, hue = self.color_jitter
        brightness, contrast, saturation = (rng.uniform(max(1 - factor, 0), 1 + factor) for factor in factors)
        turns = rng.uniform(-hue, hue)
        if rng.random() < self.grayscale_prob:
            saturation = 0.0
        return adjust_color(image, brightness, contrast, saturation, turns)


def resize(image: np.ndarray, mask: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Resize an image and its boolean mask by a factor."""
    if scale == 1:
        return image, mask
    size = tuple(max(1, round(side * scale)) for side in mask.shape[::-1])
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    soft = cv2.resize(mask.astype(np.float32), size, interpolation=kind)
    return cv2.resize(image, size, interpolation=kind), soft >= 0.5


def random_crop(
    size: int, rng: np.random.Generator, mask: np.ndarray, *others: np.ndarray | None, at_contour: bool = False
) -> list[Any]:
    """Cut the same (size, size) window out of a mask and others.

    What is smaller is reflected at its borders first. With ``at_contour`` the window holds a pixel of the mask's
    contour, drawn with equal chances; else, or where there is no contour, it has foreground if 10 attempts find some.
    In place of None, None is returned.
    """
    arrays: list[Any] = [mask, *others]
    missing = [max(size - side, 0) for side in mask.shape]
    if any(missing):
        before = [int(rng.integers(pixels + 1)) for pixels in missing]
        borders = [*((first, both - first) for first, both in zip(before, missing, strict=True)), (0, 0)]
        arrays = [None if array is None else np.pad(array, borders[: array.ndim], "reflect") for array in arrays]
        mask = arrays[0]
    height, width = mask.shape
    contour = np.argwhere(mask & ~cv2.erode(mask.view(np.uint8), np.ones((3, 3))).view(bool)) if at_contour else ()
    for _ in range(CROP_ATTEMPTS):
        if len(contour):
            place = contour[rng.integers(len(contour))] - rng.integers(size, size=2)
            top, left = (int(n) for n in np.clip(place, 0, [height - size, width - size]))
        else:
            top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
        window = slice(top, top + size), slice(left, left + size)
        if mask[window].any():
            break
    return [None if array is None else array[window] for array in arrays]


def _colour_table(image: np.ndarray, coarse: np.ndarray) -> torch.Tensor:
    """As :func:`~airm.query_inputs.colour_table`, of (H, W, 3) uint8 and (H, W) bool to (K^3,)."""
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return colour_table(pixels[None].float() / 255, _to_tensor(coarse)[None])[0]


def adjust_color(image: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """Change the colours of an (H, W, 3) uint8 RGB image, in a single pass over its pixels.

    All four changes are linear in RGB, and therefore one matrix, so that values are rounded and clipped once. Luma is
    kept by the change of saturation, and by that of hue, a turn about the grey axis.

    Args:
        brightness, contrast, saturation: factors from 0 up; 1 changes nothing, contrast 0 leaves the mean luma,
            saturation 0 the luma of each pixel.
        hue: in turns, from red towards yellow.
    """
    angle = 2 * math.pi * hue
    cos, sin = saturation * math.cos(angle), saturation * math.sin(angle)
    chroma = RGB @ np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]]) @ YIQ
    image = np.ascontiguousarray(image)
    mean_luma = YIQ[0] @ cv2.mean(image)[:3]
    offset = np.full((3, 1), (1 - contrast) * brightness * mean_luma)
    return cv2.transform(image, np.hstack([contrast * brightness * chroma, offset]))


def _to_tensor(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask.astype(np.float32))[None]
