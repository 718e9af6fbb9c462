"""Draw pairs of an image and its exact mask: one object with thin structures before a cluttered background.

Strokes are a few pixels to 0.3% of the longer side thin, at any resolution. The object's colours stand apart from
whatever is next to it, but the background has shapes and wires of its own, some in the object's colours where they do
not touch it: which of them is the object, a coarse mask tells.

Images are drawn in strips of rows, so that one of 6000 x 4000 pixels needs little memory beyond itself. Noise is made
once, at no more than 512 x 512, and sampled at several scales.
"""

import colorsys
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

from pixelmask.data.outlines import Outline, Window, fractal_noise, rasterise

from .synthetic_outlines import draw_object, draw_wire

DRAWING_VERSION = 1  # to be raised with every change that alters a picture: data made before it are then refused
STRIP_PIXELS = 2**18
_THUMBNAIL = 160  # longer side, in pixels, of what shadows and the placing of background shapes are made from
_MARGIN = 2  # pixels drawn around each window, and dropped
_CONTRAST = 0.5  # least distance, in RGB, of the object's colours from those next to it, if it can be had
_COVER = (0.16, 0.38)  # share of the image's area that an object's body takes


class Pair(NamedTuple):
    """One image (H, W, 3) uint8 RGB and the true mask (H, W) bool of its object."""

    image: np.ndarray
    mask: np.ndarray


class _Material(NamedTuple):
    """Two colours (2, 3) in [0, 1] in a pattern of stripes or blotches, shaded by noise.

    ``sampling`` (2, 3) maps pixels to the noise; stripes have a wave vector (2,) in radians per pixel.
    """

    colours: np.ndarray
    striped: bool
    waves: np.ndarray
    sampling: np.ndarray


class _Noises(NamedTuple):
    """Noise (512, 512) of about unit deviation: from large to small, and of two to eight pixels alone."""

    blotches: np.ndarray
    grain: np.ndarray


class _Layer(NamedTuple):
    """An outline in pixels, what it is made of, and the boxes (N, 4) of its polygons: x0, y0, x1, y1."""

    outline: Outline
    material: _Material
    boxes: np.ndarray


def _colour(rng: Generator) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.1, 0.9), rng.uniform(0.2, 0.95)), np.float32)


def _between(colours: np.ndarray) -> np.ndarray:
    """Return (3, 3): two colours (2, 3) and their mean."""
    return np.concatenate([colours, colours.mean(axis=0, keepdims=True)])


def _two_colours(rng: Generator, likeness: float, others: np.ndarray) -> np.ndarray:
    """Draw two colours (2, 3) that, with those between them, are far from two others; of 40 tries, take the best.

    At likeness 1 they would be the same colour, at 0 they have nothing in common.
    """
    best, farthest = np.zeros((2, 3), np.float32), -1.0
    for _ in range(40):
        first = _colour(rng)
        colours = np.stack([first, likeness * first + (1 - likeness) * _colour(rng)])
        distance = np.linalg.norm(_between(colours)[:, None] - _between(others), axis=2).min()
        if distance > farthest:
            best, farthest = colours, float(distance)
        if farthest > _CONTRAST:
            break
    return best


def _material(rng: Generator, colours: np.ndarray, longer: int) -> _Material:
    angle, turn = rng.uniform(0, 2 * np.pi, 2)
    period = longer * rng.uniform(0.012, 0.05)
    waves = 2 * np.pi / max(period, 6) * np.array([np.cos(angle), np.sin(angle)])
    zoom = rng.uniform(0.7, 2) * 512 / longer
    rotation = zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    sampling = np.concatenate([rotation, rng.uniform(0, 512, (2, 1))], axis=1)
    return _Material(colours, bool(rng.uniform() < 0.5), waves, sampling)


def _sample(noise: np.ndarray, matrix: np.ndarray, window: Window) -> np.ndarray:
    """Return the noise (h, w) that an affine map (2, 3) gives to the pixels of a window, mirrored at its borders."""
    rows, columns = window
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ (columns.start, rows.start)
    size = (columns.stop - columns.start, rows.stop - rows.start)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(noise, shifted, size, flags=flags, borderMode=cv2.BORDER_REFLECT)


def _paint(material: _Material, noises: _Noises, window: Window) -> np.ndarray:
    """Return the (h, w, 3) float32 look of a material in a window of the image."""
    coarse = _sample(noises.blotches, material.sampling, window)
    if material.striped:
        x, y = (np.arange(s.start, s.stop) * wave for s, wave in zip(window[::-1], material.waves, strict=True))
        (sin_x, cos_x), (sin_y, cos_y) = ((np.sin(a).astype(np.float32), np.cos(a).astype(np.float32)) for a in (x, y))
        pattern = sin_y[:, None] * cos_x + cos_y[:, None] * sin_x
    else:
        pattern = coarse
    mix = np.clip(0.5 + 2.5 * pattern, 0, 1)
    unscaled = np.concatenate([np.eye(2), np.round(material.sampling[:, 2:])], axis=1)
    grain = _sample(noises.grain, unscaled, window)
    shade = np.float32(0.1) * coarse + np.float32(0.05) * grain + np.float32(1)
    first, second = material.colours
    return cv2.merge([(first[c] + (second[c] - first[c]) * mix) * shade for c in range(3)])


def _layer(outline: Outline, material: _Material) -> _Layer:
    boxes = np.array([np.concatenate([polygon.min(axis=0), polygon.max(axis=0)]) for polygon, _ in outline])
    return _Layer(outline, material, boxes)


def _cover(layer: _Layer, strip: Window) -> tuple[Window, np.ndarray] | None:
    """Return the part of a strip that a layer reaches into, and its coverage (h, w) there; None if it does not."""
    rows, columns = strip
    near = (layer.boxes[:, 1] < rows.stop + _MARGIN) & (layer.boxes[:, 3] > rows.start - _MARGIN)
    near &= (layer.boxes[:, 0] < columns.stop) & (layer.boxes[:, 2] > columns.start)
    if not near.any():
        return None
    left = max(columns.start, int(layer.boxes[near, 0].min()) - 1)
    right = min(columns.stop, int(layer.boxes[near, 2].max()) + 2)
    parts = [part for part, is_near in zip(layer.outline, near, strict=True) if is_near]
    # OpenCV cuts off lines at the canvas's border not quite where they cross it: that is kept out of sight.
    wider = slice(rows.start - _MARGIN, rows.stop + _MARGIN), slice(left - _MARGIN, right + _MARGIN)
    coverage = rasterise(parts, wider)[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    return (rows, slice(left, right)), coverage


def _pen(width: int, height: int) -> np.ndarray:
    """Return the least and the largest width of thin strokes, in pixels."""
    return np.array([2.0, max(3.2, 0.003 * max(width, height))])


def _foreground(rng: Generator, width: int, height: int, body: str | None) -> Outline:
    """Return the object's outline in pixels, stretched towards the image's aspect."""
    scale = np.sqrt(rng.uniform(*_COVER) * width * height / np.pi)
    stretch = np.array([width / height, height / width]) ** 0.5
    centre = (0.5 + rng.uniform(-0.06, 0.06, 2)) * (width, height)
    pen = _pen(width, height) / scale
    outline = draw_object(rng, (pen[0], pen[1]), 1 / scale, structures=int(rng.integers(3, 6)), body=body)
    return [(polygon * scale * stretch + centre, fills) for polygon, fills in outline]


def _thumbnail(outline: Outline, width: int, height: int) -> np.ndarray:
    factor = _THUMBNAIL / max(width, height)
    window = (slice(0, max(1, round(height * factor))), slice(0, max(1, round(width * factor))))
    return rasterise([(polygon * factor, fills) for polygon, fills in outline], window)


def _clutter(rng: Generator, occupied: np.ndarray, body: _Material, width: int, height: int) -> list[_Layer]:
    """Return shapes and wires of the background; those in the object's colours stay off what it occupies, (h, w)."""
    longer, unit = max(width, height), np.sqrt(width * height)
    layers = []
    for shape_rng in rng.spawn(int(rng.integers(6, 11))):
        echo, wire = shape_rng.uniform() < 0.35, shape_rng.uniform() < 0.3
        scale = unit * shape_rng.uniform(0.04, 0.13)
        pen = _pen(width, height) / scale
        if wire:
            outline = draw_wire(shape_rng, (pen[0], pen[1]), shape_rng.uniform(0.3, 1) * unit / scale)
        else:
            outline = draw_object(shape_rng, (pen[0], pen[1]), 1 / scale, structures=int(shape_rng.integers(1, 3)))
        colours = body.colours if echo else _two_colours(shape_rng, 0, body.colours)
        for centre in shape_rng.uniform(0, 1, (8, 2)) * (width, height):
            placed = [(polygon * scale + centre, fills) for polygon, fills in outline]
            if not echo or not occupied[_thumbnail(placed, width, height) > 0].any():
                layers.append(_layer(placed, _material(shape_rng, colours, longer)))
                break
    return layers


def _scene(
    rng: Generator, width: int, height: int, body_kind: str | None = None
) -> tuple[_Material, list[_Layer], np.ndarray]:
    """Return the ground, the layers from back to front, the object last, and its shadow (h, w) as a thumbnail."""
    object_rng, colour_rng, clutter_rng = rng.spawn(3)
    longer = max(width, height)
    outline = _foreground(object_rng, width, height, body_kind)
    first = _colour(colour_rng)
    body = _material(colour_rng, np.stack([first, 0.65 * first + 0.35 * _colour(colour_rng)]), longer)
    ground = _material(colour_rng, _two_colours(colour_rng, 0.5, body.colours), longer)
    small = _thumbnail(outline, width, height)
    occupied = cv2.dilate(small, np.ones((9, 9), np.uint8)) > 0
    layers = _clutter(clutter_rng, occupied, body, width, height)
    shadow = cv2.GaussianBlur(small, (0, 0), 4)
    return ground, [*layers, _layer(outline, body)], shadow


def draw_pair(seed: int, index: int, width: int, height: int, body: str | None = None) -> Pair:
    """Draw image ``index`` of the endless sequence that ``seed`` names, in ``width`` x ``height`` pixels.

    The result depends on the arguments alone; ``body``, one of :data:`.synthetic_outlines.BODIES`, fixes the kind of
    shape that the object has, which otherwise is any. The same pair at another resolution of the same aspect shows the
    same object, with thinner structures where there are more pixels. A pixel belongs to the mask where the object
    covers half of it or more.
    """
    rng = np.random.default_rng([seed, index])
    ground, layers, shadow = _scene(rng, width, height, body)
    noises = _Noises(fractal_noise(rng, 512, 4), fractal_noise(rng, 544, 68)[16:-16, 16:-16])
    factor = shadow.shape[1] / width
    # Light comes from the upper left.
    displaced = np.array([[factor, 0, -3.0], [0, factor, -3.0]])
    image, mask = np.empty((height, width, 3), np.uint8), np.zeros((height, width), bool)
    step = max(16, STRIP_PIXELS // width)
    for top in range(0, height, step):
        strip = slice(top, min(top + step, height)), slice(0, width)
        canvas = _paint(ground, noises, strip)
        for layer in layers:
            if layer is layers[-1]:
                canvas *= (1 - np.float32(0.3) * _sample(shadow, displaced, strip))[..., None]
            covered = _cover(layer, strip)
            if covered is None:
                continue
            window, coverage = covered
            part = canvas[:, window[1]]
            part += coverage[..., None] * (_paint(layer.material, noises, window) - part)
            if layer is layers[-1]:
                mask[window] = coverage >= 0.5
        image[strip] = cv2.convertScaleAbs(np.clip(canvas, 0, 1), alpha=255)
    return Pair(image, mask)
