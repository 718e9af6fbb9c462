"""How much AIRMF's weights adapt to an image: what refinement loses with their mean over a set in their place."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..coarse_to_fine import CoarseToFine
from ..implicit_mapping import MappingParameters
from ..meta_arch import AIRM
from ..tiles import Tile
from .metrics import intersection_and_union, mean_boundary_accuracy
from .refinement import MaskScores, sum_up


@torch.no_grad()
def measure_adaptation(
    model: AIRM, samples: Callable[[], Iterable[dict[str, Any]]]
) -> dict[str, dict[str, float | None]]:
    """Refine a set with each image's own weights, then with the mean weights of the set at each ratio.

    Args:
        model: in evaluation mode.
        samples: gives the set, each time the same: "image", "coarse_mask" and "mask", the truth, of each image.

    Returns:
        ``own``, ``mean`` and ``change``, mean less own: IoU and mBA in percent, as :func:`sum_up` has them. With SIRMF,
        whose weights are the same for all, the change is 0.
    """
    noted: dict[int, list[MappingParameters]] = {}
    ratio = 0  # counted from the last, as small images may leave out the first ones

    class Pass(CoarseToFine):
        def refine_ratio(self, level: int, masks: Tensor) -> tuple[Tensor, list[Tile]]:
            nonlocal ratio
            ratio = len(self.grids) - level
            return super().refine_ratio(level, masks)

    def note(_: Any, inputs: Any, parameters: MappingParameters) -> None:
        noted.setdefault(ratio, []).append(parameters)

    def replace(_: Any, inputs: Any, parameters: MappingParameters) -> MappingParameters:
        layers = zip(*noted[ratio], strict=True)
        means = ([torch.stack(of_all).mean(0) for of_all in zip(*layer, strict=True)] for layer in layers)
        return [(weight, bias) for weight, bias in means]

    def score(hook: Callable[..., Any]) -> dict[str, float | None]:
        handle = model.mapping.register_forward_hook(hook)
        try:
            return sum_up([_score(model, sample, Pass) for sample in samples()])
        finally:
            handle.remove()

    own, mean = score(note), score(replace)
    pairs = ((name, before, mean[name]) for name, before in own.items())
    change = {name: None if a is None or b is None else b - a for name, a, b in pairs}
    return {"own": own, "mean": mean, "change": change}


def _score(model: AIRM, sample: dict[str, Any], kind: type[CoarseToFine]) -> MaskScores:
    passes = model.coarse_to_fine(model.normalise(sample["image"])[None], kind=kind)
    refined = passes.refine(sample["coarse_mask"].to(model.device, torch.float32)[None])[0, 0].cpu().numpy()
    truth = sample["mask"][0].numpy() >= 0.5
    return MaskScores(*intersection_and_union(refined, truth), mean_boundary_accuracy(refined, truth))
