"""PATCHDCT of tests/support/training.py as a Python config."""

import detectron2.data.transforms as T
import torch
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.build import _train_loader_from_config
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler

from pixelmask.config import load_cfg
from pixelmask.data.mapper import CheckedDatasetMapper
from pixelmask.engine.optimizer import build_optimizer
from tests.support.training import PATCHDCT

_cfg = load_cfg(PATCHDCT.config, PATCHDCT.opts)


def _optimizer(params):
    return build_optimizer(_cfg, params.model)


def _sampler():  # newer versions seed it
    return _train_loader_from_config(_cfg)["sampler"]


def _multiplier():
    return build_lr_scheduler(_cfg, torch.optim.SGD([torch.zeros(1)], 1.0))._multiplier


model = L(build_model)(cfg=L(load_cfg)(config_file=PATCHDCT.config, opts=list(PATCHDCT.opts)))
optimizer = L(_optimizer)(params={})
lr_multiplier = L(_multiplier)()
train = {
    "output_dir": _cfg.OUTPUT_DIR,
    "init_checkpoint": "",
    "max_iter": _cfg.SOLVER.MAX_ITER,
    "checkpointer": {"period": 2, "max_to_keep": 100},
    "ddp": {"find_unused_parameters": False},
    "eval_period": 0,
    "log_period": 20,
    "device": "cpu",
    "seed": _cfg.SEED,
}
dataloader = {
    "train": L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names=_cfg.DATASETS.TRAIN[0]),
        mapper=L(CheckedDatasetMapper)(
            is_train=True,
            augmentations=[
                L(T.ResizeShortestEdge)(short_edge_length=[64, 80, 96], sample_style="choice"),
                L(T.RandomFlip)(),
            ],
            image_format="BGR",
            use_instance_mask=True,
            instance_mask_format="bitmask",
        ),
        sampler=L(_sampler)(),
        total_batch_size=2,
        num_workers=0,
    ),
    "test": L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names=_cfg.DATASETS.TEST[0], filter_empty=False),
        mapper=L(CheckedDatasetMapper)(
            is_train=False, augmentations=[L(T.ResizeShortestEdge)(short_edge_length=96)], image_format="BGR"
        ),
        num_workers=0,
    ),
}
