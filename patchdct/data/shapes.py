"""Draw the synthetic data set "shapes": overlapping, textured objects whose difficulty is their outline.

Every class has its own outline and its own hue, before a muted background, so that recognising an object is easy.
Outlines carry teeth, slits, holes, spikes and thin strokes some 3 to 8 pixels wide at 256 pixels, and are bent by
waves of ever smaller length down to a few pixels: the larger the image, the more detail one scene shows.

Outlines are lists of (polygon, fills): (K, 2) float polygons within about the unit disk, painted one after
the other; a polygon that does not fill cuts a hole. Arrays of images are (size, size, 3) float32 in [0, 1], RGB.
"""

import colorsys
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

from pixelmask.data.outlines import Parts, Window, bend, circle, fractal_noise, polar, rasterise, stroke, subdivide

DRAWING_VERSION = 1  # to be raised with every change that alters a picture: data made before it are then refused
MIN_VISIBLE = 0.45  # of an object's own pixels; objects hidden more than this are not drawn at all
MAX_OBJECTS = 5


class Scene(NamedTuple):
    """One image (S, S, 3) uint8 RGB, the disjoint visible masks (N, S, S) bool and the class indices (N,)."""

    image: np.ndarray
    masks: np.ndarray
    classes: np.ndarray


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _teeth(count: int, fractions: list[float], radii: list[float], phase: float = 0.0) -> np.ndarray:
    """Return a closed polar profile that repeats (fraction of the tooth, radius) count times around the centre."""
    turns = (np.arange(count)[:, None] + np.array(fractions)[None]).ravel() / count
    return polar(np.tile(radii, count), 2 * np.pi * turns + phase)


def _gear(rng: Generator) -> Parts:
    root, spokes = rng.uniform(0.78, 0.82), int(rng.integers(3, 6))
    yield _teeth(int(rng.integers(10, 15)), [0, 0.1, 0.45, 0.55], [root, 1, 1, root]), True
    for k in range(spokes):
        inner, outer = 0.36, root - 0.2
        half = np.pi / spokes - 0.1 / np.array([inner, outer])  # leaves spokes of one width along their length
        arcs = [polar(r, np.linspace(-h, h, 12)[::s]) for r, h, s in zip((inner, outer), half, (1, -1), strict=True)]
        turn = 2 * np.pi * k / spokes
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        yield np.concatenate(arcs) @ rotation, False
    yield circle(0, 0, 0.14), False


def _star(rng: Generator) -> Parts:
    spikes, valley, short = int(rng.integers(4, 7)), rng.uniform(0.56, 0.62), rng.uniform(0.8, 0.9)
    body = _teeth(spikes, [0, 0.25, 0.5, 0.75], [1, valley, short, valley])
    yield body, True
    yield _teeth(spikes, [0, 0.5], [0.26, 0.13], rng.uniform(0, 1)), False


def _comb(rng: Generator) -> Parts:
    count, back = int(rng.integers(6, 9)), rng.uniform(0, 0.15)
    yield _rectangle(-1, -0.75, 1, back), True
    for x in np.linspace(-1, 1, count, endpoint=False):
        tip = rng.uniform(0.55, 0.75)
        tooth = [(x, back), (x + 1.4 / count, back), (x + 1.2 / count, tip), (x + 0.2 / count, tip)]
        yield np.array(tooth), True
    holes = np.linspace(-0.7, 0.7, int(rng.integers(3, 5)))
    yield from ((circle(x, back / 2 - 0.4, 0.12), False) for x in holes)


def _ring(rng: Generator) -> Parts:
    angle, lobes = np.linspace(0, 2 * np.pi, 240, endpoint=False), int(rng.integers(8, 12))
    yield polar(0.93 + 0.07 * np.cos(lobes * angle), angle), True
    yield _teeth(lobes, [0, 0.4, 0.5, 0.9], [0.3, 0.3, 0.4, 0.4]), False
    holes = polar(0.66, np.linspace(0, 2 * np.pi, int(rng.integers(5, 8)), endpoint=False))
    yield from ((circle(x, y, 0.1), False) for x, y in holes)


def _leaf(rng: Generator) -> Parts:
    count, width = int(rng.integers(6, 9)), rng.uniform(0.65, 0.75)
    along = np.linspace(0, 1, 40 * count)
    saw = (along * count) % 1 + 0.2 * ((along * count * 5) % 1)  # teeth, and teeth on the teeth
    half = width * np.sin(np.pi * along**0.8) ** 0.7 * (0.8 + 0.25 * saw)
    side = np.stack([half, 1.7 * along - 1], axis=1)
    yield np.concatenate([side, (side * (-1, 1))[::-1]]), True
    yield stroke(np.array([(0.0, 0.4), (0.02, 0.8), (0.1, 1.05)]), np.array([0.16, 0.14, 0.18])), True
    for y in (-0.2, 0.2):
        for direction in (-1, 1):
            vein = np.array([(0.09 * direction, y), (width * 0.55 * direction, y - 0.3)])
            yield stroke(vein, np.array([0.13, 0.06])), False


def _puzzle(rng: Generator) -> Parts:
    """A jigsaw piece: a knob (fills) or a socket (cuts) in the middle of each side, joined by a narrower neck."""
    yield _rectangle(-0.7, -0.7, 0.7, 0.7), True
    for k, knob in enumerate(rng.permutation([True, True, False, rng.uniform() < 0.5])):
        reach, neck = (0.84, 0.66) if knob else (0.5, 0.72)
        along = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)][k])
        offset = along * reach + along[::-1] * rng.uniform(-0.15, 0.15)
        yield circle(offset[0], offset[1], rng.uniform(0.17, 0.2)), bool(knob)
        joint = np.stack([offset, offset + along * (neck - reach)])
        yield stroke(joint, 0.2), bool(knob)


def _spiral(rng: Generator) -> Parts:
    """A band whose turns leave a slit, with thorns outside."""
    turns, thorns = rng.uniform(1.5, 1.9), int(rng.integers(10, 14))
    along = np.linspace(0.02, 1, 400)
    width = 0.66 / turns * (0.95 + 0.15 * ((along * thorns) % 1))
    yield stroke(polar(0.9 * along**0.95, 2 * np.pi * turns * along), width), True


def _snowflake(rng: Generator) -> Parts:
    yield _teeth(6, [0, 0.5], [0.62, 0.56]), True
    foot, length = rng.uniform(0.66, 0.72), rng.uniform(0.32, 0.38)
    for turn in np.arange(6) * np.pi / 3:
        yield stroke(polar(np.array([0.2, 1.0]), np.array([turn, turn])), np.array([0.26, 0.2])), True
        start = polar(foot, turn)
        for side in (-0.9, 0.9):
            branch = np.stack([start, start + polar(length, turn + side)])
            yield stroke(branch, np.array([0.18, 0.14])), True
    yield _teeth(6, [0, 0.5], [0.3, 0.15]), False


_OUTLINES = (_gear, _star, _comb, _ring, _leaf, _puzzle, _spiral, _snowflake)  # of the classes
SHAPES_CLASSES = ("gear", "star", "comb", "ring", "leaf", "puzzle", "spiral", "snowflake")


def _points(label: int, centre: np.ndarray, side: float, rng: Generator) -> Parts:
    """Return the outline in pixels of an object whose box is centred there and has the longer side given."""
    outline, pixel = list(_OUTLINES[label](rng)), 2 / side
    polygons = [subdivide(polygon, 2 * pixel) for polygon, _ in outline]
    points = bend(np.concatenate(polygons), rng.spawn(1)[0], pixel)
    turn, aspect = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1)
    points = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) * (1, aspect)
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - (low + high) / 2) * side / (high - low).max() + centre
    bent = np.split(points, np.cumsum([len(polygon) for polygon in polygons])[:-1])
    return zip(bent, [fills for _, fills in outline], strict=True)


def _stripes(rng: Generator, size: int, low: float, high: float) -> np.ndarray:
    """Return (size, size) soft stripes in [-1, 1] of a random direction and a period drawn from [low, high] px."""
    angle = rng.uniform(0, np.pi)
    axis = np.arange(size, dtype=np.float32) * np.float32(2 * np.pi / rng.uniform(low, high))
    phase = axis[None] * np.float32(np.cos(angle)) + axis[:, None] * np.float32(np.sin(angle))
    return np.clip(2 * np.sin(phase), -1, 1)


def _background(size: int, rng: Generator) -> np.ndarray:
    """Draw a greyish ground with sharp-edged blotches, stripes and noise, so that edges alone do not tell objects."""
    noise_rng, blotch_rng = rng.spawn(2)
    tint = np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0, 0.12), rng.uniform(0.4, 0.7)), np.float32)
    shade = 1 + 0.12 * fractal_noise(noise_rng, size, 4) + 0.08 * _stripes(rng, size, 0.03 * size, 0.12 * size)
    shade += 0.07 * np.sign(fractal_noise(blotch_rng, size, 4))
    return tint * shade[..., None]


def _paint(canvas: np.ndarray, coverage: np.ndarray, label: int, size: int, rng: Generator) -> None:
    """Lay one textured, embossed object with its shadow over its window (h, w, 3) of the canvas, in place."""
    noise_rng = rng.spawn(1)[0]
    hue = (label + rng.uniform(-0.25, 0.25)) / len(SHAPES_CLASSES)
    colour = np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.65, 0.9), rng.uniform(0.7, 0.95)), np.float32)
    blurred = cv2.GaussianBlur(coverage, (0, 0), size / 100)
    height, width = coverage.shape
    shadow, light = (
        cv2.warpAffine(blurred, np.array([[1.0, 0, d], [0, 1, d]]), (width, height)) for d in (size / 100, -size / 100)
    )
    longer = max(height, width)
    texture = 0.08 * fractal_noise(noise_rng, longer, 4) + 0.1 * _stripes(rng, longer, 0.02 * size, 0.06 * size)
    shade = 1 + texture[:height, :width] + 0.35 * (shadow - light)
    canvas *= (1 - 0.4 * shadow)[..., None]
    canvas += coverage[..., None] * (colour * shade[..., None] - canvas)


def _window(centre: np.ndarray, side: float, size: int) -> Window:
    """Return the rows and columns, inside the image, of the square around an object and its shadow."""
    reach = side / 2 + size / 20
    low, high = np.clip([np.floor(centre - reach), np.ceil(centre + reach)], 0, size).astype(int)
    return slice(low[1], high[1]), slice(low[0], high[0])


def draw_scene(seed: int, index: int, size: int) -> Scene:
    """Draw image `index` of the endless sequence that `seed` names, `size` pixels on each side (64 or more).

    The result depends on the three arguments alone. The same scene at another size shows the same objects with more or
    less detail. Objects are returned front to back; their masks hold the visible pixels.
    """
    rng = np.random.default_rng([seed, index])
    ground_rng, *object_rngs = rng.spawn(1 + MAX_OBJECTS)
    count = int(rng.integers(2, MAX_OBJECTS + 1))
    centres, sides = np.zeros((0, 2)), np.zeros(0)
    taken = np.zeros((size, size), bool)
    objects, masks = [], []
    for object_rng in object_rngs[:count]:
        label = int(object_rng.integers(len(SHAPES_CLASSES)))
        side = object_rng.uniform(0.3, min(0.65, 1.15 / count**0.5))
        spots = object_rng.uniform(0.45 * side, 1 - 0.45 * side, (4, 2))
        gaps = np.linalg.norm(spots[:, None] - centres, axis=2) / (side + sides)
        spot = spots[np.argmax(gaps.min(axis=1, initial=1))]  # of four, the one most apart from the objects in front
        window = _window(spot * size, side * size, size)
        coverage = rasterise(_points(label, spot * size, side * size, object_rng), window)
        mask = np.zeros_like(taken)
        mask[window] = (coverage >= 0.5) & ~taken[window]
        if mask.sum() < MIN_VISIBLE * (coverage >= 0.5).sum():
            continue
        taken |= mask
        centres, sides = np.vstack([centres, spot]), np.append(sides, side)
        objects.append((window, coverage, label, object_rng))
        masks.append(mask)
    image = _background(size, ground_rng)
    for window, coverage, label, object_rng in objects[::-1]:
        _paint(image[window], coverage, label, size, object_rng)
    pixels = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    return Scene(pixels, np.array(masks), np.array([label for _, _, label, _ in objects]))
