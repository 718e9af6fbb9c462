"""Registration of refinement data sets: those of the paper, and a user's own from ``DATASETS.REFINEMENT``.

Importing this module registers the sets of ``BUILT_IN``, below ``$DETECTRON2_DATASETS``: training sets `msra10k`,
`duts_tr`, `duts_te`, `dut_omron`, `ecssd` and `fss1000`; test sets `big_<source>` and `voc_relabelled_<source>`, where
the source of the coarse masks is `fcn8s`, `refinenet`, `deeplabv3plus` or `pspnet` (AIRM, Sec. 5.1, Table 1). Folders
are looked at when the dicts are asked for. A dict has "file_name", "mask_file_name" (the truth), "image_id" and, where
the set has coarse masks, "coarse_file_name".
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from detectron2.data import DatasetCatalog, MetadataCatalog

from pixelmask.data.roots import datasets_root, describe_root, expand_path
from pixelmask.errors import UserError

from .pairs import Pairing, find_pairs, pair_big, pair_folders

COARSE_SOURCES = ("fcn8s", "refinenet", "deeplabv3plus", "pspnet")
FORMS_OF_ENTRY = "[name, folder], [name, image folder, mask folder] or [name, image folder, mask folder, list file]"
MAX_NAMED = 3


@dataclass(frozen=True)
class BuiltInSet:
    """A set of the paper: its folder below ``$DETECTRON2_DATASETS`` and the number of pairs that were published.

    A test set is in BIG layout with coarse masks; its images and truths may be in ``common`` instead.
    """

    name: str
    folder: str
    count: int
    common: str = ""

    def find(self) -> Pairing:
        """Find its pairs; raise UserError if its folder is missing."""
        folder = datasets_root() / self.folder
        if not folder.is_dir():
            raise UserError(
                f"data set {self.name} needs the folder {folder.absolute()}, which does not exist; {describe_root()}. "
                "What belongs in it and where to get it: datasets/README.md"
            )
        common = folder.parent / self.common
        return pair_big(folder, common, coarse_required=True) if self.common else find_pairs(folder)

    def __call__(self) -> list[dict[str, Any]]:
        return make_dicts(self.name, self.find(), self.name)


@dataclass(frozen=True)
class CustomSet:
    """A user's set: one folder of any layout, or a folder of images and one of masks; perhaps a part of their pairs.

    ``list_file`` is a text file with the image_id of one pair on each line.
    """

    name: str
    images: str
    masks: str
    list_file: str = ""
    count: ClassVar[None] = None

    def find(self) -> Pairing:
        """Find its pairs; raise UserError if a folder or the list is missing, or an image_id of the list is unknown."""
        for folder in (self.images, self.masks):
            if not Path(folder).is_dir():
                raise UserError(
                    f"data set {self.name} needs the folder {folder}, which does not exist; correct its entry in "
                    "DATASETS.REFINEMENT"
                )
        one = self.images == self.masks
        pairing = find_pairs(self.images) if one else pair_folders(Path(self.images), Path(self.masks))
        return select_pairs(pairing, self.list_file) if self.list_file else pairing

    def __call__(self) -> list[dict[str, Any]]:
        return make_dicts(self.name, self.find(), ":".join(dict.fromkeys([self.images, self.masks])))


BUILT_IN = {
    entry.name: entry
    for entry in (
        BuiltInSet("msra10k", "MSRA10K", 10_000),
        BuiltInSet("duts_tr", "DUTS-TR", 10_553),
        BuiltInSet("duts_te", "DUTS-TE", 5_019),
        BuiltInSet("dut_omron", "DUT-OMRON", 5_168),
        BuiltInSet("ecssd", "ECSSD", 1_000),
        BuiltInSet("fss1000", "FSS-1000", 10_000),
        *(BuiltInSet(f"big_{source}", f"BIG/{source}", 100, "test") for source in COARSE_SOURCES),
        *(BuiltInSet(f"voc_relabelled_{s}", f"VOC2012_relabelled/{s}", 500, "test") for s in COARSE_SOURCES),
    )
}


def parse_folders(argument: str) -> CustomSet:
    """Return the set that FOLDER, of any layout, or IMAGES:MASKS stands for, or a list file's part: FOLDER:LIST, ...

    Raises:
        UserError: if there is no such folder.
    """
    folders = [argument] if Path(argument).is_dir() else argument.split(":")
    list_file = folders.pop() if len(folders) > 1 and Path(folders[-1]).is_file() else ""
    for folder in folders:
        if not folder or not Path(folder).is_dir():
            raise UserError(
                f"{folder or argument!r} is neither a folder nor a data set; known are {', '.join(BUILT_IN)} (see "
                "datasets/README.md), a folder of any layout, and IMAGES:MASKS; either may have :LIST behind it, a file"
            )
    if len(folders) > 2:
        raise UserError(f"{argument} names {len(folders)} folders; give one, or IMAGES:MASKS")
    return CustomSet(argument, folders[0], folders[-1], list_file)


def make_dicts(name: str, pairing: Pairing, check_argument: str) -> list[dict[str, Any]]:
    """Return the dicts of a data set.

    Args:
        name: of the data set, for messages.
        pairing: what was found of it.
        check_argument: what ``prepare_refinement.py --check`` knows it by.

    Raises:
        UserError: if there are no pairs, or a file has no partner.
    """
    if pairing.unmatched:
        first = ", ".join(str(stray) for stray in pairing.unmatched[:MAX_NAMED])
        raise UserError(
            f"data set {name} has {len(pairing.pairs)} pairs in {pairing.place}, and {len(pairing.unmatched)} files "
            f"without a partner: {first}{', ...' if len(pairing.unmatched) > MAX_NAMED else ''}. To have all of them "
            f"named: python datasets/prepare_refinement.py --check {check_argument}"
        )
    if not pairing.pairs:
        raise UserError(f"data set {name} has no images in {pairing.place}; what belongs there: datasets/README.md")
    keys = ("image_id", "file_name", "mask_file_name", "coarse_file_name")
    return [{key: str(path) for key, path in zip(keys, pair, strict=True) if path} for pair in pairing.pairs]


def select_pairs(pairing: Pairing, list_file: str) -> Pairing:
    """Keep the pairs, and the files without a partner, whose image_ids a text file lists, one on each line.

    Raises:
        UserError: if the file is missing, empty or no text, or names an image_id that is not there or comes twice.
    """
    try:
        lines = Path(list_file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"cannot read list file {list_file}: {e}") from None
    names = [line.strip() for line in lines if line.strip()]
    listed = set(names)
    if not listed:
        raise UserError(f"list file {list_file} is empty; it is to have an image_id on each line")
    if len(listed) < len(names):
        repeated = next(name for i, name in enumerate(names) if name in names[:i])
        raise UserError(f"list file {list_file} names {repeated} twice")
    known = {pair.image_id for pair in pairing.pairs} | {stray.image_id for stray in pairing.unmatched}
    unknown = sorted(listed - known)
    if unknown:
        first = ", ".join(unknown[:MAX_NAMED]) + (", ..." if len(unknown) > MAX_NAMED else "")
        raise UserError(
            f"{len(unknown)} of {len(names)} lines of {list_file} name no image of {pairing.place}: {first}. A line is "
            f"the path of an image in its folder without extension, such as {min(known, default='class/1')}"
        )
    return pairing._replace(
        pairs=[pair for pair in pairing.pairs if pair.image_id in listed],
        unmatched=[stray for stray in pairing.unmatched if stray.image_id in listed],
    )


def register_refinement(entries: Sequence[Sequence[str]]) -> None:
    """Register the entries of ``DATASETS.REFINEMENT``; the same one may be registered again.

    An entry is [name, folder], [name, image folder, mask folder], or the latter and a list file, which selects a part
    (see :func:`select_pairs`). Where both folders are the same, it is searched as the one folder of the first form is.
    ``~`` and ``$VARIABLES`` in paths are expanded; relative paths are relative to the working directory. Nothing is
    read before the data set is.

    Raises:
        UserError: for an entry of another form, and a name that stands for other files.
    """
    for entry in entries:
        if isinstance(entry, str) or len(entry) not in (2, 3, 4) or not all(isinstance(p, str) and p for p in entry):
            raise UserError(f"DATASETS.REFINEMENT wants {FORMS_OF_ENTRY}, not {entry!r}")
        name, *paths = entry
        paths = [os.path.abspath(expand_path(path)) for path in paths]
        dataset = CustomSet(name, paths[0], *(paths[1:] or paths))
        known = DatasetCatalog.data.get(name)
        if known is not None and known != dataset:
            raise UserError(f"the name {name} in DATASETS.REFINEMENT stands for another data set; choose another name")
        if known is None:
            _register(dataset)


def _register(dataset: BuiltInSet | CustomSet) -> None:
    DatasetCatalog.register(dataset.name, dataset)
    MetadataCatalog.get(dataset.name).set(evaluator_type="refinement")


for _dataset in BUILT_IN.values():
    _register(_dataset)
