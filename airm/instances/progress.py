"""What a run over many images has done so far, so that an interruption loses nothing."""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msgspec import Struct

from pixelmask.errors import UserError
from pixelmask.files import write_text
from pixelmask.schema import Id, check

WAY_OUT = "--overwrite begins anew, or choose another --output"


class _Done(Struct):
    """What a line has of an image."""

    image_id: Id
    coarse: list[dict[str, Any]] = []
    refined: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    size: dict[str, int] = {}
    unusable: list[str] = []


class Progress(contextlib.AbstractContextManager["Progress"]):
    """A JSON-lines file: what the run is about, then one line for each image that is done, written at once.

    A line has the "image_id" and whatever else :meth:`add` is given, in JSON.
    """

    def __init__(self, path: Path, about: dict[str, Any], resume: bool):
        """
        Args:
            path: of the file.
            about: files and options that make the results what they are.
            resume: whether to go on with the file if it is there; else it is begun anew.

        Raises:
            UserError: if the file is of a run about something else.
        """
        self.done: dict[str, dict[str, Any]] = {}
        about = json.loads(json.dumps(about))
        lines = _complete_lines(path) if resume and path.is_file() else []
        if lines:
            known, *entries = lines
            check(known, dict[str, Any], f"the first line of {path}", WAY_OUT)
            check(entries, list[_Done], path, WAY_OUT)
            changed = [key for key in about | known if about.get(key) != known.get(key)]
            if changed:
                raise UserError(
                    f"{path} was begun with other options ({', '.join(changed)}); resume with the same ones, or choose "
                    "another --output"
                )
            self.done = {str(entry["image_id"]): entry for entry in entries}
        # Without what an interruption may have left of a line
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines or [about]))
        self._file = path.open("a")

    def add(self, image_id: Any, **of_image: Any) -> None:
        entry = {"image_id": image_id, **of_image}
        self.done[str(image_id)] = entry
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def __exit__(self, *error: object) -> None:
        self._file.close()


def in_order(results: Iterable[dict[str, Any]], done: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the refined results of each image at the places of its results; those of other images stay as they are.

    Args:
        results: of all images, in any order.
        done: by image id as text, lines whose "refined" are as many results in the same order.
    """
    queues = {image_id: iter(entry["refined"]) for image_id, entry in done.items()}
    return [next(queues.get(str(result["image_id"]), iter([result]))) for result in results]


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    with contextlib.suppress(ValueError, RecursionError):
        for line in path.read_bytes().splitlines():
            lines.append(json.loads(line))
    return lines
