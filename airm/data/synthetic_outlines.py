"""Outlines of the synthetic refinement data: a solid body of any shape, and thin structures on it and cut into it.

Bodies are star-shaped about the origin and have the area of the unit disk. Every thin structure is a generator of
(rng, radius, pen): ``radius`` holds the body's (720,) radii at even angles, ``pen`` the least and largest width of a
thin stroke, in the units of the outline. What is drawn from ``rng`` does not depend on ``pen``: at another resolution
the same object appears, with thinner strokes. Outlines are those of :mod:`pixelmask.data.outlines`.
"""

import numpy as np
from numpy.random import Generator

from pixelmask.data.outlines import Outline, Parts, bend, circle, polar, stroke, subdivide

Pen = tuple[float, float]

BODIES = ("blob", "polygon", "star", "castle")

_ANGLES = np.linspace(0, 2 * np.pi, 720, endpoint=False)
_SMOOTH_STEP = 0.01  # between the points of thin strokes, in units; only long waves bend them


def _width(rng: Generator, pen: Pen) -> float:
    return pen[0] * (pen[1] / pen[0]) ** rng.uniform()


def _on_body(radius: np.ndarray, angle: float, share: float) -> np.ndarray:
    """Return the (2,) point at a share of the way from the centre to the body's edge."""
    return polar(share * np.interp(angle % (2 * np.pi), _ANGLES, radius, period=2 * np.pi), angle)


def _path(start: np.ndarray, heading: float, length: float, curl: float = 0.0, wiggle: float = 0.0) -> np.ndarray:
    """Return a (48, 2) path whose heading turns by ``curl`` radians, and by three waves of ``wiggle`` radians."""
    along = np.linspace(0, 1, 48)
    headings = heading + curl * along + wiggle * np.sin(6 * np.pi * along)
    steps = polar(length / 48, headings)
    return start + np.cumsum(steps, axis=0) - steps[0]


def _body(rng: Generator, body: str | None = None) -> np.ndarray:
    """Return the (720,) radii of a blob, a polygon, a star with concave corners, or a castle of steps."""
    kind, phase = int(rng.integers(len(BODIES))), rng.uniform(0, 2 * np.pi)
    if body is not None:
        kind = BODIES.index(body)
    angle = _ANGLES + phase
    if kind == 0:
        waves = [rng.uniform(-0.35, 0.35) / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 7)]
        radius = 1 + np.sum(waves, axis=0)
    elif kind == 1:
        side = 2 * np.pi / int(rng.integers(3, 7))
        radius = 1 / np.cos(angle % side - side / 2)
    elif kind == 2:
        teeth = int(rng.integers(5, 9)) * angle / (2 * np.pi)
        radius = 1 - rng.uniform(0.3, 0.45) * np.abs(2 * (teeth % 1) - 1)
    else:
        teeth = int(rng.integers(6, 12)) * angle / (2 * np.pi)
        radius = np.where(teeth % 1 < rng.uniform(0.4, 0.6), 1, rng.uniform(0.72, 0.85))
    return radius / np.sqrt(np.mean(radius**2))


def _antennae(rng: Generator, radius: np.ndarray, pen: Pen) -> Parts:
    for _ in range(int(rng.integers(2, 5))):
        angle, width = rng.uniform(0, 2 * np.pi), _width(rng, pen)
        heading, length = angle + rng.uniform(-0.5, 0.5), rng.uniform(0.6, 1.1)
        path = _path(_on_body(radius, angle, 0.85), heading, length, rng.uniform(-1.5, 1.5))
        yield stroke(path, np.linspace(1.5, 0.8, len(path)) * width), True
        yield circle(path[-1, 0], path[-1, 1], rng.uniform(1, 2) * width + 0.02), True


def _hair(rng: Generator, radius: np.ndarray, pen: Pen) -> Parts:
    centre, spread, lean = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1), rng.uniform(-0.8, 0.8)
    width = pen[0] ** 0.7 * _width(rng, pen) ** 0.3
    for angle in centre + np.linspace(-spread, spread, int(rng.integers(14, 26))) + rng.normal(0, 0.02):
        heading, length = angle + lean + rng.normal(0, 0.1), rng.uniform(0.25, 0.5)
        path = _path(_on_body(radius, angle, 0.9), heading, length, rng.normal(-lean, 0.4), rng.uniform(0, 0.5))
        yield stroke(path, np.linspace(1.1, 0.8, len(path)) * width), True


def _legs(rng: Generator, radius: np.ndarray, pen: Pen) -> Parts:
    centre, spread, knee = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1), rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
    width, length = _width(rng, pen), rng.uniform(0.3, 0.5)
    for angle in centre + np.linspace(-spread, spread, int(rng.integers(3, 6))):
        thigh = _path(_on_body(radius, angle, 0.85), angle - knee / 2, length + 0.1)
        shin = _path(thigh[-1], angle + knee, length)
        yield stroke(thigh, np.linspace(3, 2, len(thigh)) * width), True
        yield stroke(shin, np.linspace(2, 1, len(shin)) * width), True


def _handles(rng: Generator, radius: np.ndarray, pen: Pen) -> Parts:
    for _ in range(int(rng.integers(1, 4))):
        angle, size, width = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.35), 1.5 * _width(rng, pen)
        centre = _on_body(radius, angle, 1) + polar(0.5 * size, angle)
        # Where its ends meet, a stroke has a seam: inside the body.
        loop = polar(size, angle + np.pi + np.linspace(0, 2 * np.pi, 60)) + centre
        yield stroke(loop, width), True


def _fence(rng: Generator, radius: np.ndarray, pen: Pen) -> Parts:
    """Posts side by side that stand out of the body, and two rails across them."""
    angle, count, gap = rng.uniform(0, 2 * np.pi), int(rng.integers(5, 10)), rng.uniform(0.12, 0.2)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    foot, length, half = _on_body(radius, angle, 0.5), rng.uniform(0.4, 0.6), gap * (count - 1) / 2
    foot_to_edge, post, rail = np.linalg.norm(foot), 1.5 * _width(rng, pen), _width(rng, pen)
    for offset in np.linspace(-half, half, count):
        start = foot + offset * across
        yield stroke(np.stack([start, start + (foot_to_edge + length) * along]), post), True
    for height in (0.4, 0.8):
        middle = foot + (foot_to_edge + height * length) * along
        end = (half + 0.05) * across
        yield stroke(np.stack([middle - end, middle + end]), rail), True


def _crane(rng: Generator, radius: np.ndarray, pen: Pen) -> Parts:
    """Two parallel bars that stand out of the body, and a zigzag between them."""
    angle, length, width = rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 1.2), _width(rng, pen)
    half, pieces = rng.uniform(0.06, 0.11), int(rng.integers(6, 11))
    along, across = np.array([np.cos(angle), np.sin(angle)]), half * np.array([-np.sin(angle), np.cos(angle)])
    foot = _on_body(radius, angle, 0.7)
    nodes = foot + np.linspace(0, length, pieces + 1)[:, None] * along
    nodes += np.where(np.arange(pieces + 1) % 2, 1, -1)[:, None] * across
    for k in range(pieces):
        yield stroke(nodes[k : k + 2], width), True
    for side in (-across, across):
        yield stroke(np.stack([foot + side, foot + side + length * along]), 1.5 * width), True


def _balloons(rng: Generator, radius: np.ndarray, pen: Pen) -> Parts:
    """Small bodies on strings."""
    for _ in range(int(rng.integers(1, 4))):
        angle, size = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.22)
        path = _path(_on_body(radius, angle, 0.9), angle, rng.uniform(0.4, 0.9), rng.uniform(-1, 1), 0.3)
        yield stroke(path, _width(rng, pen)), True
        yield size * polar(_body(rng), _ANGLES)[::6] + path[-1], True


def _slits(rng: Generator, radius: np.ndarray, pen: Pen) -> Parts:
    """Thin cuts from the body's edge inwards."""
    centre, width = rng.uniform(0, 2 * np.pi), 1.3 * _width(rng, pen)
    for angle in centre + np.arange(int(rng.integers(2, 6))) * rng.uniform(0.15, 0.4):
        path = _path(_on_body(radius, angle, 1.05), angle + np.pi, rng.uniform(0.25, 0.45), rng.uniform(-0.5, 0.5))
        yield stroke(path, np.linspace(1.5, 1, len(path)) * width), False


def _wheel(rng: Generator, size: float, pen: Pen) -> Parts:
    width, hub = _width(rng, pen), size * rng.uniform(0.15, 0.35)
    yield circle(0, 0, size), False
    yield circle(0, 0, hub), True
    for angle in np.linspace(0, 2 * np.pi, int(rng.integers(5, 13)), endpoint=False) + rng.uniform(0, 1):
        yield stroke(polar(np.array([0, 1.03 * size]), np.array([angle, angle])), width), True


def _lattice(rng: Generator, size: float, pen: Pen) -> Parts:
    """A round window with bars in one direction, or in two."""
    yield circle(0, 0, size), False
    width, count, turn = _width(rng, pen), int(rng.integers(3, 7)), rng.uniform(0, np.pi)
    for direction in (turn, turn + rng.uniform(1, 2))[: int(rng.integers(1, 3))]:
        along, across = polar(1.0, np.array([direction, direction + np.pi / 2]))
        for offset in np.linspace(-size, size, count + 2)[1:-1]:
            half = np.sqrt((1.03 * size) ** 2 - offset**2) * along
            yield stroke(np.stack([offset * across - half, offset * across + half]), width), True


def _sieve(rng: Generator, size: float, pen: Pen) -> Parts:
    count = int(rng.integers(4, 9))
    hole = min(max(_width(rng, pen), size * rng.uniform(0.12, 0.3)), 0.6 * size)
    centres = polar(0.7 * size, np.linspace(0, 2 * np.pi, count, endpoint=False))
    yield from ((circle(x, y, hole), False) for x, y in centres)


_OUTER = (_antennae, _hair, _legs, _handles, _fence, _crane, _balloons)
_INNER = (_wheel, _lattice, _sieve)


def _bent(outline: Outline, rng: Generator, pixel: float) -> Outline:
    """Bend a whole outline by the same long waves, and its body, the first polygon, by ever shorter ones as well."""
    seed = int(rng.integers(2**32))
    bent: Outline = []
    for k, (polygon, fills) in enumerate(outline):
        # The long waves of both are the same ones: they are the first that a generator of this seed gives.
        step, shortest = (_SMOOTH_STEP, 0.03) if k else (min(_SMOOTH_STEP, 4 * pixel), min(0.03, 2 * pixel))
        bent.append((bend(subdivide(polygon, step), np.random.default_rng(seed), shortest), fills))
    return bent


def draw_object(rng: Generator, pen: Pen, pixel: float, structures: int, body: str | None = None) -> Outline:
    """Draw the outline of an object whose body has the area of the unit disk.

    Args:
        rng: what it is drawn from.
        pen: the least and the largest width of its thin strokes, in units.
        pixel: the length of one pixel, in units; the body's edge is bent by waves down to some 16 of them.
        structures: how many kinds of thin structures stand out of it; it also gets up to two windows and slits.
        body: one of ``BODIES``; any of them if it is not given.
    """
    radius = _body(rng, body)
    outline: Outline = [(polar(radius, _ANGLES), True)]
    for k in rng.permutation(len(_OUTER))[:structures]:
        outline += _OUTER[k](rng, radius, pen)
    if rng.uniform() < 0.6:
        outline += _slits(rng, radius, pen)
    angle = rng.uniform(0, 2 * np.pi)
    for turn in (0, np.pi)[: int(rng.integers(0, 3))]:
        centre, size = _on_body(radius, angle + turn, 0.45), rng.uniform(0.22, 0.34)
        window = _INNER[int(rng.integers(len(_INNER)))](rng, size, pen)
        outline += [(polygon + centre, fills) for polygon, fills in window]
    return _bent(outline, rng, pixel)


def draw_wire(rng: Generator, pen: Pen, length: float) -> Outline:
    """Draw a thin strand about the origin: what a background has of thin structures."""
    heading = rng.uniform(0, 2 * np.pi)
    path = _path(polar(-0.5 * length, heading), heading, length, rng.uniform(-0.8, 0.8), 0.2)
    return [(stroke(path, _width(rng, pen)), True)]
