"""Tools that write what the real ones write, at once."""

import json
from pathlib import Path

import torch

from pixelmask.config import load_cfg
from pixelmask.errors import UserError

COCO = {
    "bbox": {"AP": 38.0},
    "segm": {"AP": 37.04, "AP50": 58.0, "AP75": 40.0, "APs": 18.4, "APm": 39.5, "APl": float("nan")},
    "boundary": {"AP": 24.0, "AP50": 50.0},
}
REFINEMENT = {"refinement": {"coarse_IoU": 80.0, "coarse_mBA": 50.0, "refined_IoU": 91.5, "refined_mBA": 72.25}}


class FakeTools:
    """Stands for :func:`reproduction.session.run_command`; ``calls`` has the tool and the arguments of each call.

    A tool named in ``failing`` fails; a training named by ``interrupt`` leaves a checkpoint, and fails. Mask AP is
    higher by 0.5 with each further seed.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.failing: set[str] = set()
        self.interrupt = False

    def __call__(self, command: list[str]) -> None:
        tool, args = Path(command[1]).stem, command[2:]
        self.calls.append((tool, args))
        if tool in self.failing:
            raise UserError(f"{tool}.py ended with status 1")
        getattr(self, tool)(args)

    def names(self) -> list[str]:
        """Return what was called: "train", "evaluate", or the tool."""
        return [
            tool if tool != "train_net" else "evaluate" if "--eval-only" in args else "train"
            for tool, args in self.calls
        ]

    def train_net(self, args: list[str]) -> None:
        cfg = load_cfg(args[args.index("--config-file") + 1])
        if "--eval-only" in args:
            folder = Path(args[args.index("OUTPUT_DIR") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            results = REFINEMENT if cfg.MODEL.META_ARCHITECTURE == "AIRM" else COCO
            if cfg.SEED > 1 and results is COCO:
                results = {**COCO, "segm": {**COCO["segm"], "AP": COCO["segm"]["AP"] + (cfg.SEED - 1) / 2}}
            (folder / "evaluation.json").write_text(json.dumps(results))
            return
        folder = Path(cfg.OUTPUT_DIR)
        (folder / "last_checkpoint").write_text("model_final.pth")
        if self.interrupt:
            raise UserError("train_net.py ended with status -9")
        (folder / "metrics.json").write_text('{"time": 1.0, "iteration": 19}\n{"time": 3.0}\n{"segm/AP": 1.0}\n')
        checkpoint = {"model": {}, "iteration": cfg.SOLVER.MAX_ITER - 1, "config": cfg.dump()}
        torch.save(checkpoint, folder / "model_final.pth")

    def analyze_model(self, args: list[str]) -> None:
        airm = {"total": 1_881_000_000_000, "model_parameters": 14_030_000}
        branch = {"every_class": 5_057_000_000, "parameters": 68_800_000, "model_parameters": 100_000_000}
        _write(args, [airm if "--tile-size" in args else branch])

    def benchmark(self, args: list[str]) -> None:
        row = {"milliseconds": 80.0, "images_per_second": 12.5}
        _write(args, {"device_name": "Abacus", "threads": 4, "commit": "abc", "rows": [row]})

    def upper_bound(self, args: list[str]) -> None:
        rows = [(1, 1), (8, 3), (8, 6), (8, 9), (8, 12), (112, 200), (112, 300)]
        keys = ("patch_size", "dim")
        rows = [
            {"resolution": 112, **dict(zip(keys, row, strict=True)), "AP": 50.0 + row[1], "AP_B": 40.0} for row in rows
        ]
        _write(args, rows)


def _write(args: list[str], content: object) -> None:
    Path(args[args.index("--json") + 1]).write_text(json.dumps(content))
