"""What a refinement report's gallery is made from: the data set, and the runs' refined masks."""

import csv
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog
from torch import nn

from airm.data.dataset_mapper import RefinementDatasetMapper
from airm.data.prepare import prepare_refinement_datasets
from airm.evaluation import binarize
from airm.evaluation.refinement import MASKS
from pixelmask.checkpoint.checkpointer import load_trained
from pixelmask.engine.build import build_model
from pixelmask.errors import UserError
from pixelmask.rle import encode

from .gallery import Instance, Picture
from .matching import boundary_iou, disagreement
from .reported_runs import ReportedRun

logger = logging.getLogger(__name__)

PER_IMAGE = "per_image.csv"
_COLUMNS = {"iou": "refined_IoU", "mba": "refined_mBA", "gain_iou": "gain_IoU", "gain_mba": "gain_mBA"}


class RefinementGallery:
    """Pictures of a data set with its coarse masks and those that runs made of them.

    Refined masks are those that the evaluation wrote; where it wrote none, the run's checkpoint makes them again.
    Coarse masks are those of the first run's config.
    """

    class_names: list[str] = []
    measures = {
        "iou": "IoU, percent",
        "mba": "mBA, percent",
        "gain_iou": "gain of IoU, points",
        "gain_mba": "gain of mBA, points",
        "boundary_iou": "Boundary IoU",
    }

    def __init__(self, runs: Sequence[ReportedRun], data_set: str):
        """Take runs of refinement that were evaluated on ``data_set``.

        Raises:
            UserError: if the data set cannot be used, an evaluation's files are missing or damaged, or a model is
                needed and there is no checkpoint.
        """
        configs = [run.config_for(data_set) for run in runs]
        prepare_refinement_datasets(configs[0], train=False)
        self.records: list[dict[str, Any]] = DatasetCatalog.get(data_set)
        self.data_set, self.runs = data_set, runs
        self.mapper = RefinementDatasetMapper(configs[0], is_train=False)
        self.figures = [_load_figures(run.folder / "inference" / data_set / PER_IMAGE) for run in runs]
        self.stored = [_load_masks(run, data_set) for run in runs]
        self.models = [
            _load_model(run, cfg) if stored is None else None
            for run, cfg, stored in zip(runs, configs, self.stored, strict=True)
        ]

    def picture(self, record: dict[str, Any]) -> Picture:
        """Compare the runs on an image of the data set.

        Raises:
            UserError: if the image cannot be read, or is not among those that a run was evaluated on.
        """
        sample, image_id = self.mapper(record), str(record["image_id"])
        refined = [self._refined(i, sample, image_id) for i in range(len(self.runs))]
        truth = _instance(sample["mask"])
        layers = {"truth": truth, "coarse": _instance(sample["coarse_mask"])}
        layers |= {f"run{i}": instance for i, instance in enumerate(refined)}
        values: dict[str, list[float | None]] = {
            key: [figures[image_id][column] for figures in self.figures] for key, column in _COLUMNS.items()
        }
        values["boundary_iou"] = [boundary_iou(truth, instance) for instance in refined]
        return Picture(
            image_id,
            record["file_name"],
            {key: [instance] for key, instance in layers.items()},
            values,
            {f"{i}-{j}": disagreement(a, b) for (i, a), (j, b) in itertools.combinations(enumerate(refined), 2)},
        )

    @torch.no_grad()
    def _refined(self, run: int, sample: dict[str, Any], image_id: str) -> Instance:
        stored, model = self.stored[run], self.models[run]
        if image_id not in self.figures[run] or (stored is not None and image_id not in stored):
            raise UserError(
                f"{self.runs[run].name} was not evaluated on {image_id} of {self.data_set}: has the data set changed? "
                "Evaluate it again"
            )
        if stored is not None:
            return Instance(stored[image_id])
        assert model is not None, "there is a model where nothing is stored"
        return _instance(model([sample])[0]["refined_mask"])


def _instance(mask: torch.Tensor) -> Instance:
    return Instance(encode(binarize(mask[0].float().cpu().numpy())))


def _load_model(run: ReportedRun, cfg: Any) -> nn.Module:
    logger.info("Refining the masks of the gallery with %s", cfg.MODEL.WEIGHTS)
    model = build_model(cfg).eval()
    try:
        load_trained(model, cfg.MODEL.WEIGHTS)
    except UserError as e:
        raise UserError(f"the evaluation of {run.name} kept no masks, and its model cannot be run: {e}") from None
    return model


def _load_masks(run: ReportedRun, data_set: str) -> dict[str, dict[str, Any]] | None:
    """Read a run's refined masks by image id; None where its evaluation kept none."""
    content = run.results(data_set, MASKS)
    return None if content is None else {entry["image_id"]: entry["segmentation"] for entry in content}


def _load_figures(path: Path) -> dict[str, dict[str, float | None]]:
    """Read the figures of each image by its id; None for an empty cell."""
    try:
        with open(path, newline="", encoding="utf-8") as f:
            return {
                row["image_id"]: {column: float(row[column]) if row[column] else None for column in _COLUMNS.values()}
                for row in csv.DictReader(f)
            }
    except (OSError, KeyError, ValueError, TypeError) as e:
        raise UserError(f"cannot read {path}: {e!r}; evaluate this run again") from None
