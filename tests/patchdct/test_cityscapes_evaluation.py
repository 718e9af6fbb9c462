import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official
from detectron2.data import DatasetCatalog
from detectron2.structures import Instances
from detectron2.utils import comm
from PIL import Image
from scipy import ndimage

from patchdct.data.cityscapes import CITYSCAPES_CLASSES, register_cityscapes
from patchdct.evaluation import CityscapesInstanceEvaluator
from pixelmask.errors import UserError
from tests.support.cityscapes_tree import CAR, NAME, PERSON, ROAD, paint, scene, write_frame
from tests.support.training import PATCHDCT, logged_by, metrics_of, same

VAL = f"{NAME}val"
CLASSES = list(CITYSCAPES_CLASSES)
THRESHOLDS = np.arange(0.5, 1.0, 0.05)
SMALLEST = 100


@pytest.fixture
def root(root):
    register_cityscapes(VAL)
    return root


def write(root, scenes):
    """Write ids as frames of a city, and return the names of their images."""
    return [str(write_frame(root, "val", f"ulm/ulm_000000_{i:06d}", ids)[0]) for i, ids in enumerate(scenes)]


def detections(ids, found):
    """Instances of (mask, class name, score) triples."""
    instances = Instances(ids.shape)
    masks = [torch.from_numpy(mask) for mask, _, _ in found]
    instances.pred_masks = torch.stack(masks) if masks else torch.zeros(0, *ids.shape, dtype=torch.bool)
    instances.pred_classes = torch.tensor([CLASSES.index(name) for _, name, _ in found], dtype=torch.int64)
    instances.scores = torch.tensor([score for _, _, score in found], dtype=torch.float64)
    return instances


def evaluate(root, scenes, found, **kwargs):
    evaluator = CityscapesInstanceEvaluator(VAL, **kwargs)
    for image, ids, entries in zip(write(root, scenes), scenes, found, strict=True):
        evaluator.process([{"file_name": image}], [{"instances": detections(ids, entries)}])
    return evaluator.evaluate()


def truth(ids, groups=False):
    """(mask, class name, id) of the instances in an image, and of the groups."""
    names = {label: name for name, label in CITYSCAPES_CLASSES.items()}
    label_of = {int(v): int(v) if v < 1000 else int(v) // 1000 for v in np.unique(ids)}
    return [(ids == v, names[n], v) for v, n in label_of.items() if n in names and (groups or v >= 1000)]


def perfect(ids):
    return [(mask, name, 0.9 - 0.01 * i) for i, (mask, name, _) in enumerate(truth(ids))]


def random_detections(ids, seed):
    """Moved and ragged instances and groups, some twice or of a wrong class, and blobs anywhere; scores with ties."""
    rng = np.random.default_rng(seed)
    found = []
    for mask, name, _ in truth(ids, groups=True) * 2:
        moved = np.roll(mask, rng.integers(-1, 2, 2) * rng.integers(2), (0, 1))
        moved &= rng.random(mask.shape) >= rng.choice([0, 0.02])
        found.append((moved, name if rng.random() < 0.9 else "truck", rng.integers(1, 20) / 20))
    for _ in range(6):
        corner = rng.integers(0, 40, 2)
        mask = paint(np.zeros(ids.shape, bool), *corner, *rng.integers(1, 30, 2), True)
        found.append((mask, str(rng.choice(["car", "person", "rider"])), rng.integers(1, 20) / 20))
    return [*found, (np.zeros(ids.shape, bool), "car", 1.0)]


def official_results(folder, root, scenes, found, monkeypatch):
    """What cityscapesscripts says of detections written as its files."""
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # it is not in numpy 2.4
    monkeypatch.setattr(official, "writeDict2JSON", lambda content, path: None)  # it cannot write numpy 2's numbers
    settings = official.CArgs()
    vars(settings).update(vars(official.args))
    settings.predictionPath, settings.gtInstancesFile = str(folder), str(folder / "gtInstances.json")
    settings.JSONOutput, settings.quiet = False, True
    truths, predictions = [], []
    for index, image in enumerate(write(root, scenes)):
        truths.append(image.replace("leftImg8bit", "gtFine").removesuffix(".png") + "_instanceIds.png")
        lines = []
        for number, (mask, name, score) in enumerate(found[index]):
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{index}_{number}.png")
            lines.append(f"{index}_{number}.png {CITYSCAPES_CLASSES[name]} {score}\n")
        predictions.append(str(folder / f"{index}.txt"))
        Path(predictions[-1]).write_text("".join(lines))
    averages = official.evaluateImgLists(predictions, truths, settings)["averages"]
    classes = {f"AP-{name}": 100 * figures["ap"] for name, figures in averages["classes"].items()}
    return {"AP": 100 * averages["allAp"], "AP50": 100 * averages["allAp50%"], **classes}


def boundary(mask, ratio):
    times = max(1, round(ratio * math.hypot(*mask.shape)))
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), times)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def brute_force(scenes, found, name, threshold, ratio):
    """Boundary AP of a class at a threshold, straight from the protocol: mask by mask, in whole images."""
    void = [x.id for x in official.labels if x.ignoreInEval]
    scored, missed, objects = [], 0, 0
    for ids, entries in zip(scenes, found, strict=True):
        of_class = [(m, v) for m, n, v in truth(ids, groups=True) if n == name]
        own = [(mask, score) for mask, n, score in entries if n == name and mask.any()]
        overlap = {}
        for i, (mask, _) in enumerate(own):
            for j, (other, _) in enumerate(of_class):
                borders = boundary(mask, ratio), boundary(other, ratio)
                if (mask & other).any() and (borders[0] & borders[1]).any():
                    overlap[i, j] = min(iou(mask, other), iou(*borders))
        for j, (other, value) in enumerate(of_class):
            if value < 1000 or other.sum() < SMALLEST:
                continue
            objects += 1
            scores = sorted((own[i][1] for i in range(len(own)) if overlap.get((i, j), 0) > threshold), reverse=True)
            scored += [(score, rank == 0) for rank, score in enumerate(scores)]
            missed += not scores
        for i, (mask, score) in enumerate(own):
            if any(overlap.get((i, j), 0) > threshold for j in range(len(of_class))):
                continue
            ignored = (np.isin(ids, void) & mask).sum()
            for j, (other, value) in enumerate(of_class):
                if (i, j) in overlap:
                    ignored += (mask & other).sum() * ((value < 1000) + (other.sum() < SMALLEST))
            if ignored / mask.sum() <= threshold:
                scored.append((score, False))
    if not objects:
        return float("nan")
    curve = []
    for least in sorted({score for score, _ in scored}):
        hits = [hit for score, hit in scored if score >= least]
        curve.append((sum(hits) / len(hits), sum(hits) / (sum(hit for _, hit in scored) + missed)))
    recalls = [curve[0][1] if curve else 0, *(recall for _, recall in curve), 0, 0]
    precisions = [*(precision for precision, _ in curve), 1]
    return 100 * sum(p * (recalls[k] - recalls[k + 2]) / 2 for k, p in enumerate(precisions))


@pytest.fixture(scope="module")
def cases():
    """Scenes of two sizes, and detections in them; none in the last."""
    scenes = [scene(seed, *size) for seed, size in enumerate([(64, 128), (80, 100)] * 4)]
    return scenes, [*(random_detections(ids, seed) for seed, ids in enumerate(scenes[:-1])), []]


def test_mask_metrics_are_the_official_ones(root, tmp_path_factory, cases, monkeypatch):
    results = evaluate(root, *cases)["segm"]
    expected = official_results(tmp_path_factory.mktemp("official"), root, *cases, monkeypatch)
    assert list(results) == list(expected)
    assert results == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert 10 < results["AP"] < results["AP50"] < 90
    assert math.isnan(results["AP-bus"]) and results["AP-car"] > 0


@pytest.mark.parametrize("ratio", [0.005, 0.02])
def test_boundary_metrics_are_those_of_the_protocol(root, cases, ratio):
    results = evaluate(root, *cases, dilation_ratio=ratio)
    names = ("person", "rider", "car")
    expected = np.array([[brute_force(*cases, name, t, ratio) for t in THRESHOLDS] for name in names])
    assert [results["boundary"][f"AP-{name}"] for name in names] == pytest.approx(expected.mean(1).tolist())
    assert results["boundary"]["AP50"] == pytest.approx(expected[:, 0].mean())
    assert results["boundary"]["AP"] == pytest.approx(expected.mean())
    assert 5 < results["boundary"]["AP"] < results["segm"]["AP"]


def test_perfect_masks_and_shifted_ones_which_lose_more_of_boundary_ap(root):
    scenes = [scene(seed, 128, 256) for seed in range(4)]
    results = evaluate(root, scenes, [perfect(ids) for ids in scenes])
    assert set(results) == {"segm", "boundary"}
    for metrics in results.values():
        assert metrics["AP"] == metrics["AP50"] == pytest.approx(100)
    shifted = [[(np.roll(mask, 1, 1), name, score) for mask, name, score in perfect(ids)] for ids in scenes]
    results = evaluate(root, scenes, shifted)
    assert 60 < results["segm"]["AP"] < 99
    assert results["boundary"]["AP"] < results["segm"]["AP"] - 20


def empty():
    return np.full((64, 128), ROAD, np.uint16)


def rectangle(*box):
    return paint(np.zeros((64, 128), bool), *box, True)


def test_one_of_two_objects_found_gives_known_figures(root):
    ids = paint(paint(empty(), 10, 10, 20, 20, CAR * 1000), 40, 80, 20, 20, CAR * 1000 + 1)
    found = [(rectangle(10, 10, 20, 20), "car", 0.9), (rectangle(0, 100, 10, 20), "car", 0.8)]
    results = evaluate(root, [ids], [found])
    # Points (precision, recall) (1/2, 1/2), (1, 1/2), (1, 0): widths 0, 1/4 and 1/4
    assert results["segm"]["AP"] == pytest.approx(50)
    assert results["segm"]["AP-car"] == pytest.approx(50)
    assert math.isnan(results["segm"]["AP-person"])


@pytest.mark.parametrize(
    ("value", "box"),
    [(CAR, (30, 60, 20, 40)), (0, (30, 60, 20, 40)), (CAR * 1000 + 7, (30, 60, 9, 9))],
    ids=["group", "void", "small"],
)
def test_detections_in_what_does_not_count_are_ignored(root, value, box):
    ids = paint(paint(empty(), 5, 5, 20, 20, CAR * 1000), *box, value)
    found = [(rectangle(5, 5, 20, 20), "car", 0.5), (rectangle(*box), "car", 0.9)]
    for metrics in evaluate(root, [ids], [found]).values():
        assert metrics["AP"] == pytest.approx(100)
    elsewhere = [found[0], (rectangle(30, 10, 20, 40), "car", 0.9)]
    for metrics in evaluate(root, [ids], [elsewhere]).values():
        assert metrics["AP"] == pytest.approx(25)  # (1/2, 1), (0, 0), (1, 0): widths 1/2, 1/2 and 0


def test_all_detections_ignored_or_of_another_class(root):
    ids = paint(paint(empty(), 5, 5, 20, 20, CAR * 1000), 30, 60, 20, 40, 0)
    for metrics in evaluate(root, [ids], [[(rectangle(30, 60, 20, 40), "car", 0.9)]]).values():
        assert metrics["AP"] == metrics["AP-car"] == 0
    ids = paint(empty(), 10, 10, 20, 20, PERSON * 1000)
    results = evaluate(root, [ids], [[(rectangle(10, 10, 20, 20), "car", 0.9)]])
    assert results["segm"]["AP-person"] == results["segm"]["AP"] == 0


def test_nothing_to_find(root, caplog):
    with caplog.at_level("WARNING", logger="patchdct"):
        results = evaluate(root, [empty()], [[(rectangle(5, 5, 20, 20), "car", 0.9)]])
    assert all(math.isnan(value) for metrics in results.values() for value in metrics.values())
    assert set(results["segm"]) == {"AP", "AP50", *(f"AP-{name}" for name in CLASSES)}
    assert "None of the images has an instance" in caplog.text


def test_processes_share_the_images(root, cases, monkeypatch):
    alone = evaluate(root, *cases)
    scenes, found = cases
    halves = [CityscapesInstanceEvaluator(VAL) for _ in range(2)]
    for index, image in enumerate(write(root, scenes)):
        instances = detections(scenes[index], found[index])
        halves[index % 2].process([{"file_name": image}], [{"instances": instances}])
    monkeypatch.setattr(comm, "gather", lambda data, dst=0: [half._matches for half in halves])
    assert same(halves[0].evaluate(), alone)
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert halves[1].evaluate() == {}


def test_reset_forgets(root):
    evaluator = CityscapesInstanceEvaluator(VAL)
    (image,) = write(root, [scene(0)])
    evaluator.process([{"file_name": image}], [{"instances": detections(scene(0), [])}])
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_size_that_is_not_the_annotations(root):
    (image,) = write(root, [scene(0)])
    with pytest.raises(UserError, match=r"ulm_000000_000000_leftImg8bit.png have \(height, width\) \(32, 64\)"):
        found = detections(np.zeros((32, 64)), [])
        CityscapesInstanceEvaluator(VAL).process([{"file_name": image}], [{"instances": found}])


def test_real_frame(root, monkeypatch, real_data):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(real_data))
    register_cityscapes(VAL)
    dataset = DatasetCatalog[VAL]
    (frame,) = dataset.check()
    image = str(dataset.image_dir / f"{frame}_leftImg8bit.png")
    ids = np.array(Image.open(dataset.annotation_dir / f"{frame}_gtFine_instanceIds.png"))
    evaluator = CityscapesInstanceEvaluator(VAL)
    evaluator.process([{"file_name": image}], [{"instances": detections(ids, perfect(ids))}])
    results = evaluator.evaluate()
    for metrics in results.values():
        assert metrics["AP"] == metrics["AP-car"] == pytest.approx(100)
        assert math.isnan(metrics["AP-person"]), "all have fewer than 100 pixels"


TINY = (
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "64", "DATASETS.TRAIN", f"('{NAME}train',)", "DATASETS.TEST", f"('{VAL}',)",
    "SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0",
)  # fmt: skip


def train_net(config, output, *opts, options=()):
    model = replace(PATCHDCT, config=f"configs/patchdct/cityscapes/{config}.yaml")
    return model.run(*TINY, "OUTPUT_DIR", output, *opts, options=options)


@pytest.mark.slow
def test_training_and_evaluation(root, tmp_path_factory):
    for split in ("train", "val"):
        for index in range(3):
            write_frame(root, split, f"ulm/ulm_000000_{index:06d}", scene(index))
    output = tmp_path_factory.mktemp("output")
    train_net("patchdct_R_50_FPN_cityscapes", output)
    results = metrics_of(output)
    assert {task: set(metrics) for task, metrics in results.items()} == {
        task: {"AP", "AP50", *(f"AP-{name}" for name in CLASSES)} for task in ("segm", "boundary")
    }
    assert results["segm"]["AP"] >= 0
    assert any("boundary/AP" in line for line in logged_by(output))
    again = tmp_path_factory.mktemp("again")
    weights = ["MODEL.WEIGHTS", output / "model_final.pth"]
    train_net("patchdct_R_50_FPN_cityscapes", again, *weights, options=["--eval-only"])
    assert same(metrics_of(again), results)


@pytest.mark.slow
def test_starting_from_a_model_of_80_classes(root, tmp_path_factory, caplog):
    """Layers per class are left as they are, and named; those of the box and mask branch before them are loaded."""
    for split in ("train", "val"):
        write_frame(root, split, "ulm/ulm_000000_000000", scene(0))
    output = tmp_path_factory.mktemp("output")
    opts = ("INPUT.MASK_FORMAT", "polygon", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()")
    train_net("patchdct_R_50_FPN_cityscapes", output, *opts)
    state = torch.load(output / "model_final.pth", weights_only=True)["model"]
    per_class = [n for n in state if n.endswith(("cls_score.weight", "bbox_pred.weight", "predictor1.weight"))]
    assert len(per_class) == 3
    for name in per_class:
        state[name] = state[name].repeat(10, *[1] * (state[name].dim() - 1))
    torch.save({"model": state}, output / "coco.pth")
    with caplog.at_level("WARNING"):
        weights = ["MODEL.WEIGHTS", str(output / "coco.pth")]
        train_net("patchdct_R_50_FPN_cityscapes_from_coco", tmp_path_factory.mktemp("tuned"), *weights, *opts)
    for name in per_class:
        assert f"\n{name}: (" in caplog.text  # among those that start untrained


def test_missing_coco_model_has_a_way_out(root, tmp_path_factory, capsys):
    for split in ("train", "val"):
        write_frame(root, split, "ulm/ulm_000000_000000", scene(0))
    weights = ["MODEL.WEIGHTS", "output/patchdct_R_50_FPN_1x_nowhere/model_final.pth"]
    with pytest.raises(SystemExit):
        train_net("patchdct_R_50_FPN_cityscapes_from_coco", tmp_path_factory.mktemp("output"), *weights)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "train that model first" in message
    assert "patchdct_R_50_FPN_1x_nowhere.yaml" in message
