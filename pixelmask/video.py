"""Videos as sequences of RGB frames, read and written by OpenCV."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from .errors import UserError


class VideoReader:
    """The frames of a video file, once: (H, W, 3) uint8, RGB.

    Raises:
        UserError: on iteration, if not one frame can be read.
    """

    def __init__(self, path: Path):
        self.path = path
        self.video = cv2.VideoCapture(str(path))
        count, rate = self.video.get(cv2.CAP_PROP_FRAME_COUNT), self.video.get(cv2.CAP_PROP_FPS)
        self.count = int(count) if count > 0 else None
        """Number of frames that the file claims to have, if it does."""
        self.rate = rate if rate > 0 else 25.0
        """Frames a second, 25 where the file does not say."""

    def __iter__(self) -> Iterator[np.ndarray]:
        there, frame = self.video.read()
        if not there:
            raise UserError(f"cannot read video {self.path}: OpenCV finds no frame in it")
        while there:
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            there, frame = self.video.read()
        self.video.release()


class VideoWriter:
    """An MP4 file of (H, W, 3) uint8 RGB frames of one size, made with the first; ``rate`` is in frames a second.

    The encoder wants even sizes: an odd last row or column is left out.
    """

    def __init__(self, path: Path, rate: float):
        self.path, self.rate = path, rate
        self.writer: cv2.VideoWriter | None = None

    def __enter__(self) -> "VideoWriter":
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append a frame.

        Raises:
            UserError: if the file cannot be made.
        """
        if self.writer is None:
            size = (frame.shape[1], frame.shape[0])
            self.writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*"mp4v"), self.rate, size)
            if not self.writer.isOpened():
                raise UserError(f"cannot write video {self.path}; can its folder be written to?")
        self.writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def __exit__(self, *exception: object) -> None:
        if self.writer is not None:
            self.writer.release()
