"""What the Python configs share: the PatchDCT head, and data loading and evaluation as in YAML configs."""

from detectron2.config import LazyCall as L
from detectron2.modeling.poolers import ROIPooler

from patchdct import MaskRCNNPatchDCTHead
from patchdct.evaluation import COCOWithLVISEvaluator
from pixelmask.data.mapper import CheckedDatasetMapper

# One module over 14 x 14 patches of 8 x 8, six elements each (paper, Sec. 4.2); the defaults of its classes
mask_head = L(MaskRCNNPatchDCTHead)(
    sizes=L("patchdct.mask_branch.MaskBranchSizes")(num_classes="${...num_classes}"),
    in_features=["p2", "p3", "p4", "p5"],
    fine_features=["p2"],
    coarse_pooler=L(ROIPooler)(
        output_size=14, scales=[1 / 4, 1 / 8, 1 / 16, 1 / 32], sampling_ratio=0, pooler_type="ROIAlignV2"
    ),
    fine_pooler=L(ROIPooler)(output_size=42, scales=[1 / 4], sampling_ratio=0, pooler_type="ROIAlignV2"),
    patch_size=8,
    patch_vector_dim=6,
    patch_threshold=0.3,
)


def use_patchdct(model, dataloader):
    """Give a Mask R-CNN of Detectron2 the PatchDCT head, and its loaders what reads images and evaluates here."""
    model.roi_heads.mask_head = mask_head
    model.roi_heads.mask_pooler = None  # the head pools for itself
    for loader in (dataloader.train, dataloader.test):
        loader.mapper._target_ = CheckedDatasetMapper
    dataloader.evaluator = L(COCOWithLVISEvaluator)(
        dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}/inference/${..test.dataset.names}"
    )
