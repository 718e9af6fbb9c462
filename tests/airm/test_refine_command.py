"""The command: files, folders and patterns in, masks and pictures out; nothing overwritten, every mistake named."""

import signal
from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from airm.figures.side_by_side import ADDED, REMOVED, side_by_side
from airm.guard import GUARD
from airm.refine.__main__ import argument_parser, main
from airm.refine.example import EXAMPLES
from airm.refine.files import match_files
from airm.refiner import Refiner
from pixelmask.cli import run
from pixelmask.drawing import find_largest_change
from pixelmask.errors import UserError
from tests.support.models import disc

HEIGHT, WIDTH = 44, 56


@pytest.fixture
def refine(weights, tmp_path, monkeypatch):
    """A function that runs the command in a temporary folder, as its command line does."""
    monkeypatch.chdir(tmp_path)

    def call(*args: object, weights=weights):
        options = ["--weights", str(weights)] if weights else []
        run(main, argument_parser().parse_args([*map(str, args), *options, "--device", "cpu"]))

    return call


@pytest.fixture
def failure(refine, capsys):
    """A function that runs the command, which is to exit with status 1, and returns its message."""

    def call(*args: object, **kwargs: object) -> str:
        with pytest.raises(SystemExit) as e:
            refine(*args, **kwargs)
        error = capsys.readouterr().err
        assert e.value.code == 1 and "Traceback" not in error
        return error[error.rindex("error: ") :]

    return call


def picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    return Image.fromarray(pixels)


def coarse() -> Image.Image:
    return Image.fromarray(disc(HEIGHT, WIDTH, (26, 20), 12).numpy())


@pytest.fixture
def pair(tmp_path):
    picture().save(tmp_path / "photo.jpg")
    coarse().save(tmp_path / "mask.png")
    return "photo.jpg", "mask.png"


@pytest.fixture
def folders(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder / "cats").mkdir(parents=True)
    for i, name in enumerate(("a", "b", "cats/c")):
        picture(i).save(tmp_path / "images" / f"{name}.jpg")
        coarse().save(tmp_path / "masks" / f"{name}.png")
    return tmp_path


def test_one_image(refine, pair, tmp_path, weights, capsys):
    refine(*pair, "-o", "new/out.png", "--change", "change.png", "--side-by-side", "panels.jpg", "--no-guard")
    refine(*pair, "-o", "soft.png", "--soft", "--no-guard")
    soft, change = Refiner(weights, guard=None).refine("photo.jpg", "mask.png", soft=True, return_change=True)
    np.testing.assert_array_equal(Image.open("new/out.png"), (soft >= 0.5) * 255)
    np.testing.assert_allclose(np.asarray(Image.open("soft.png"), float), soft * 255, atol=0.5001)
    np.testing.assert_allclose(np.asarray(Image.open("change.png"), float), 128 + 127 * change, atol=0.5001)
    assert Image.open("new/out.png").mode == "L" and Image.open("panels.jpg").mode == "RGB"
    assert "1 refined mask" in capsys.readouterr().out


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder for packages, the only one where they are found."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setattr("airm.refine.example.find_spec", lambda name: PathFinder.find_spec(name, [str(folder)]))
    return folder


def test_example(refine, failure, packages, weights, capsys, monkeypatch):
    def blur(self, image, mask, **options):
        soft = np.asarray(Image.open(mask).convert("L").filter(ImageFilter.BoxBlur(5)), np.float32) / 255
        return soft, soft - np.asarray(Image.open(mask).convert("L"), np.float32) / 255

    monkeypatch.setattr("airm.refiner.PRETRAINED", weights)
    monkeypatch.setattr(Refiner, "refine", blur)  # what the network makes of it does not matter here
    assert "pip install scikit-learn" in failure("--example", weights=None)
    for package, file, outline in EXAMPLES[::-1]:
        path = packages / package / file
        path.parent.mkdir(parents=True)
        (packages / package / "__init__.py").write_text("raise ImportError('imported')")
        Image.new("RGB", (640, 427), "green").save(path)
        refine("--example", "-o", package, weights=None)
        drawn = np.asarray(Image.open(f"{package}/outline.png"))
        assert set(np.unique(drawn)) == {0, 255} and 0.2 < (drawn == 255).mean() < 0.6
        assert all(drawn[y, x] == 255 for x, y in outline)
        names = {f"photo{path.suffix}", "outline.png", "refined.png", "side_by_side.jpg"}
        assert {file.name for file in Path(package).iterdir()} == names
        said = capsys.readouterr().out
        assert f"{package}/side_by_side.jpg\n" in said and "-m airm.refine YOUR_PHOTO.jpg YOUR_MASK.png" in said
    assert "refined.png exists already" in failure("--example", "-o", "sklearn", weights=None)
    Image.new("L", (640, 427), 255).save("sklearn/outline.png")  # an outline of one's own stays
    refine("--example", "-o", "sklearn", "--overwrite", weights=None)
    assert (np.asarray(Image.open("sklearn/refined.png")) == 255).all()
    refine("--example", weights=None)
    assert Path("output/example/refined.png").is_file()
    assert "without these" in failure("--example", "photo.jpg") and "`--example`" in failure()


def test_without_options_the_projects_weights_and_names_from_the_images(refine, folders, pair, weights, monkeypatch):
    monkeypatch.setattr("airm.refiner.PRETRAINED", weights)
    refine(*pair, weights=None)
    refine(*pair, "-o", "named.png")
    np.testing.assert_array_equal(Image.open("photo_refined.png"), Image.open("named.png"))
    refine("images", "masks", weights=None)
    assert sorted(path.name for path in Path("refined").rglob("*.png")) == ["a.png", "b.png", "c.png"]


def test_options_reach_the_refiner(refine, pair, tmp_path, weights, capsys, monkeypatch):
    options = ["--tile-size", 128, "--max-memory", 4, "--min-confidence", 1]
    refine(*pair, "-o", "out.png", "--config", weights.with_name("config.yaml"), *options)
    # With this guard nothing changes
    np.testing.assert_array_equal(Image.open("out.png"), coarse().convert("L"))
    with pytest.raises(SystemExit) as e:
        argument_parser().parse_args(["--help"])
    assert e.value.code == 0 and "--max-memory GIB" in capsys.readouterr().out
    seen = []
    monkeypatch.setattr("airm.refine.__main__.process", lambda job, refiner, *_, **__: seen.append(refiner))
    refine(*pair, "-o", "guarded.png")
    refine(*pair, "-o", "free.png", "--no-guard", "--resolution", 28)
    assert [(refiner.guard, refiner.resolution) for refiner in seen] == [(GUARD, None), (None, 28)]


def test_folders_are_matched_by_name(refine, folders, capsys):
    refine("images", "masks", "-o", "out", "--side-by-side", "--change", "changes")
    written = sorted(p.relative_to(folders / "out").as_posix() for p in (folders / "out").rglob("*.*"))
    assert written == sorted(f"{n}{end}" for n in ("a", "b", "cats/c") for end in (".png", "_side_by_side.jpg"))
    assert sorted(p.name for p in (folders / "changes").rglob("*.*")) == [f"{n}_change.png" for n in "abc"]
    assert "3 refined masks" in capsys.readouterr().out
    refine("images/*.jpg", "masks/*.png", "-o", "globbed")
    np.testing.assert_array_equal(Image.open("globbed/b.png"), Image.open("out/b.png"))
    assert sorted(p.name for p in (folders / "globbed").iterdir()) == ["a.png", "b.png"]
    refine("images/a.jpg", "masks", "-o", "one")
    assert [p.name for p in (folders / "one").iterdir()] == ["a.png"]


def test_other_layouts(tmp_path):
    for name in ("x_im.jpg", "x_seg.png", "x_gt.png", "y_im.png", "y_seg.png", "z_seg.png"):
        picture().save(tmp_path / name)
    matches, faults = match_files(str(tmp_path), str(tmp_path))
    assert [(m.name, m.image.name, m.mask.name) for m in matches] == [
        ("x", "x_im.jpg", "x_seg.png"),
        ("y", "y_im.png", "y_seg.png"),
    ]
    assert faults == [f"{tmp_path / 'z_seg.png'} has no image"]
    beside = tmp_path / "beside"
    beside.mkdir()
    for name in ("1.jpg", "1.png", "2.jpeg", "2.png"):
        picture().save(beside / name)
    (beside / "notes.txt").touch()
    matches, faults = match_files(str(beside), f"{beside}/")
    assert [(m.image.name, m.mask.name) for m in matches] == [("1.jpg", "1.png"), ("2.jpeg", "2.png")] and not faults


def test_bad_files_are_named_and_the_others_done(failure, folders):
    picture().save(folders / "images" / "lonely.jpg")
    coarse().save(folders / "masks" / "orphan.png")
    picture().save(folders / "images" / "a.png")
    (folders / "images" / "empty.jpg").touch()
    coarse().save(folders / "masks" / "empty.png")
    picture().save(folders / "images" / "small.jpg")
    coarse().crop((0, 0, 20, 20)).save(folders / "masks" / "small.png")
    error = failure("images", "masks", "-o", "out")
    for words in (
        "5 files could not be used",
        "images/lonely.jpg has no mask",
        "masks/orphan.png has no image",
        "images/a.png has the name of a.jpg",
        "cannot read image images/empty.jpg",
        f"mask masks/small.png is 20 x 20 pixels (width x height), but image images/small.jpg is {WIDTH} x {HEIGHT}",
    ):
        assert words in error
    assert sorted(p.stem for p in (folders / "out").rglob("*.png")) == ["a", "b", "c"]


def test_a_run_that_is_stopped_is_resumed(refine, failure, folders, monkeypatch, capsys):
    refine("images", "masks", "-o", "whole", "--side-by-side")
    refined: list[Path] = []

    def stop(self, image, mask, **options):
        refined.append(image)
        if len(refined) == 2:
            signal.raise_signal(signal.SIGTERM)
        return unstopped(self, image, mask, **options)

    unstopped = Refiner.refine
    monkeypatch.setattr(Refiner, "refine", stop)
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        refine("images", "masks", "-o", "out", "--side-by-side")
    assert left.value.code == 143 and "1 of 3 masks are done and kept; --resume" in capsys.readouterr().err
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "a_side_by_side.jpg", "progress.jsonl"]
    assert "unfinished run; --resume" in failure("images", "masks", "-o", "out", "--side-by-side")
    options = ("images", "masks", "-o", "out", "--side-by-side", "--resume")
    assert "other options (tile_size)" in failure(*options, "--tile-size", 128)
    content = Path("masks/a.png").read_bytes()
    coarse().transpose(Image.Transpose.ROTATE_180).save("masks/a.png")
    assert "masks/a.png has changed since" in failure(*options)
    Path("masks/a.png").write_bytes(content)
    refine(*options)
    assert len(refined) == 4
    for path in Path("whole").rglob("*.*"):
        assert Path("out", path.relative_to("whole")).read_bytes() == path.read_bytes()
    assert not Path("out/progress.jsonl").exists()
    assert "exists already" in failure(*options)


def test_places_that_cannot_be(failure, pair, folders):
    Path("loop").symlink_to("loop")
    for place in ("loop/out.png", f"{'x' * 300}.png"):
        assert place in failure(*pair, "-o", place)
    assert "loop" in failure("images", "masks", "-o", "loop")


def test_one_side_missing(failure, folders):
    with pytest.raises(UserError, match="no such image"):
        match_files("absent*.jpg", "absent*.png")
    (folders / "nothing").mkdir()
    assert "nothing: a folder without masks" in failure("images", "nothing", "-o", "out")
    assert "nothing: a folder without images" in failure("nothing", "masks", "-o", "out")
    assert "absent.png: no such mask" in failure("images/a.jpg", "absent.png", "-o", "out.png")
    assert "no mask to refine" in failure("images/a.jpg", "-o", "out.png")
    assert "images/b.jpg has no mask" in failure("images/b.jpg", "masks/a*.png", "-o", "out")
    assert not (folders / "out").exists()


def test_one_file_that_cannot_be_used(failure, pair, tmp_path):
    (tmp_path / "empty.png").touch()
    assert failure("photo.jpg", "empty.png", "-o", "out.png").startswith("error: cannot read mask empty.png")
    assert "no weights absent.pth" in failure(*pair, "-o", "out.png", weights="absent.pth")
    assert "--output out.jpg: it is written as one of .png" in failure(*pair, "-o", "out.jpg")
    assert "--change c.jpg: " in failure(*pair, "-o", "out.png", "--change", "c.jpg")
    assert "--side-by-side panels.mp4: " in failure(*pair, "-o", "out.png", "--side-by-side", "panels.mp4")
    assert not (tmp_path / "out.png").exists()
    (tmp_path / "file").touch()
    assert "cannot write" in failure(*pair, "-o", "file/out.png")


def test_nothing_is_overwritten_unasked(refine, failure, pair, folders):
    (folders / "out.png").write_text("mine")
    assert "out.png exists already; choose" in failure(*pair, "-o", "out.png")
    (folders / "panels.jpg").write_text("mine")
    assert "panels.jpg exists" in failure(*pair, "-o", "new.png", "--side-by-side", "panels.jpg")
    assert not (folders / "new.png").exists() and (folders / "out.png").read_text() == "mine"
    refine(*pair, "-o", "out.png", "--overwrite")
    assert Image.open("out.png").size == (WIDTH, HEIGHT)
    # Inputs are not replaced in any case, and no result replaces another
    assert "masks/a.png is read from" in failure("images", "masks", "-o", "masks", "--overwrite")
    assert "written twice" in failure(*pair, "-o", "new.png", "--change", "new.png")
    assert "several masks go into a folder" in failure("images", "masks", "-o", "out.png", "--overwrite")


def test_side_by_side_shows_what_changed():
    before, after = np.zeros((400, 600), bool), np.zeros((400, 600), bool)
    before[100:200, 100:300] = after[100:200, 100:300] = True
    after[120:130, 300:320] = True  # added
    before[180:182, 95:100] = True  # removed, less than a pixel of the panel
    image = np.full((400, 600, 3), 90, np.uint8)
    shown = side_by_side(image, before, after, width=900)
    assert shown.shape[1] <= 900 and shown.dtype == np.uint8
    for colour in (ADDED, REMOVED):
        assert (shown == colour).all(axis=2).any()
    rows, cols = find_largest_change(before ^ after)
    assert rows.start <= 120 and rows.stop >= 130 and cols.start <= 300 and cols.stop >= 320
    assert (rows.stop - rows.start, cols.stop - cols.start) == (75, 75)
    assert find_largest_change(before & False) is None
    assert side_by_side(image, before, before, width=900).shape[0] < shown.shape[0] / 2
    assert (image == 90).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (20, 20), (1500, 900)])
def test_side_by_side_of_any_size(size):
    mask = np.zeros(size, bool)
    changed = mask.copy()
    changed[0, -1] = True
    shown = side_by_side(np.zeros((*size, 3), np.uint8), mask, changed)
    assert shown.shape[1] <= 1800 and shown.shape[0] <= 1300
    assert (shown == ADDED).all(axis=2).any()
