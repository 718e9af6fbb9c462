"""A comparison of refiners: figures worked out by hand, the same masks for all, failures, and the two kinds of data."""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from airm import InstanceRefiner, Refiner
from airm.data.coarse_masks import KINDS
from comparing.cases import GIVEN, Instances, Pairs
from comparing.comparison import compare, summarise
from comparing.methods import GrabCut, Method, make_trimap
from pixelmask.cli import run
from pixelmask.images import read_mask
from pixelmask.rle import encode, measure
from tests.support.models import disc, load_tool
from tests.tools.reporting.test_report_command import blocks

H, W = 48, 128
NAMES = ["a", "b", "c"]
tool = load_tool("compare_refiners")


def truth_of(number: int) -> np.ndarray:
    """A square of 20 x 20 pixels."""
    mask = np.zeros((H, W), bool)
    mask[10:30, 10 + 8 * number : 30 + 8 * number] = True
    return mask


def colours_of(mask: np.ndarray) -> np.ndarray:
    """A picture of two colours, with some noise."""
    noise = np.random.default_rng(0).integers(-9, 10, (*mask.shape, 3))
    return (np.where(mask[..., None], (200, 60, 60), (60, 60, 180)) + noise).astype(np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pairs in BIG layout; the coarse masks lack 2 of the truth's 20 rows, so that their IoU is 90 %."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        truth = truth_of(number)
        coarse = truth.copy()
        coarse[10:12] = False
        Image.fromarray(colours_of(truth)).save(folder / f"{name}_im.jpg", quality=98)
        Image.fromarray(truth).save(folder / f"{name}_gt.png")
        Image.fromarray(coarse).save(folder / f"{name}_seg.png")
    return folder


@pytest.fixture
def coco(photos: Path, tmp_path: Path) -> Path:
    """Annotations of the same pictures, a crowd region among them."""
    images = [{"id": i, "file_name": f"{n}_im.jpg", "height": H, "width": W} for i, n in enumerate(NAMES)]
    masks = [(i, truth_of(i), 0) for i in range(3)] + [(0, disc(H, W, (50, 40), 6).numpy(), 1)]
    annotations = [
        {"id": 10 + k, "image_id": i, "category_id": 1, "iscrowd": crowd, **measure(encode(mask))}
        for k, (i, mask, crowd) in enumerate(masks)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    return tmp_path / "truth.json"


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that runs the tool as its command line does, and returns its folder and what came out."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run_tool(*args: object):
        command = ["--output", tmp_path / "out", "--device", "cpu", *args]
        return tmp_path / "out", run(tool.main, tool.argument_parser().parse_args([str(a) for a in command]))

    return run_tool


class Rows(Method):
    """Leaves out so many of a mask's first rows of each image, and keeps what it was given."""

    def __init__(self, name: str, removed: dict[str, int] | None = None):
        super().__init__(name, "for tests")
        self.removed, self.seen = removed or {}, []

    def refine(self, pixels: np.ndarray, coarse: np.ndarray) -> np.ndarray:
        self.seen.append(coarse)
        rows = np.flatnonzero(coarse.any(axis=1))[: self.removed.get(NAMES[(len(self.seen) - 1) % len(NAMES)], 0)]
        refined = coarse.copy()
        refined[rows] = False
        return refined


def rows_of(comparison, kind: str = GIVEN) -> dict[str, dict]:
    return {row["method"]: row for row in comparison.rows if row["kind"] == kind}


def test_figures_are_those_worked_out_by_hand(photos):
    # 90 % of the truth are there before; of 20 rows a loses none, b 2 (10 points: not more than 0.1), c 3
    method = Rows("mine", {"b": 2, "c": 3})
    comparison = compare(Pairs(str(photos)), [GIVEN], [method], 0)
    rows = rows_of(comparison)
    assert rows["coarse"]["IoU"] == pytest.approx(90) and rows["coarse"]["worse"] is None
    assert rows["mine"]["IoU"] == pytest.approx((90 + 80 + 75) / 3) and rows["mine"]["masks"] == 3
    assert rows["mine"]["worse"] == pytest.approx(100 / 3)
    assert rows["mine"]["worst"] == {"change": pytest.approx(-15), "image": "c"}
    assert rows["mine"]["seconds"] > 0 and rows["coarse"]["seconds"] is None
    assert [picture.name for picture in comparison.worst[GIVEN]] == ["c", "b", "a"]
    assert comparison.worst[GIVEN][0].values["change"] == [None, pytest.approx(-15)]


def test_what_is_summed_up_without_figures():
    nothing = {"IoU": None, "mBA": None, "change": None, "seconds": 2.0}
    assert summarise([nothing]) == {
        **{"masks": 0, "IoU": None, "mBA": None, "worse": None, "worst": None, "seconds": 2.0}
    }
    assert summarise([])["seconds"] is None
    better = {"IoU": 60.0, "mBA": 50.0, "change": 4.0, "image": "x", "seconds": 4.0}
    assert summarise([nothing, better]) == {
        **{"masks": 1, "IoU": 60.0, "mBA": 50.0, "worse": 0.0, "worst": {"change": 4.0, "image": "x"}, "seconds": 3.0}
    }


def test_all_methods_see_the_same_seeded_masks(photos):
    def masks_seen(kinds, seed=0, limit=None):
        methods = Rows("first", {"a": 5}), Rows("second")
        compare(Pairs(str(photos), limit), kinds, methods, seed)
        for first, second in zip(*(method.seen for method in methods), strict=True):
            np.testing.assert_array_equal(first, second)
        return methods[0].seen

    made = masks_seen(KINDS)
    assert len(made) == 3 * len(KINDS)
    # Whatever other kinds and images there are
    np.testing.assert_array_equal(masks_seen(["outline"], limit=1)[0], made[KINDS.index("outline")])
    changed = [kind for kind, a, b in zip(KINDS, made, masks_seen(KINDS, seed=1), strict=False) if (a != b).any()]
    assert {"regions", "outline", "contour"} <= set(changed) and "truth" not in changed


def test_tables_json_and_pages(photos, call, capsys):
    output, comparison = call(photos, "--methods", "grabcut", "--kinds", GIVEN, "box_28", "--max-size", 32)
    text = (output / "comparison.md").read_text()
    assert text in capsys.readouterr().out
    first = text.splitlines()[2].split(" | ")
    assert first[:2] == ["| given", "coarse"] and first[2] == "3" and first[5] == "-"
    content = json.loads((output / "comparison.json").read_text())
    assert content["rows"] == comparison.rows and len(content["masks"]) == 2 * 2 * 3 and content["max_size"] == 32
    assert content["methods"]["GrabCut"].endswith(" 3 iterations, no pixel certain") and content["seed"] == 0
    data = blocks(output / "worst_given.html")
    assert data["data"]["runs"] == ["coarse", "GrabCut"] and data["data"]["sideBySide"]
    assert [item["name"][:3] for item in data["data"]["items"]] == ["1. ", "2. ", "3. "]
    assert data["item-0"][0]["width"] == 32  # as it was refined
    with pytest.raises(SystemExit):
        call(photos, "--methods", "grabcut", "--kinds", GIVEN)
    call(photos, "--methods", "grabcut", "--kinds", GIVEN, "--overwrite", "--limit", 1)


COPY = "import shutil; shutil.copy(sys.argv[2], sys.argv[3])"


def python(name: str, code: str) -> str:
    """Return a --command that runs this with the paths in sys.argv[1:]."""
    return f"{name}={shlex.quote(sys.executable)} -c {shlex.quote(f'import sys; {code}')} {{image}} {{mask}} {{output}}"


def test_commands_that_fail_are_named_and_the_rest_is_done(photos, call, fails, tmp_path):
    # The second fails on the image whose mask begins in column 18, and says why
    some = f"from PIL import Image; assert Image.open(sys.argv[2]).getbbox()[0] != 18, 'not this one'; {COPY}"
    small = "from PIL import Image; Image.new('L', (3, 2)).save(sys.argv[3])"
    commands = [python("copy", COPY), python("some", some), python("small", small), python("nothing", "")]
    commands.append("absent=/nowhere/prog {image} {mask} {output}")
    wanted = (
        "10 masks could not be made",
        "some on b (given): ",
        "status 1: AssertionError: not this one",
        "wrote a mask of 3 x 2 pixels for an image of 128 x 48",
        "absent on a (given): cannot run /nowhere/prog: No such file",
        "nothing on a (given): cannot read mask ",
    )
    with fails(*wanted):
        call(photos, "--methods", "--kinds", GIVEN, *(part for text in commands for part in ("--command", text)))
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    rows = {row["method"]: row for row in content["rows"]}
    assert rows["copy"]["masks"] == 3 and rows["copy"]["IoU"] == rows["coarse"]["IoU"] == pytest.approx(90)
    assert rows["some"]["masks"] == 2 and rows["absent"]["masks"] == 0 and len(content["faults"]) == 10


def test_an_image_that_cannot_be_read_is_named(photos, call, fails):
    (photos / "b_im.jpg").write_bytes(b"no picture")
    with fails("1 masks could not be made", "cannot read image", "b_im.jpg"):
        call(photos, "--methods", "grabcut", "--kinds", GIVEN)


def test_trimap():
    trimap = make_trimap(truth_of(0))
    assert trimap.shape == (H, W) and set(np.unique(trimap)) == {0, 0.5, 1}
    # 2.5 % of 20 pixels are less than 3: the pixels whose centres are more than 3 from the nearest of the other side
    assert (trimap == 1).sum() == 14 * 14 and trimap[13, 13] == 1 and trimap[12, 20] == 0.5
    assert trimap[10 - 3, 20] == 0.5 and trimap[10 - 4, 20] == 0
    thin = np.zeros((H, W), bool)
    thin[20:22, 5:60] = True
    assert ((make_trimap(thin) == 1) == thin).all()  # something is certain in any case
    large = np.zeros((400, 400), bool)
    large[100:300, 100:300] = True
    assert (make_trimap(large) == 1).sum() == 190 * 190  # 2.5 % of 200


@pytest.mark.parametrize("name", tool.METHODS)
def test_methods_follow_the_colours_of_the_picture(name, photos):
    if name == "matting":
        pytest.importorskip("pymatting", reason="needs pymatting: pip install pymatting")
    method = tool.METHODS[name](3)
    coarse = read_mask(photos / "a_seg.png")
    for refine in (method.refine, method.refine_instance):
        np.testing.assert_array_equal(refine(colours_of(truth_of(0)), coarse), truth_of(0))
    for mask in (np.zeros((H, W), bool), np.ones((H, W), bool)):
        np.testing.assert_array_equal(method.refine(colours_of(truth_of(0)), mask), mask)


def test_without_pymatting_it_is_left_out_unless_asked_for(photos, call, fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymatting", None)
    with fails('matting needs pymatting: pip install "pymatting>=1.1"'):
        call(photos, "--methods", "matting")
    monkeypatch.setattr(tool, "Airm", lambda name, *args, **kwargs: Rows(name))
    _, comparison = call(photos, "--kinds", GIVEN)
    assert list(rows_of(comparison)) == ["coarse", "AIRM", "GrabCut", "GrabCut in a band"]


def test_instances_are_refined_in_crops_and_have_ap(coco, photos, call, airm_weights):
    options = ("--annotations", coco, "--images", photos, "--kinds", "box_28", "truth", "--methods", "airm", "grabcut")
    _, comparison = call(*options, "--weights", f"tiny={airm_weights}", "--seed", 3)
    cases = Instances(str(coco), [str(photos)], None)
    assert cases.number == 3  # without the crowd region
    refiner = InstanceRefiner(Refiner(airm_weights))
    for index in range(cases.number):
        case = cases.read(index)
        assert case.id == f"{index}/{10 + index}"
        coarse = case.coarse_mask("box_28", 3)
        refined = refiner.refine(case.pixels, coarse[None])[0]
        own = [e for e in comparison.entries if (e["image"], e["kind"]) == (case.id, "box_28")]
        iou = [100 * (mask & case.truth).sum() / (mask | case.truth).sum() for mask in (coarse, refined)]
        assert [e["IoU"] for e in own[:2]] == pytest.approx(iou)
    exact = rows_of(comparison, "truth")
    assert exact["coarse"]["AP"] == exact["coarse"]["Boundary AP"] == pytest.approx(100)
    assert exact["GrabCut"]["AP"] == pytest.approx(100)
    assert comparison.worst["truth"][0].file.shape[1] < W  # a crop


def test_results_are_compared_with_the_objects_that_they_are_of(coco, photos, call, tmp_path):
    coarse = [read_mask(photos / f"{name}_seg.png") for name in NAMES]
    results = [
        {"image_id": i, "category_id": 1, "score": 0.5 + i / 10, "segmentation": encode(mask)}
        for i, mask in enumerate(coarse[:2])
    ]
    far = encode(disc(H, W, (50, 40), 6).numpy())
    results.append({"image_id": 1, "category_id": 1, "score": 0.4, "segmentation": far})  # no object's
    (tmp_path / "results.json").write_text(json.dumps(results))
    options = ("--annotations", coco, "--images", photos, "--results", tmp_path / "results.json")
    _, comparison = call(*options, "--methods", "grabcut")
    rows = rows_of(comparison)
    assert len(comparison.rows) == 2 and rows["coarse"]["masks"] == rows["GrabCut"]["masks"] == 2
    assert rows["coarse"]["IoU"] == pytest.approx(90) and rows["GrabCut"]["IoU"] > 99
    # The third object is missed: precision 1 up to a recall of 2/3
    assert rows["GrabCut"]["AP"] == pytest.approx(100 * 67 / 101)
    unmatched = [e for e in comparison.entries if e["IoU"] is None]
    assert {e["image"] for e in unmatched} == {"1/2"} and len(unmatched) == 2


OF_COCO = ("--annotations", "{coco}", "--images", "{photos}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "grabcut"], "name either DATA"),
        (["{photos}", "--annotations", "{coco}"], "name either DATA"),
        (["--annotations", "{coco}"], "--annotations want --images"),
        (["nowhere"], "'nowhere' is neither a folder nor a data set"),
        (["{photos}", "--methods"], "there has to be one: coarse"),
        (["{photos}", "--methods", "--command", "x=a {image} {mask}"], "is not of the form"),
        (["{photos}", "--methods", "--command", "a {image} {mask} {output}"], "is not of the form"),
        (["{photos}", "--methods", "--command", "x=a '{image} {mask} {output}"], "is not of the form"),
        (["{photos}", "--methods", "grabcut", "--command", "GrabCut=a {image} {mask} {output}"], "names of their own"),
        (["{photos}", "--methods", "airm", "--weights", "mine=nowhere.pth"], "no weights nowhere.pth"),
        (
            ["--annotations", "{coco}", "--images", "{photos}", "--kinds", "given"],
            "--kinds given: {coco} has regions, ",
        ),
        (
            ["--annotations", "{coco}", "--images", "{photos}", "--results", "{photos}"],
            "is a folder; give COCO results",
        ),
    ],
)
def test_mistakes(options, message, photos, coco, call, fails):
    names = {"{photos}": str(photos), "{coco}": str(coco)}
    with fails(message.replace("{coco}", str(coco))):
        call(*(names.get(option, option) for option in options))


def test_grabcut_is_the_same_each_time_and_may_be_kept_in_a_band(photos):
    pixels, coarse = np.random.default_rng(1).integers(0, 255, (H, W, 3), np.uint8), read_mask(photos / "a_seg.png")
    first, second = (GrabCut(1).refine(pixels, coarse) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (first != coarse).any()
    unknown = make_trimap(coarse) == 0.5
    banded = GrabCut(1, in_band=True).refine(pixels, coarse)
    assert (first != coarse)[~unknown].any() and not (banded != coarse)[~unknown].any() and (banded != coarse).any()
