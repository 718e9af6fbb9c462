"""The readers that take files of users, each with real files of its kind."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import polygons_to_bitmask
from detectron2.modeling import build_model
from PIL import Image
from safetensors.torch import save_file

from airm.instances.evaluation import compare_instances
from airm.instances.work import read_truth
from airm.refiner import find_config
from patchdct.data.lvis_format import read_lvis
from pixelmask.checkpoint.checkpointer import SafeCheckpointer
from pixelmask.checkpoint.pretrained import read_published
from pixelmask.config import load_cfg, parse_cfg
from pixelmask.data.coco_file import CocoFile, read_results
from pixelmask.data.coco_format import check_coco_file
from pixelmask.data.mapper import check_image
from pixelmask.errors import UserError
from pixelmask.evaluation.coco import _GroundTruth
from pixelmask.images import read_mask, read_picture
from pixelmask.progress import Item, Progress
from pixelmask.rle import decode, encode, to_rle
from reporting.metric_tables import metric_tables
from reporting.refinement_gallery import _load_figures
from reporting.reported_runs import read_curves, read_run
from tests.support.checkpoints import Model, write_old_torch, write_pickle
from tests.support.mit_reference import TINY, published_shapes, random_state
from tests.support.models import disc, tiny_airm_cfg

H, W = 30, 40


class Reader(NamedTuple):
    """What reads a file; ``seeds`` are names of real ones in the folder that :func:`write_seeds` fills."""

    name: str
    read: Callable[[Path], Any]
    seeds: tuple[str, ...]


def write_seeds(folder: Path, real_data: Path | None = None) -> None:
    """Write the real files; where there are real data, their annotations and pictures beside the drawn ones."""
    torch.manual_seed(0)
    state = Model().state_dict()
    training = {"model": state, "optimizer": {"state": {0: {"step": 3}}}, "iteration": np.int64(7)}
    torch.save(training, folder / "model.pth")
    write_old_torch(folder / "old.pth", training)
    write_pickle(folder / "model.pkl", {"model": {n: v.numpy() for n, v in state.items()}, "__author__": "x"})
    caffe2 = {"fc_w": (4, 4), "fc_b": (4,), "conv1_w": (8, 3, 7, 7), "cls_score_w": (4, 4), "bbox_pred_w": (16, 4)}
    blobs = {name: np.ones(shape, np.float32) for name, shape in caffe2.items()}
    write_pickle(folder / "caffe2.pkl", {"blobs": {**blobs, "fc_w_momentum": blobs["fc_w"]}})
    save_file(state, folder / "model.safetensors")
    torch.save(random_state(published_shapes(*TINY)), folder / "encoder.pth")
    config = tiny_airm_cfg().dump()
    torch.save({"model": {"x": torch.ones(2)}, "config": config}, folder / "airm.pth")
    shutil.copytree("configs/airm", folder / "configs")
    (folder / "config.yaml").write_text(config)
    (folder / "last_checkpoint").write_text("model.pth")
    mask = disc(H, W, (20, 15), 9).numpy()
    rle, square = encode(mask), [[5, 5, 20.5, 5, 20.5, 15, 5, 15]]
    counts = {"size": [H, W], "counts": [100, 50, H * W - 150]}
    images = [{"id": i, "file_name": f"{i}.png", "height": H, "width": W} for i in (1, 2)]
    one = {"category_id": 3, "bbox": [5, 5, 15, 10], "area": 150, "iscrowd": 0}
    annotations = [
        {"id": i, "image_id": image, **one, "segmentation": segmentation}
        for i, (image, segmentation) in enumerate(((1, square), (1, rle), (2, counts), (2, [*square, *square])))
    ]
    categories = [{"id": 3, "name": "disc", "synset": "disc.n.01", "frequency": "c"}, {"id": 5, "name": "car"}]
    coco = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(coco))
    lists = {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
    lvis = {**coco, "images": [{**image, **lists} for image in images], "categories": categories[:1]}
    (folder / "lvis.json").write_text(json.dumps(lvis))
    results = [{**a, "score": 0.5 + a["id"] / 10} for a in annotations]
    (folder / "results.json").write_text(json.dumps(results))
    entry = {
        "item": "1",
        "inputs": {},
        "coarse": results[:1],
        "refined": results[:1],
        "counts": {"refined": 1},
        "size": {"height": H},
    }
    (folder / "progress.jsonl").write_text("\n".join(map(json.dumps, ({"margin": 0.2}, entry, {**entry, "item": "2"}))))
    logged = [{"iteration": i, "total_loss": 1 / (i + 1), "lr": 0.1} for i in range(30)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, logged)))
    (folder / "evaluation.json").write_text(json.dumps({"refinement": {"IoU": 90.5, "mBA": float("nan")}}))
    (folder / "per_image.csv").write_text(
        "image_id,refined_IoU,refined_mBA,gain_IoU,gain_mBA\na,90.5,,1,2\nb,1,2,3,4\n"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
    for suffix in ("png", "jpg", "bmp", "tif", "webp", "gif"):
        Image.fromarray(pixels).save(folder / f"picture.{suffix}")
    Image.fromarray(pixels[..., 0]).save(folder / "grey.png")
    Image.fromarray(pixels).quantize().save(folder / "palette.png")
    for image in images:
        Image.fromarray(pixels).save(folder / str(image["file_name"]))
    if real_data:
        _write_real(folder, real_data)


def _write_real(folder: Path, real_data: Path) -> None:
    content = json.loads((real_data / "coco/annotations/instances_val2017.json").read_text())
    images = content["images"][:5]
    kept = {image["id"] for image in images}
    content |= {"images": images, "annotations": [a for a in content["annotations"] if a["image_id"] in kept]}
    (folder / "real.json").write_text(json.dumps(content))
    for image in images:
        shutil.copy(real_data / "coco/val2017" / image["file_name"], folder)
    shutil.copy(real_data / "coco/val2017" / images[0]["file_name"], folder / "real.jpg")


def _load_checkpoint(path: Path) -> None:
    SafeCheckpointer(Model()).load(str(path))


@functools.cache
def _airm() -> Any:
    return build_model(tiny_airm_cfg())


def _load_encoder(path: Path) -> None:
    SafeCheckpointer(_airm()).load(str(path))


def _train_on(path: Path) -> None:
    check_coco_file(str(path), str(path.parent))
    for record in load_coco_json(str(path), str(path.parent)):
        for annotation in record["annotations"]:
            segmentation = annotation.get("segmentation")
            if isinstance(segmentation, list):
                polygons_to_bitmask(segmentation, record["height"], record["width"])
            elif segmentation:
                decode(to_rle(segmentation, record["height"], record["width"]))


def _evaluate_on(path: Path) -> None:
    truth = read_truth(str(path))
    if "annotations" not in truth.content:
        return
    _GroundTruth.of(truth.content)
    results = [{**a, "score": 0.5} for a in truth.content["annotations"][:3]]
    if results and max(image["height"] * image["width"] for image in truth.content["images"]) < 10**6:
        compare_instances(truth, results, results)


def _results_of(path: Path) -> None:
    truth = CocoFile("coco.json", json.loads(path.with_name("coco.json").read_text()))
    for result in read_results(path, truth):
        try:
            decode(to_rle(result["segmentation"], H, W))
        except ValueError as e:
            assert str(e)


def _progress(path: Path) -> None:
    with Progress(path.parent, {"margin": 0.2}, {"1": Item([]), "2": Item([])}, resume=True):
        pass


def _evaluation(path: Path) -> None:
    folder = path.with_name("run")
    folder.mkdir(exist_ok=True)
    cfg = yaml.safe_load(path.with_name("config.yaml").read_text())
    cfg["DATASETS"]["TEST"] = ["val"]
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
    shutil.copy(path, folder / "evaluation.json")
    metric_tables([read_run(folder)])


def _last_checkpoint(path: Path) -> None:
    folder = path.with_name("training")
    folder.mkdir(exist_ok=True)
    shutil.copy(path.with_name("model.pth"), folder)
    shutil.copy(path, folder / "last_checkpoint")
    SafeCheckpointer(Model(), str(folder)).resume_or_load("", resume=True)


def _config_of_checkpoint(path: Path) -> None:
    parse_cfg(path.read_bytes().decode("utf-8", "replace"), str(path))


def _picture(path: Path) -> None:
    for read in (read_picture, read_mask, lambda path: check_image({"file_name": str(path)}, "BGR")):
        try:
            read(path)
        except UserError:
            refused = True
        else:
            refused = False
    if refused:
        raise UserError("refused")


READERS = (
    Reader("checkpoint", _load_checkpoint, ("model.pth", "old.pth", "model.pkl", "caffe2.pkl", "model.safetensors")),
    Reader("weights of an encoder", _load_encoder, ("encoder.pth",)),
    Reader("published weights", read_published, ("model.pth", "model.safetensors")),
    Reader("checkpoint with config", find_config, ("airm.pth",)),
    Reader("last_checkpoint", _last_checkpoint, ("last_checkpoint",)),
    Reader("config", lambda path: load_cfg(str(path)), ("config.yaml", "configs/airm_mit_b1.yaml")),
    Reader("config of a checkpoint", _config_of_checkpoint, ("config.yaml",)),
    Reader("annotations, to train", _train_on, ("coco.json", "real.json")),
    Reader("annotations, to evaluate", _evaluate_on, ("coco.json", "real.json")),
    Reader("annotations of LVIS", read_lvis, ("lvis.json",)),
    Reader("results", _results_of, ("results.json",)),
    Reader("progress", _progress, ("progress.jsonl",)),
    Reader("metrics", read_curves, ("metrics.jsonl",)),
    Reader("evaluation", _evaluation, ("evaluation.json",)),
    Reader("figures of images", _load_figures, ("per_image.csv",)),
    Reader(
        "picture",
        _picture,
        tuple(f"picture.{suffix}" for suffix in ("png", "jpg", "bmp", "tif", "webp", "gif"))
        + ("grey.png", "palette.png", "real.jpg"),
    ),
)  # fmt: skip
