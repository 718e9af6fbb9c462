"""What refines a coarse mask: AIRM, GrabCut, closed-form matting, and any command.

A method of its own is a subclass of :class:`Method`, and a line in ``METHODS``.
"""

import functools
import shlex
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from airm import Refiner
from airm.instances.crops import InstanceRefiner, find_window
from pixelmask.errors import UserError
from pixelmask.images import read_mask

MARGIN = 0.2  # of crops around instances, as a share of the longer side, as InstanceRefiner has it
# Half of the width of the unknown band: a share of the square root of the object's area (of the background's, if that
# is smaller), but some pixels at least. Of 1.25, 2.5 and 5 % this does best on photos of ECSSD, over all kinds of masks
BAND, NARROWEST_BAND = 0.025, 3.0


class Method(ABC):
    """Refines one coarse mask of an image; ``about`` says with what, for the tables."""

    def __init__(self, name: str, about: str):
        self.name, self.about = name, about

    @abstractmethod
    def refine(self, pixels: np.ndarray, coarse: np.ndarray) -> np.ndarray:
        """Return a refined (H, W) boolean mask of an (H, W, 3) uint8 RGB image and its (H, W) boolean coarse mask.

        Raises:
            UserError: if it fails on them.
        """

    def refine_instance(self, pixels: np.ndarray, coarse: np.ndarray) -> np.ndarray:
        """The same in a crop around the mask, as :class:`~airm.instances.InstanceRefiner` cuts it.

        A mask that is empty, or of which nothing would be left, stays as it is.
        """
        if not coarse.any():
            return coarse.copy()
        window = find_window(cv2.boundingRect(coarse.view(np.uint8)), coarse.shape, MARGIN)
        refined = self.refine(np.ascontiguousarray(pixels[window]), coarse[window].copy())
        answer = coarse.copy()
        if refined.any():
            answer[window] = refined
        return answer


class Airm(Method):
    """A trained AIRM, for instances behind an :class:`~airm.instances.InstanceRefiner`."""

    def __init__(self, name: str, weights: str | None = None, **options: Any):
        """
        Args:
            name: of the method.
            weights: a checkpoint; None for what :class:`~airm.Refiner` takes where none is named.
            options: further ones of it.
        """
        super().__init__(name, f"AIRM, {weights or 'the weights that it has by itself'}")
        self.refiner = Refiner(**options) if weights is None else Refiner(weights, **options)
        self.instances = InstanceRefiner(self.refiner)

    def refine(self, pixels: np.ndarray, coarse: np.ndarray) -> np.ndarray:
        return self.refiner.refine(pixels, coarse)

    def refine_instance(self, pixels: np.ndarray, coarse: np.ndarray) -> np.ndarray:
        return self.instances.refine(pixels, coarse[None])[0]


class GrabCut(Method):
    """OpenCV's GrabCut, begun with the coarse mask: what is in it is probable foreground, all else probable background.

    No pixel is certain, unless there is a band: what :func:`make_trimap` has outside of it is certain fore- and
    background. Both colour models have OpenCV's 5 Gaussians; the random generator is seeded before each mask. The
    result is all foreground in the end, also where nothing is left. A coarse mask that is empty or full stays as it is.
    """

    def __init__(self, iterations: int = 3, in_band: bool = False):
        about = f"OpenCV {cv2.__version__}, {iterations} iterations"
        if in_band:
            super().__init__("GrabCut in a band", f"{about}, certain outside of a band of {BAND:.1%}")
        else:
            super().__init__("GrabCut", f"{about}, no pixel certain")
        self.iterations, self.in_band = iterations, in_band

    def refine(self, pixels: np.ndarray, coarse: np.ndarray) -> np.ndarray:
        if not coarse.any() or coarse.all():
            return coarse.copy()
        labels = np.where(coarse, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        if self.in_band:
            trimap = make_trimap(coarse)
            labels[trimap == 1], labels[trimap == 0] = cv2.GC_FGD, cv2.GC_BGD
        cv2.setRNGSeed(0)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        try:
            cv2.grabCut(pixels, labels, (0, 0, 0, 0), *models, self.iterations, cv2.GC_INIT_WITH_MASK)
        except cv2.error as e:
            raise UserError(f"OpenCV: {e.err}") from None
        return (labels == cv2.GC_PR_FGD) | (labels == cv2.GC_FGD)


class Matting(Method):
    """Closed-form matting (Levin et al., 2008) of pymatting with a trimap, and alpha from 0.5 on.

    See :func:`make_trimap`. A coarse mask that is empty or full stays as it is.
    """

    def __init__(self) -> None:
        try:
            import pymatting
        except ImportError:
            way = 'pip install "pymatting>=1.1" (the extra "matting"), or leave it out of --methods'
            raise UserError(f"matting needs pymatting: {way}") from None
        super().__init__("matting", f"closed form, pymatting {pymatting.__version__}, unknown in a band of {BAND:.1%}")
        self.estimate = pymatting.estimate_alpha_cf

    def refine(self, pixels: np.ndarray, coarse: np.ndarray) -> np.ndarray:
        if not coarse.any() or coarse.all():
            return coarse.copy()
        try:
            return self.estimate(pixels / 255, make_trimap(coarse)) >= 0.5
        except ValueError as e:  # a matrix that cannot be factorised
            raise UserError(f"pymatting: {e}") from None


def make_trimap(coarse: np.ndarray) -> np.ndarray:
    """Return 1 inside, 0 outside, and 0.5 within a distance of a mask's contour: (H, W) float64.

    The distance is 2.5 % of the square root of the area, of the object or the background, whichever is smaller, at
    least 3 pixels. Where it leaves nothing inside or outside, there it is half of the largest distance to the contour.

    Args:
        coarse: (H, W) boolean, neither empty nor full.
    """
    area = min(np.count_nonzero(coarse), np.count_nonzero(~coarse))
    band = max(NARROWEST_BAND, BAND * area**0.5)
    trimap = np.full(coarse.shape, 0.5)
    for value, side in ((1.0, coarse), (0.0, ~coarse)):
        distance = cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        trimap[distance > (band if band < distance.max() else distance.max() / 2)] = value
    return trimap


class Command(Method):
    """A command that reads an image and a mask and writes a mask, all three as PNG files; seconds are with these."""

    FIELDS = ("{image}", "{mask}", "{output}")

    def __init__(self, argument: str):
        """
        Args:
            argument: "NAME=COMMAND" with these fields for paths, of which the last has to be there; it is split as a
                shell would, but no shell runs it.

        Raises:
            UserError: for another form.
        """
        name, _, command = argument.partition("=")
        try:
            self.words = shlex.split(command)
        except ValueError:  # a quote without an end
            self.words = []
        if not name or not self.words or self.FIELDS[-1] not in command:
            raise UserError(f'--command {argument!r} is not of the form "NAME=prog {" ".join(self.FIELDS)}"')
        super().__init__(name, command)

    def refine(self, pixels: np.ndarray, coarse: np.ndarray) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            image, mask, output = paths = [Path(folder, f"{field[1:-1]}.png") for field in self.FIELDS]
            Image.fromarray(pixels).save(image)
            Image.fromarray(coarse).save(mask)
            words = self.words
            for field, path in zip(self.FIELDS, paths, strict=True):
                words = [word.replace(field, str(path)) for word in words]
            try:
                ended = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, errors="replace")
            except OSError as e:
                raise UserError(f"cannot run {words[0]}: {e.strerror}") from None
            if ended.returncode:
                said = (ended.stderr.strip() or ended.stdout.strip() or "it said nothing").splitlines()[-1]
                raise UserError(f"{words[0]} ended with status {ended.returncode}: {said}")
            refined = read_mask(output)
        if refined.shape != coarse.shape:
            sizes = [f"{width} x {height}" for height, width in (refined.shape, coarse.shape)]
            raise UserError(f"{words[0]} wrote a mask of {sizes[0]} pixels for an image of {sizes[1]}")
        return refined


# By their names on the command line, each made with the iterations of GrabCut; AIRM takes weights, and is made apart
METHODS: dict[str, Callable[[int], Method]] = {
    "grabcut": GrabCut,
    "grabcut_band": functools.partial(GrabCut, in_band=True),
    "matting": lambda _: Matting(),
}
