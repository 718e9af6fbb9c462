"""The mask branch of a model by itself, and what it costs: multiply-adds and parameters."""

from typing import Any, NamedTuple

import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch.export import Dim

from pixelmask.errors import UserError
from pixelmask.export import Export, ExportedFile

from .mask_branch import DCTMaskBranch, RefinementBranch


class MaskNetwork(nn.Module):
    """The mask head of a model as a plain network: RoI features and classes in, soft masks out."""

    def __init__(self, model: Any):
        """
        Args:
            model: a Detectron2 model with StandardROIHeads or a subclass.

        Raises:
            UserError: if it has no mask head, or one that is not known here.
        """
        super().__init__()
        roi_heads = getattr(model, "roi_heads", None)
        if not isinstance(roi_heads, StandardROIHeads) or not roi_heads.mask_on:
            raise UserError(
                f"{type(model).__name__} with {type(roi_heads).__name__} has no mask branch to look at: it takes "
                "StandardROIHeads or a subclass, and MODEL.MASK_ON True"
            )
        self.head = roi_heads.mask_head
        if not isinstance(self.head, (RefinementBranch, DCTMaskBranch, MaskRCNNConvUpsampleHead)):
            raise UserError(f"MODEL.ROI_MASK_HEAD.NAME {type(self.head).__name__} is not known to the analysis")
        self.poolers = _poolers(roi_heads)
        self.channels = model.backbone.output_shape()[roi_heads.mask_in_features[0]].channels

    def example_inputs(self, num_instances: int, num_classes: int = 1) -> tuple[Tensor, ...]:
        """Draw inputs of :meth:`forward`: (B,) int64 classes, then a (B, channels, R, R) feature for each pooler."""
        sizes = [(num_instances, self.channels, *pooler.output_size) for pooler in self.poolers]
        return torch.randint(num_classes, (num_instances,)), *(torch.randn(size) for size in sizes)

    def forward(self, classes: Tensor, *features: Tensor) -> Tensor:
        """(B,) classes, all 0 if class-agnostic, and RoI features to the (B, M, M) soft masks of inference."""
        head = self.head
        if isinstance(head, RefinementBranch):
            x, fine = features
            return head.infer(x, fine, classes)
        if isinstance(head, DCTMaskBranch):
            return head.codec.decode(head.predict(features[0], classes))
        logits = head.layers(features[0])
        return logits[torch.arange(len(classes), device=classes.device), classes].sigmoid()


class MaskBranchCost(NamedTuple):
    """Multiply-adds for one instance, RoI pooling and element-wise arithmetic not counted, and parameters."""

    every_class: int
    """The paper's count: convolutions and fully connected layers, for all classes; the DCT, an FFT there, is not in."""
    spent: int
    """What the forward pass of this implementation does: the instance's class only, the DCT included."""
    parameters: int
    """Of the mask branch."""
    model_parameters: int
    """Of the whole model."""


def mask_branch_cost(model: nn.Module) -> MaskBranchCost:
    """Count a model's mask branch by fvcore, one multiply-add as one.

    Raises:
        UserError: if it has none, or one that is not known here.
    """
    network = MaskNetwork(model).cpu().eval()
    counter = FlopCountAnalysis(network, network.example_inputs(num_instances=1))
    # Applies the rows of a predictor that belong to one class; nothing else in a mask branch is a baddbmm.
    counter.set_op_handle("aten::baddbmm", _count_baddbmm)
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    macs = counter.by_operator()
    layers = macs["conv"] + macs["linear"]
    return MaskBranchCost(
        every_class=int(layers + macs["baddbmm"] * getattr(network.head, "num_classes", 1)),
        spent=int(counter.total()),
        parameters=_num_parameters(network.head),
        model_parameters=_num_parameters(model),
    )


def _poolers(roi_heads: StandardROIHeads) -> list[ROIPooler]:
    head = roi_heads.mask_head
    return [head.coarse_pooler, head.fine_pooler] if isinstance(head, RefinementBranch) else [roi_heads.mask_pooler]


def _count_baddbmm(inputs: list, outputs: list) -> int:
    batch, rows, inner = inputs[1].type().sizes()
    return batch * rows * inner * inputs[2].type().sizes()[2]


def _num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class MaskBranch(nn.Module):
    """What :func:`export_mask_branch` exports: a :class:`~patchdct.mask_network.MaskNetwork` whose inputs have names."""

    def __init__(self, model: Any):
        """
        Args:
            model: a Detectron2 model with a mask branch; its mask head is moved to the CPU, for inference.

        Raises:
            UserError: if it has none, or one that is not known.
        """
        super().__init__()
        self.network = MaskNetwork(model).cpu().eval()
        head: Any = self.network.head
        self.num_classes = head.num_classes if hasattr(head, "num_classes") else head.predictor.out_channels

    def example_inputs(self, num_instances: int) -> tuple[Tensor, ...]:
        """Draw inputs of :meth:`forward`."""
        return self.network.example_inputs(num_instances, self.num_classes)

    def forward(self, classes: Tensor, coarse: Tensor, fine: Tensor | None = None) -> Tensor:
        """
        Args:
            classes: (B,) int64 class of each instance; class-agnostic heads do not look at it.
            coarse: (B, channels, R, R) RoI features.
            fine: (B, channels, S, S) fine RoI features, of heads that refine.

        Returns:
            (B, M, M) soft masks in their boxes.
        """
        if self.num_classes == 1:
            classes = torch.zeros_like(classes)
        return self.network(classes, coarse, *([] if fine is None else [fine]))


def export_mask_branch(branch: MaskBranch, num_instances: int | None = None) -> Export:
    """Export a mask branch, from RoI features to soft masks.

    Args:
        branch: the network.
        num_instances: B, or None for any.
    """
    inputs = branch.example_inputs(num_instances or 2)
    shapes = axes = None
    if num_instances is None:
        shapes = ({0: Dim("instances")},) * len(inputs)
        axes = ({0: "instances"}, *[None] * (len(inputs) - 1))
    # Strict, because the branches ask for len(classes), which is a plain number to the other mode
    program = torch.export.export(branch, inputs, dynamic_shapes=shapes, strict=True)
    head = type(branch.network.head).__name__
    metadata = {"part": "mask-branch", "head": head, "num_classes": branch.num_classes}
    return Export(program, metadata, "masks", axes)


def check_mask_branch(file: ExportedFile, branch: MaskBranch, num_instances: int | None = None) -> float:
    """Return the largest difference between a file and the model's own masks, for random features.

    Args:
        file: what was written.
        branch: the network.
        num_instances: that it was exported for; None: 1, 2 and 7 are tried.
    """
    differences = []
    for number in [num_instances] if num_instances else [1, 2, 7]:
        inputs = branch.example_inputs(number)
        with torch.no_grad():
            expected = branch.network(*inputs)
        differences.append(float((file(*inputs) - expected).abs().max()))
    return max(differences)
