"""Videos as sequences of RGB frames, read and written by OpenCV."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .errors import UserError
from .files import whole_or_not_at_all


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

    The encoder wants even sizes: an odd last row or column is left out. The file is there when all is written.
    """

    def __init__(self, path: Path, rate: float):
        self.path, self.rate, self.frames = path, rate, 0
        self.writer: cv2.VideoWriter | None = None
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> "VideoWriter":
        # OpenCV tells the kind of file from the ending
        self.temporary = self.stack.enter_context(whole_or_not_at_all(self.path, ".partial.mp4"))
        self.stack.push(self._finish)
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append a frame.

        Raises:
            UserError: if the file cannot be made.
        """
        if self.writer is None:
            size = (frame.shape[1], frame.shape[0])
            self.writer = cv2.VideoWriter(str(self.temporary), cv2.VideoWriter.fourcc(*"mp4v"), self.rate, size)
            if not self.writer.isOpened():
                raise UserError(f"cannot write video {self.path}; can its folder be written to?")
        self.writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def _finish(self, kind: object, error: object, traceback: object) -> None:
        if self.writer is not None:
            self.writer.release()
        # OpenCV does not tell when a disk is full
        if error is None and cv2.VideoCapture(str(self.temporary)).get(cv2.CAP_PROP_FRAME_COUNT) != self.frames:
            raise UserError(f"cannot write video {self.path}: not all frames are in the file; is the disk full?")

    def __exit__(self, *exception: Any) -> None:
        self.stack.__exit__(*exception)
