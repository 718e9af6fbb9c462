"""Measure time and peak memory of a model with random weights, or of its mask branch alone, in this process.

Random weights propose and detect anything or nothing, so both are fixed from outside: the RPN proposes its anchors,
unmoved, and boxes drawn once, the same for every model, take the place of the box head's results. They refine a mask to
noise; so AIRM's answers are computed, and a drawn mask takes their place.
"""

import copy
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from airm.cost import DrawnMaskPass, draw_mask
from patchdct.mask_network import MaskNetwork
from pixelmask.config import fitting, load_cfg
from pixelmask.engine.build import build_model
from pixelmask.engine.precision import inference_autocast, pool_exactly
from pixelmask.errors import UserError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PATCHDCT_CONFIGS = [
    str(CONFIGS / f"patchdct/{name}_R_50_FPN_1x_coco.yaml") for name in ("mask_rcnn", "dct_mask", "patchdct")
]
# The models of AIRM's Table 4
AIRM_CONFIGS = [
    str(CONFIGS / f"airm/{name}.yaml") for name in ("sirmf_R_50", "airm_R_50", "sirmf_mit_b1", "airm_mit_b1")
]


@dataclass(frozen=True)
class Settings:
    """What all measurements of one comparison have in common, as the options of tools/benchmark.py describe it."""

    device: str = "cpu"
    size: tuple[int, int] = (800, 1333)
    batch_size: int = 1
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    threads: int = 0
    warmup: int = 2
    repeats: int = 10
    opts: tuple[str, ...] = ()

    def place(self, x: Tensor) -> Tensor:
        return x.to(self.device, memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

    def draw_images(self) -> Tensor:
        return torch.randint(256, (self.batch_size, 3, *self.size), dtype=torch.uint8)

    def batch(self, drawn: Instances) -> list[Instances]:
        """Copy detections for every image, because postprocessing scales boxes in place."""
        return [copy.deepcopy(drawn) for _ in range(self.batch_size)]


class Case(NamedTuple):
    """What a row of the table measures: a key of PARTS, with so many detections; of AIRM at a tile size."""

    config_file: str
    part: str
    num_instances: int
    tile_size: int | None = None

    def row(self) -> dict[str, Any]:
        about = {"config": Path(self.config_file).stem, "part": self.part, "instances": self.num_instances}
        return about if self.tile_size is None else about | {"tile_size": self.tile_size}


def measure(case: Case, settings: Settings) -> dict[str, Any]:
    """Build a model with random weights and measure one part of it; memory is that of this process so far.

    Returns:
        what :meth:`Case.row` does; milliseconds (the median) and milliseconds_of_each_run, images_per_second;
        peak_memory_mb and memory_before_mb, at the end and before the first run, in units of 10^6 bytes.

    Raises:
        UserError: if the config does not fit or has no such part, or CUDA is asked for where there is none.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda, but torch finds no usable GPU; `python -m pixelmask.doctor` tells what it sees")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    call = prepare(case, settings)
    memory_before = _peak_memory(settings.device, reset=True)
    with torch.no_grad(), inference_autocast(settings.precision, torch.device(settings.device))():
        for _ in range(settings.warmup):
            call()
        milliseconds = [_time(call, settings.device) for _ in range(settings.repeats)]
    median = statistics.median(milliseconds)
    return {
        **case.row(),
        "milliseconds": median,
        "images_per_second": 1000 * settings.batch_size / median,
        "peak_memory_mb": _peak_memory(settings.device),
        "memory_before_mb": memory_before,
        "milliseconds_of_each_run": milliseconds,
    }


def parts_of(cfg: CfgNode) -> list[str]:
    """Return those of PARTS that a config's model has."""
    is_airm = cfg.MODEL.META_ARCHITECTURE == "AIRM"
    return [part for part in PARTS if (part == "refine") == is_airm]


def prepare(case: Case, settings: Settings) -> Callable[[], Any]:
    """Build a model with random weights and its inputs; return the call of one part, see :func:`measure`."""
    tiles = [] if case.tile_size is None else ["MODEL.AIRM.TILE_SIZE", str(case.tile_size)]
    opts = [*fitting(case.config_file, settings.opts), *tiles, "MODEL.WEIGHTS", "", "MODEL.DEVICE", settings.device]
    cfg = load_cfg(case.config_file, opts)
    if case.part not in parts_of(cfg):
        known = ", ".join(parts_of(cfg))
        raise UserError(f"{case.config_file} has no part {case.part!r} to measure; it has {known}")
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    if settings.precision != "fp32":
        pool_exactly(model)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if settings.compile and case.part == "refine":
        model.compile_inference()
    elif settings.compile:
        head = MaskNetwork(model).head
        name = "predict" if hasattr(head, "predict") else "layers"
        setattr(head, name, torch.compile(getattr(head, name)))
    drawn = draw_instances(case.num_instances, settings.size, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    return PARTS[case.part](model, settings, drawn.to(settings.device))


def draw_instances(num_instances: int, size: tuple[int, int], num_classes: int) -> Instances:
    """Draw boxes of 16 pixels up to the image, evenly in the logarithm, with classes and scores; always the same."""
    generator = torch.Generator().manual_seed(0)
    limits = torch.tensor([size[1], size[0]], dtype=torch.float32)
    sides = 16 * (limits / 16) ** torch.rand(num_instances, 2, generator=generator)
    corners = (limits - sides) * torch.rand(num_instances, 2, generator=generator)
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.cat([corners, corners + sides], 1))
    instances.pred_classes = torch.randint(num_classes, (num_instances,), generator=generator)
    instances.scores = torch.linspace(1, 0.1, num_instances)
    return instances


def _prepare_model(model: Any, settings: Settings, drawn: Instances) -> Callable[[], Any]:
    # Else most proposals are clipped to the whole image, and non-maximum suppression leaves one
    deltas = model.proposal_generator.rpn_head.anchor_deltas
    nn.init.zeros_(deltas.weight)
    nn.init.zeros_(deltas.bias)
    forward_box = model.roi_heads._forward_box

    def forward_box_but_return_drawn(*inputs: Any) -> list[Instances]:
        forward_box(*inputs)
        return settings.batch(drawn)

    model.roi_heads._forward_box = forward_box_but_return_drawn
    height, width = settings.size
    inputs = [{"image": image, "height": height, "width": width} for image in settings.draw_images()]
    return lambda: model(inputs)


def _prepare_branch(model: Any, settings: Settings, drawn: Instances) -> Callable[[], Any]:
    divisor = max(model.backbone.size_divisibility, 1)
    padded = [math.ceil(side / divisor) * divisor for side in settings.size]
    features = {}
    for name, shape in model.backbone.output_shape().items():
        size = [math.ceil(side / shape.stride) for side in padded]
        features[name] = settings.place(torch.randn(settings.batch_size, shape.channels, *size))
    return lambda: model.roi_heads.forward_with_given_boxes(features, settings.batch(drawn))


def _prepare_head(model: Any, settings: Settings, drawn: Instances) -> Callable[[], Any]:
    network = MaskNetwork(model)
    classes, *features = network.example_inputs(len(drawn) * settings.batch_size)
    inputs = [classes.to(settings.device), *map(settings.place, features)]
    return lambda: network(*inputs)


def _prepare_refine(model: Any, settings: Settings, _: Instances) -> Callable[[], Any]:
    images, mask = settings.draw_images(), draw_mask(*settings.size).to(settings.device)
    return lambda: [DrawnMaskPass.of(model, image).refine(mask) for image in images]


# What each measures is described in tools/benchmark.py
PARTS = {"model": _prepare_model, "branch": _prepare_branch, "head": _prepare_head, "refine": _prepare_refine}


def _time(call: Callable[[], Any], device: str) -> float:
    """Return the milliseconds of one call, on CUDA until its last kernel has ended."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return 1000 * (time.perf_counter() - start)


def _peak_memory(device: str, reset: bool = False) -> float:
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 1e6
    # Kilobytes on Linux, bytes on macOS; the system offers no reset
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
