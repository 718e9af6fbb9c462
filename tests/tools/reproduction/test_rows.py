"""Every config of every row: its model is built, trained for one step and evaluated, on tiny data."""

import json
from pathlib import Path

import pytest

from reproduction.session import Session
from reproduction.tables import load_tables
from tests.support.models import load_tool

TINY = {
    "GeneralizedRCNN": [
        "DATASETS.TRAIN", "('shapes_train_2_64px',)", "DATASETS.TEST", "('shapes_val_1_64px',)",
        "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.IMS_PER_BATCH", "2",
        "MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "MODEL.ROI_MASK_HEAD.HIDDEN_FEATURES", "16", "MODEL.FPN.OUT_CHANNELS", "8",
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "4", "MODEL.ROI_BOX_HEAD.FC_DIM", "8",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "3",
    ],
    "AIRM": [
        "DATASETS.TRAIN", "('synthetic_refinement_train_2_64x64',)",
        "DATASETS.TEST", "('synthetic_refinement_val_1_64x64',)", "INPUT.REFINEMENT.CROP_SIZE", "64",
        "SOLVER.IMS_PER_BATCH", "2", "MODEL.AIRM.STAGE_CHANNELS", "8", "MODEL.AIRM.HYPERNETWORK_CHANNELS", "[8,8]",
        "MODEL.MIT.EMBED_DIMS", "[4,8,20,32]",
    ],
}  # fmt: skip
ROWS = {
    row.config: (table, row)
    for table in reversed(load_tables().tables.values())
    for row in reversed(table.rows)
    if row.config
}
train_net = load_tool("train_net")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.mark.parametrize("config", sorted(ROWS), ids=lambda c: "-".join((ROWS[c][0].name, ROWS[c][1].name)))
def test_row_trains_and_evaluates(config, tmp_path, drawn, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(drawn))
    table, row = ROWS[config]
    cfg = Session(tmp_path, quick=True, iterations=1).run_of(row).cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([*TINY[cfg.MODEL.META_ARCHITECTURE], "MODEL.WEIGHTS", "", "OUTPUT_DIR", str(tmp_path)])
    trainer_class = train_net.trainer_of(cfg)
    trainer_class.prepare_datasets(cfg, train=True)
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    results = json.loads((tmp_path / "evaluation.json").read_text())
    for column in table.columns:
        if column.is_evaluated and not column.added:
            assert column.key in results[column.source]
