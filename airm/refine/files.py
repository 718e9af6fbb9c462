"""Which files a refinement is about: images and coarse masks in, masks and pictures out."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pixelmask.errors import UserError
from pixelmask.files import IMAGE_SUFFIXES, find_images

from ..data.pairs import COARSE, IMAGE, MASK_EXTENSION, SUFFIXES, relative_id

LOSSLESS = (".png", ".bmp", ".tif", ".tiff")


class Match(NamedTuple):
    """An image and its coarse mask; ``name`` is the image's path within its folder, without extension and "_im"."""

    name: str
    image: Path
    mask: Path


class Job(NamedTuple):
    """What is read, and what is written; None for what is not wanted."""

    image: Path
    mask: Path
    refined: Path
    change: Path | None = None
    picture: Path | None = None

    @property
    def written(self) -> list[Path]:
        return [path for path in (self.refined, self.change, self.picture) if path]


def match_files(images: str, masks: str) -> tuple[list[Match], list[str]]:
    """Match images and coarse masks by their names without extension.

    Args:
        images, masks: each a file, a folder (its image files at any depth) or a glob pattern. Two files are matched
            whatever their names. Images named NAME_im are matched with masks named NAME_seg, as in BIG, and other files
            of that layout passed over. In one folder for both, else, .png files are the masks.

    Returns:
        the matches by name, and a sentence for each file without partner; masks that a single image has no use for are
        not among these.

    Raises:
        UserError: if one of them stands for no file, or nothing matches.
    """
    if Path(images).is_file() and Path(masks).is_file():
        return [Match(Path(images).stem.removesuffix(IMAGE), Path(images), Path(masks))], []
    sides = _list_files(images, "image"), _list_files(masks, "mask")
    if Path(images).is_dir() and os.path.samefile(images, masks) and not _has(sides[0], IMAGE):
        pngs = [entry for entry in sides[0] if entry[1].suffix.lower() == MASK_EXTENSION]
        sides = [entry for entry in sides[0] if entry not in pngs], pngs
    faults: list[str] = []
    image_of, mask_of = (_by_name(side, own, faults) for side, own in zip(sides, (IMAGE, COARSE), strict=True))
    matches = [Match(name, image_of[name], mask_of[name]) for name in sorted(image_of.keys() & mask_of.keys())]
    faults += [f"{image_of[name]} has no mask" for name in sorted(image_of.keys() - mask_of.keys())]
    if not Path(images).is_file():
        faults += [f"{mask_of[name]} has no image" for name in sorted(mask_of.keys() - image_of.keys())]
    if not matches:
        first = f": {faults[0]}" if faults else ""
        raise UserError(
            f"no image of {images} has a mask in {masks}{first}. They are matched by name: x.jpg and x.png, or "
            "x_im.jpg and x_seg.png"
        )
    return matches, faults


def _list_files(text: str, kind: str) -> list[tuple[str, Path]]:
    """Return name and path of the files that a file, folder or pattern stands for."""
    files, root = find_images([text], kind=kind), Path(text)
    return [(relative_id(path, root) if root.is_dir() else path.stem, path) for path in files]


def _has(files: Sequence[tuple[str, Path]], suffix: str) -> bool:
    return any(name.endswith(suffix) for name, _ in files)


def _by_name(files: Sequence[tuple[str, Path]], own: str, faults: list[str]) -> dict[str, Path]:
    """Index files by name without the suffix ``own``; where a file has it, those with BIG's other ones are left out."""
    others = tuple(suffix for suffix in SUFFIXES if suffix != own) if _has(files, own) else ()
    index: dict[str, Path] = {}
    for name, path in files:
        if others and name.endswith(others):
            continue
        if index.setdefault(name.removesuffix(own), path) is not path:
            faults.append(f"{path} has the name of {index[name.removesuffix(own)].name} and is left out")
    return index


def plan_jobs(
    matches: Sequence[Match], single: bool, output: Path, change: Path | bool, picture: Path | bool
) -> dict[str, Job]:
    """Say where the results of each match go, by its name.

    Args:
        matches: of :func:`match_files`.
        single: whether output, change and picture are files; else they are folders. An existing folder stays one.
        output: of refined masks, NAME.png in a folder.
        change, picture: of these two; True for NAME_change.png and NAME_side_by_side.jpg beside the refined mask,
            False for none.

    Raises:
        UserError: if a result would replace an input or another result.
    """
    if not single and (output.is_file() or output.suffix.lower() in IMAGE_SUFFIXES):
        raise UserError(f"--output {output}: several masks go into a folder")
    jobs: dict[str, Job] = {}
    for name, image, mask in matches:
        refined = _place("--output", output, f"{name}.png", single, LOSSLESS)
        places: list[Path | None] = []
        for option, place, ending, suffixes in (
            ("--change", change, "_change.png", LOSSLESS),
            ("--side-by-side", picture, "_side_by_side.jpg", IMAGE_SUFFIXES),
        ):
            beside = refined.with_name(refined.stem + ending) if place is True else None
            places.append(beside if isinstance(place, bool) else _place(option, place, name + ending, single, suffixes))
        jobs[name] = Job(image, mask, refined, *places)
    sources = {os.path.realpath(path) for job in jobs.values() for path in (job.image, job.mask)}
    targets: set[str] = set()
    for path in (path for job in jobs.values() for path in job.written):
        target = os.path.realpath(path)
        if target in sources:
            raise UserError(f"{path} is read from; choose another place for what is written")
        if target in targets:
            raise UserError(f"{path} would be written twice; choose different places for masks and pictures")
        targets.add(target)
    return jobs


def _place(option: str, path: Path, name: str, single: bool, suffixes: Sequence[str]) -> Path:
    """Return the file to write: ``path``, which may be a folder, or ``name`` in it."""
    path = path if single and not path.is_dir() else path / name
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{option} {path}: it is written as one of {', '.join(suffixes)}")
    return path
