"""patchdct_R_50_FPN_1x_coco.yaml as a Python config, a child of Detectron2's Mask R-CNN."""

from detectron2 import model_zoo

from .common import use_patchdct

_parent = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
model, dataloader, optimizer, train = _parent.model, _parent.dataloader, _parent.optimizer, _parent.train
lr_multiplier = _parent.lr_multiplier
use_patchdct(model, dataloader)
train.output_dir = "output/patchdct_R_50_FPN_1x_coco"
