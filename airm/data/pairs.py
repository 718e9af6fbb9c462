"""Pairs of image and mask found in folders, and the files that have no partner.

Three layouts are known; hidden files and folders are skipped in all of them, and so are files that are no images:

    side by side   x.jpg + x.png, at any depth: class/1.jpg + class/1.png
    two folders    images/x.jpg + masks/x.png, at any but the same depth
    BIG            NAME_im.jpg + NAME_gt.png + NAME_seg.png: image, truth and coarse mask

The image_id of a pair is the path of its image within the folder, without extension and, in BIG, without "_im".
"""

from pathlib import Path
from typing import NamedTuple

from pixelmask.errors import UserError
from pixelmask.files import IMAGE_SUFFIXES, list_folder
from pixelmask.images import read_picture, read_soft_mask

MASK_EXTENSION = ".png"  # of masks that lie beside their images
SUFFIXES = IMAGE, TRUTH, COARSE = ("_im", "_gt", "_seg")
# (images, masks) of ECSSD, DUTS and DUT-OMRON as they are published, and of many others
KNOWN_FOLDERS = (
    ("images", "ground_truth_mask"),
    ("DUTS-TR-Image", "DUTS-TR-Mask"),
    ("DUTS-TE-Image", "DUTS-TE-Mask"),
    ("DUT-OMRON-image", "pixelwiseGT-new-PNG"),
    ("images", "masks"),
)


class Pair(NamedTuple):
    """An image with its true mask, and the coarse mask where the data set has one."""

    image_id: str
    image: Path
    mask: Path
    coarse: Path | None = None


class Unmatched(NamedTuple):
    """A file without a partner; its path and ``fault`` make a sentence: "x.jpg" "has no mask"."""

    image_id: str
    path: Path
    fault: str

    def __str__(self) -> str:
        return f"{self.path} {self.fault}"


class Pairing(NamedTuple):
    """What was found, sorted by image_id; ``place`` tells the folders and the layout for messages."""

    place: str
    pairs: list[Pair]
    unmatched: list[Unmatched]


def find_pairs(folder: str | Path) -> Pairing:
    """Find the pairs in a folder of whatever layout.

    It is two folders if it has a pair of ``KNOWN_FOLDERS``, BIG's if a file ends in "_im" and another in "_gt" or
    "_seg", else side by side.

    Raises:
        UserError: if there is no such folder.
    """
    folder = Path(folder)
    for images, masks in KNOWN_FOLDERS:
        if (folder / images).is_dir() and (folder / masks).is_dir():
            return pair_folders(folder / images, folder / masks)
    stems = [path.stem for path in _list_files(folder)]
    if any(stem.endswith(IMAGE) for stem in stems) and any(stem.endswith((TRUTH, COARSE)) for stem in stems):
        return pair_big(folder)
    return pair_side_by_side(folder)


def pair_side_by_side(folder: Path) -> Pairing:
    """Pair every .png file, a mask, with the image of another extension beside it."""
    sides: dict[str, list[tuple[str, Path]]] = {"image": [], "mask": []}
    for path in _list_files(folder):
        sides["mask" if path.suffix.lower() == MASK_EXTENSION else "image"].append((relative_id(path, folder), path))
    return _match(f"{folder} (images and masks side by side)", sides)


def pair_folders(images: Path, masks: Path) -> Pairing:
    """Pair the files of two folders, one of which may contain the other, by their names without extension."""
    sides = {
        kind: [(relative_id(path, folder), path) for path in _list_files(folder, other)]
        for kind, folder, other in (("image", images, masks), ("mask", masks, images))
    }
    return _match(f"{images} and {masks}", sides)


def pair_big(folder: Path, common: Path | None = None, coarse_required: bool = False) -> Pairing:
    """Pair the files of a folder in BIG layout.

    Args:
        folder: every image wants a coarse mask there if one of them has it.
        common: where the images and truths are if ``folder`` has nothing but coarse masks; coarse masks there are not
            looked at.
        coarse_required: whether every image wants a coarse mask in any case.
    """
    sides, strangers = _split_big(folder)
    place = str(folder)
    if common is not None and common.is_dir() and not sides[IMAGE] and not sides[TRUTH]:
        shared, others = _split_big(common)
        sides, strangers = {**shared, COARSE: sides[COARSE]}, strangers + others
        place = f"{folder} and {common}"
    kinds = {"image (_im)": sides[IMAGE], "mask (_gt)": sides[TRUTH]}
    if sides[COARSE] or coarse_required:
        kinds["coarse mask (_seg)"] = sides[COARSE]
    pairing = _match(f"{place} (BIG layout)", kinds)
    return pairing._replace(unmatched=sorted(pairing.unmatched + strangers))


def check_pair(pair: Pair) -> list[str]:
    """Decode the files of a pair in full; describe those that are empty, unreadable, or not of the image's size."""
    faults = []
    sizes = {}
    for path in filter(None, (pair.image, pair.mask, pair.coarse)):
        try:
            if path.stat().st_size == 0:
                faults.append(f"{path} is empty (0 bytes)")
                continue
            pixels = read_picture(path) if path is pair.image else read_soft_mask(path)
            sizes[path] = f"{pixels.shape[1]} x {pixels.shape[0]}"
        except OSError as e:  # a broken link, or no permission
            faults.append(f"cannot read {path}: {e.strerror}")
        except UserError as e:
            faults.append(str(e))
    expected = sizes.get(pair.image)
    faults += [
        f"{path} has {size} pixels, its image {pair.image.name} has {expected}"
        for path, size in sizes.items()
        if expected and size != expected
    ]
    return faults


def _list_files(folder: Path, skipped: Path | None = None) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"no folder {folder.absolute()}; correct its path")
    return list_folder(folder, skipped=skipped)


def relative_id(path: Path, folder: Path) -> str:
    """Return the path of a file within a folder, without extension."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _split_big(folder: Path) -> tuple[dict[str, list[tuple[str, Path]]], list[Unmatched]]:
    """Sort the files of a folder in BIG layout by their suffix; return those that have none of them beside."""
    sides: dict[str, list[tuple[str, Path]]] = {suffix: [] for suffix in SUFFIXES}
    strangers = []
    for path in _list_files(folder):
        name = relative_id(path, folder)
        suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
        if suffix is None:
            strangers.append(Unmatched(name, path, f"ends in none of {', '.join(SUFFIXES)}"))
        else:
            sides[suffix].append((name.removesuffix(suffix), path))
    return sides, strangers


def _match(place: str, sides: dict[str, list[tuple[str, Path]]]) -> Pairing:
    """Match the (image_id, path) lists of two or three kinds of files: image, mask and perhaps coarse mask.

    Where two files of a kind have the same name, the one whose extension comes first is taken.
    """
    unmatched = []
    files: dict[str, dict[str, Path]] = {}
    for kind, named in sides.items():
        files[kind] = {}
        for name, path in sorted(named, key=lambda entry: (IMAGE_SUFFIXES.index(entry[1].suffix.lower()), entry[1])):
            if files[kind].setdefault(name, path) is not path:
                unmatched.append(Unmatched(name, path, f"has the name of {files[kind][name].name}, another {kind}"))
    pairs = []
    for name in sorted(set().union(*files.values())):
        present = [paths[name] for paths in files.values() if name in paths]
        if len(present) == len(files):
            pairs.append(Pair(name, *present))
        else:
            absent = " and no ".join(kind for kind, paths in files.items() if name not in paths)
            unmatched.append(Unmatched(name, present[0], f"has no {absent}"))
    return Pairing(place, pairs, sorted(unmatched))
