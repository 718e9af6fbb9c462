"""The drawing kit of synthetic data: outlines of smooth and jagged objects, their coverage of pixels, and noise.

An outline is a list of (polygon, fills): (K, 2) float points x, y, painted one after the other; a polygon that does not
fill cuts a hole. What is drawn depends on the generators alone. Any change of a result changes the data sets that were
drawn with it: their drawing version is to be raised then.
"""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
from numpy.random import Generator

Outline = list[tuple[np.ndarray, bool]]
Parts = Iterator[tuple[np.ndarray, bool]]  # of an outline, in the order of painting
Window = tuple[slice, slice]  # rows and columns
SUPERSAMPLING = 4  # samples of coverage along each side of a pixel


def polar(radius: np.ndarray | float, angle: np.ndarray | float) -> np.ndarray:
    """Return the (K, 2) points at radii, one or K, and K angles in radians; the (2,) point at a single angle."""
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def circle(x: float, y: float, radius: float) -> np.ndarray:
    """Return a circle as (40, 2) points."""
    return polar(radius, np.linspace(0, 2 * np.pi, 40, endpoint=False)) + (x, y)


def stroke(path: np.ndarray, width: np.ndarray | float) -> np.ndarray:
    """Return the polygon around a (K, 2) path whose width, one number or K, may taper."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    offset = tangent[:, ::-1] * (-0.5, 0.5) * np.broadcast_to(width, len(path))[:, None]
    return np.concatenate([path + offset, (path - offset)[::-1]])


def subdivide(polygon: np.ndarray, step: float) -> np.ndarray:
    """Put points on the edges of a (K, 2) polygon, no more than step apart, and keep its corners."""
    edges = np.roll(polygon, -1, axis=0) - polygon
    pieces = np.maximum(1, np.ceil(np.linalg.norm(edges, axis=1) / step)).astype(int)
    start = np.repeat(np.arange(len(polygon)), pieces)
    fraction = np.arange(len(start)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return polygon[start] + edges[start] * (fraction / pieces[start])[:, None]


def bend(points: np.ndarray, rng: Generator, pixel: float) -> np.ndarray:
    """Displace (K, 2) points by waves of halving length, down to 8 pixels; pixel is the length of one, in units."""
    wavelength = 1.6
    while wavelength > 8 * pixel:
        direction, phase = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi, 2)
        frequency = 2 * np.pi / wavelength * np.array([np.cos(direction), np.sin(direction)])
        points = points + 0.045 * wavelength**0.8 * np.sin((points @ frequency)[:, None] + phase)
        wavelength /= 2
    return points


def rasterise(outline: Iterable[tuple[np.ndarray, bool]], window: Window) -> np.ndarray:
    """Rasterise an outline given in pixels: the covered share (h, w) float32 of each pixel of the window."""
    rows, columns = window
    canvas = np.zeros(
        ((rows.stop - rows.start) * SUPERSAMPLING, (columns.stop - columns.start) * SUPERSAMPLING), np.uint8
    )
    for polygon, fills in outline:
        # fillPoly takes fixed-point numbers (4 bits of fraction) and has pixel centres at whole coordinates.
        corners = np.round(((polygon - (columns.start, rows.start)) * SUPERSAMPLING - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(canvas, [corners], 255 if fills else 0, shift=4)
    shape = (columns.stop - columns.start, rows.stop - rows.start)
    return cv2.resize(canvas, shape, interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def fractal_noise(rng: Generator, size: int, cells: int) -> np.ndarray:
    """Return (size, size) noise of about unit deviation: octaves from the number of cells given to two pixels."""
    noise: np.ndarray = np.zeros((cells, cells), np.float32)
    weight = 0.8
    while cells <= size // 2:
        noise = cv2.resize(noise, (cells, cells), interpolation=cv2.INTER_CUBIC)
        noise = noise + np.float32(weight) * rng.standard_normal((cells, cells), dtype=np.float32)
        cells, weight = 2 * cells, 0.6 * weight
    return cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
