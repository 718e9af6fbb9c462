"""Training targets: the ground-truth masks of proposals, rasterised in their boxes."""

from collections.abc import Callable

import torch
from detectron2.structures import Instances
from torch import Tensor


@torch.compiler.disable
def send_boxes(instances: list[Instances]) -> Callable[[], list[Tensor]]:
    """Send the boxes of proposals to where the masks are, ahead of the work that a GPU is given next.

    Polygons are on the host. Asked for their boxes after that work, it would wait for all of it; so it waits for what
    was queued before, and rasterises while the GPU computes.

    Returns:
        what waits for the boxes, and returns those of each image that has any.
    """
    instances = [x for x in instances if len(x)]
    boxes = [x.proposal_boxes.tensor for x in instances]
    if all(x.gt_masks.device == x.proposal_boxes.device for x in instances):
        return lambda: boxes
    sent = torch.cat(boxes).to(instances[0].gt_masks.device, non_blocking=boxes[0].is_cuda)
    event = torch.cuda.Event() if boxes[0].is_cuda else None
    if event is not None:
        event.record()

    def arrive() -> list[Tensor]:
        if event is not None:
            event.synchronize()
        return list(sent.split([len(part) for part in boxes]))

    return arrive


@torch.compiler.disable  # Detectron2's polygons are no tensors
def rasterize_masks(
    instances: list[Instances], mask_size: int, device: torch.device, boxes: list[Tensor] | None = None
) -> Tensor:
    """Crop the ground-truth masks of proposals to their boxes.

    Args:
        instances: per image, with ``gt_masks`` (PolygonMasks or BitMasks) and ``proposal_boxes``. Images without
            proposals need no ``gt_masks``.
        mask_size: side of the result in pixels.
        device: where the result is to live.
        boxes: as :func:`send_boxes` sent them; None sends them now.

    Returns:
        (B, mask_size, mask_size) boolean masks in the box frame, the images' proposals one after the other.
    """
    found = [x.gt_masks for x in instances if len(x)]
    boxes = send_boxes(instances)() if boxes is None else boxes
    if not found:
        return torch.zeros(0, mask_size, mask_size, dtype=torch.bool, device=device)
    masks = [masks.crop_and_resize(part, mask_size) for masks, part in zip(found, boxes, strict=True)]
    return torch.cat(masks).to(device, non_blocking=True)  # else PyTorch waits for all of the device's work
