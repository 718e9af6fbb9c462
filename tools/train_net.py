#!/usr/bin/env python
"""Train or evaluate any model of this project from a config.

    python tools/train_net.py --config-file configs/patchdct/patchdct_R_50_FPN_1x_coco.yaml --num-gpus 8
    python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS model.pth
    torchrun --nproc_per_node=2 tools/train_net.py --config-file ... MODEL.DEVICE cpu

A Python config (Detectron2's LazyConfig) is given likewise, with overrides of its kind:

    python tools/train_net.py --config-file configs/patchdct/lazy/patchdct_R_50_FPN_1x_coco.py train.max_iter=300

A data set of one's own in COCO format needs no Python: ``--dataset my_train annotations.json images/``, then
``DATASETS.TRAIN "('my_train',)"``. SOLVER.REFERENCE_WORLD_SIZE 8 scales batch, learning rate and schedule of a config
for 8 GPUs to the GPUs at hand.
"""

import argparse
import contextlib
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from airm.trainer import RefinementTrainer
from patchdct.trainer import Trainer
from pixelmask.checkpoint import SafeCheckpointer, load_trained
from pixelmask.cli import add_import, add_precision, import_code, run
from pixelmask.config import find_device, load_cfg, says
from pixelmask.data.coco_format import with_classes_of_data
from pixelmask.engine import BaseTrainer, launch
from pixelmask.engine.lazy import lazy_trainer, load_lazy, settings_of
from pixelmask.engine.log import default_setup, logged
from pixelmask.engine.precision import set_precision
from pixelmask.errors import UserError
from pixelmask.files import only_writer


def trainer_of(cfg: CfgNode) -> type[BaseTrainer]:
    """Return the trainer of a config's kind of model."""
    return RefinementTrainer if cfg.MODEL.META_ARCHITECTURE == "AIRM" else Trainer


def read_config(args: argparse.Namespace) -> tuple[CfgNode, CfgNode | DictConfig, type[BaseTrainer]]:
    """Return the config, the same as it is to be written, and the trainer; the data sets are checked."""
    if args.config_file.endswith(".py"):
        lazy = load_lazy(args.config_file, args.opts)
        cfg, written = settings_of(lazy, args.config_file, args.dataset), lazy
        trainer = lazy_trainer(Trainer, lazy)
    else:
        cfg = load_cfg(args.config_file, args.opts, datasets=args.dataset)
        trainer = trainer_of(cfg)
        if not says(args.config_file, args.opts, "MODEL.ROI_HEADS.NUM_CLASSES"):
            cfg = with_classes_of_data(cfg)
        written = cfg
    trainer.prepare_datasets(cfg, train=not args.eval_only)
    return cfg, written, trainer


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    import_code(args.imports)
    with logged() as log:
        cfg, written, trainer = read_config(args)
        with only_writer(cfg.OUTPUT_DIR) if comm.is_main_process() else contextlib.nullcontext():
            log.keep(cfg.OUTPUT_DIR)
            default_setup(written, args)
            return train_or_evaluate(args, cfg, trainer)


def train_or_evaluate(
    args: argparse.Namespace, cfg: CfgNode, trainer_class: type[BaseTrainer]
) -> dict[str, Any] | None:
    find_device(cfg.MODEL.DEVICE)
    if not args.eval_only:
        trainer = trainer_class(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    model = trainer_class.build_model(cfg)
    load_trained(model, weights_to_evaluate(cfg, args.resume))
    set_precision(model, args.precision)
    results = trainer_class.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def weights_to_evaluate(cfg: CfgNode, resume: bool) -> str:
    """Return the last checkpoint in OUTPUT_DIR with ``--resume``, else ``MODEL.WEIGHTS``."""
    checkpointer = SafeCheckpointer(nn.Module(), save_dir=cfg.OUTPUT_DIR)
    weights = checkpointer.get_checkpoint_file() if resume and checkpointer.has_checkpoint() else cfg.MODEL.WEIGHTS
    if not weights:
        raise UserError(
            "--eval-only needs trained weights: give MODEL.WEIGHTS (of a Python config train.init_checkpoint), or "
            "--resume for the last checkpoint"
        )
    return weights


def argument_parser() -> argparse.ArgumentParser:
    parser = default_argument_parser(epilog=__doc__)
    add_import(parser)
    add_precision(parser)
    names, about = ("NAME", "JSON", "IMAGES"), "register a data set in COCO format; may be given several times"
    parser.add_argument("--dataset", nargs=3, action="append", default=[], metavar=names, help=about)
    return parser


if __name__ == "__main__":
    run(launch, main, argument_parser().parse_args())
