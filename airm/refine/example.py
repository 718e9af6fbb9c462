"""A photo that an installed package brings along, and a rough outline of the object in it: an example for everyone."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from pixelmask.errors import UserError
from pixelmask.files import whole_or_not_at_all
from pixelmask.images import write_picture


class Example(NamedTuple):
    """A photo, and an outline of few points as one clicks them in passing; (x, y) in pixels."""

    package: str
    file: str
    outline: tuple[tuple[int, int], ...]


EXAMPLES = (
    # The head of a dahlia, 640 x 427
    Example(
        "sklearn",
        "datasets/images/flower.jpg",
        ((215, 135), (310, 75), (425, 120), (460, 250), (385, 315), (290, 370), (185, 320), (155, 215)),
    ),
    # A cup on its saucer, 600 x 400
    Example(
        "skimage",
        "data/coffee.png",
        ((170, 60), (290, 5), (430, 60), (485, 200), (420, 360), (270, 398), (120, 320), (75, 190)),
    ),
)


def write_example(folder: Path) -> tuple[Path, Path]:
    """Put a photo and the mask of its outline into a folder, unless they are there, and return the two paths.

    The package is found, not imported, which would take longer than refining.

    Raises:
        UserError: if no package that has a photo is installed.
    """
    for package, file, outline in EXAMPLES:
        spec = find_spec(package)
        source = Path(next(iter(spec.submodule_search_locations or ())), file) if spec else None
        if source is None or not source.is_file():
            continue
        photo, mask = folder / f"photo{source.suffix}", folder / "outline.png"
        if not photo.exists():
            with whole_or_not_at_all(photo) as temporary:
                shutil.copyfile(source, temporary)
        if not mask.exists():
            with Image.open(photo) as image:
                canvas = Image.new("L", image.size)
            ImageDraw.Draw(canvas).polygon(outline, fill=255)
            write_picture(mask, np.asarray(canvas))
        return photo, mask
    raise UserError(
        "no photo to show it with: `pip install scikit-learn`, which `pip install 'pixelmask[figures]'` does too, or "
        "scikit-image brings one along. Or give a photo and a mask of your own: `IMAGE MASK`"
    )
