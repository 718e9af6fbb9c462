"""PatchDCT on ViTDet-B: Detectron2's Mask R-CNN and its recipe of 100 epochs, batch 64, large-scale jittering."""

from functools import partial

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import get_norm
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from .common import use_patchdct

SIZE = 1024

model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
dataloader = model_zoo.get_config("common/data/coco.py").dataloader
optimizer = model_zoo.get_config("common/optim.py").AdamW
train = model_zoo.get_config("common/train.py").train

use_patchdct(model, dataloader)
model.roi_heads.mask_head.sizes.norm = partial(get_norm, "LN")

# 184,375 iterations x 64 images are 100 epochs
train.update(max_iter=184375, output_dir="output/patchdct_vitdet_b_coco")
train.init_checkpoint = "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_base.pth?matching_heuristics=True"
train.amp.enabled = train.ddp.fp16_compression = True
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[163889, 177546], num_updates=184375),
    warmup_length=250 / 184375,
    warmup_factor=0.001,
)
optimizer.params.lr_factor_func = partial(get_vit_lr_decay_rate, lr_decay_rate=0.7, num_layers=12)
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}

dataloader.train.total_batch_size = 64
dataloader.train.mapper.update(image_format="RGB", recompute_boxes=True)
dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),
    L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=SIZE, target_width=SIZE),
    L(T.FixedSizeCrop)(crop_size=(SIZE, SIZE), pad=False),
]
dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=SIZE, max_size=SIZE)]
