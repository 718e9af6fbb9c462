"""tables.yaml against the papers."""

from decimal import Decimal

import pytest
import yaml

from pixelmask.config import load_cfg
from pixelmask.errors import UserError
from reproduction import quick
from reproduction.table_runs import flat
from reproduction.tables import FILE, load_tables
from tests.test_configs import StrictLoader

TABLES = load_tables().tables
# Rows and the sum of all figures of each table, counted and added up from the papers' text
PRINTED = {
    "patchdct-1": (7, "397.7"),
    "patchdct-2": (9, "3631.1"),
    "patchdct-3": (7, "804.7"),
    "patchdct-4": (14, "3419.7"),
    "patchdct-5": (3, "390.1"),
    "patchdct-6": (2, "487.0"),
    "patchdct-7": (2, "482.4"),
    "patchdct-8": (2, "481.7"),
    "patchdct-9": (3, "727.2"),
    "patchdct-10": (3, "704.6"),
    "patchdct-11": (3, "729.4"),
    "patchdct-12": (3, "729.5"),
    "patchdct-13": (2, "487.2"),
    "airm-1": (8, "6185.22"),
    "airm-2": (6, "966.63"),
    "airm-3": (2, "332.07"),
    "airm-4": (6, "37948.76"),
    "airm-5": (4, "436.39"),
    "airm-6": (5, "455.97"),
}
OURS = [(table, row) for table in TABLES.values() for row in table.rows if row.config]


def test_every_table_row_and_figure_is_there():
    assert list(TABLES) == list(PRINTED)
    for name, expected in PRINTED.items():
        rows = [row for row in TABLES[name].rows if any(row.paper)]
        total = sum(Decimal(figure) for row in rows for figure in row.paper if figure)
        assert (len(rows), str(total)) == expected, name


@pytest.mark.parametrize(
    ("table", "row", "column", "figure"),
    [
        ("patchdct-1", "dct_300", "AP", "56.4"),
        ("patchdct-2", "dct_mask_R_50", "AP*_S", "23.5"),
        ("patchdct-2", "patchdct_RX_101", "AP_B", "28.6"),
        ("patchdct-2", "patchdct_R_101", "FPS", "11.8"),
        ("patchdct-3", "patchdct", "AP_B", "18.8"),
        ("patchdct-3", "patchdct_from_coco", "AP", None),
        ("patchdct-4", "patchdct_Swin_B", "AP_75", "50.8"),
        ("patchdct-4", "refinemask_RX_101", "AP_50", None),
        ("patchdct-5", "two_stage_dct", "AP*_B", "29.1"),
        ("patchdct-5", "patchdct", "AP_B", "24.7"),
        ("patchdct-7", "all", "AP_B", "23.6"),
        ("patchdct-8", "without", "AP*_B", "27.1"),
        ("patchdct-10", "stage_2", "(G)FLOPs", "9.6"),
        ("patchdct-12", "fine_56", "AP*", "41.0"),
        ("patchdct-13", "p2_p5", "AP_L", "53.3"),
        ("airm-1", "big_refinenet", "CRM mBA", "75.50"),
        ("airm-1", "voc_pspnet", "AIRM IoU", "94.06"),
        ("airm-2", "R_101_no_affinity", "mBA", "68.99"),
        ("airm-3", "sirmf", "IoU", "92.54"),
        ("airm-4", "airm_mit_b1", "FLOPs(G)", "2897"),
        ("airm-5", "no_l1_l2", "Time(H)", "14.9"),
        ("airm-6", "radius_18", "IoU", "90.99"),
    ],
)
def test_figures_are_as_printed(table, row, column, figure):
    (found,) = TABLES[table].select([row])
    assert found.paper[[column.name for column in TABLES[table].columns].index(column)] == figure


def test_only_other_projects_have_no_config():
    others = {row.name.partition("_")[0] for table in TABLES.values() for row in table.rows if not row.config}
    assert others == {
        "panoptic", "pointrender", "refinemask", "mask", "bmask", "bcnet", "solq", "meinst", "htc", "pointrend",
        "cascadepsp", "crm",
    }  # fmt: skip


@pytest.mark.parametrize("config", ["mask_rcnn_R_101", "dct_mask_R_101", "patchdct_R_101", "patchdct_Swin_B"])
def test_test_dev_evaluates_the_models_of_val(config):
    val = flat(load_cfg(f"configs/patchdct/{config}_FPN_3x_coco.yaml"))
    test = flat(load_cfg(f"configs/patchdct/test_dev/{config}_FPN_3x_test_dev.yaml"))
    assert test["DATASETS.TEST"] == ["coco_2017_test-dev"]
    assert {key for key in val if val[key] != test[key]} == {"DATASETS.TEST", "OUTPUT_DIR"}


@pytest.mark.parametrize("name", TABLES)
def test_quick_mode_keeps_what_the_rows_of_a_table_differ_in(name):
    full = [load_cfg(f"configs/{row.config}.yaml") for row in TABLES[name].rows if row.config]
    assert all(cfg.DATASETS.TRAIN for cfg in full)
    large, small = [flat(cfg) for cfg in full], [flat(quick.overlay(cfg)) for cfg in full]
    nodes = ("MODEL.ROI_MASK_HEAD.", "MODEL.AIRM.", "MODEL.META_ARCHITECTURE")
    varying = {key for key in large[0] if key.startswith(nodes) and len({str(cfg[key]) for cfg in large}) > 1}
    for before, after in zip(large, small, strict=True):
        assert {key: after[key] for key in varying} == {key: before[key] for key in varying}


def test_quick_mode_has_a_set_for_each_of_the_papers():
    assert {quick.test_set(row.test).split("_val_")[0] for _, row in OURS} == {"shapes", "synthetic_refinement"}
    with pytest.raises(UserError, match="ade20k"):
        quick.test_set("ade20k")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("paper: 91.28", "paper: 91.28 5", "airm-6, row radius_6 has 2 figures for 1"),
        ("paper: 91.28", "paper: about", "about"),
        ("labels: [18]", "labels: [18, 7]", "radius_18 has 2 labels"),
        ("{IoU: refinement/refined_IoU}", "{IoU: cost/watts}", "cost/watts"),
        ("  airm/*: 0.1053\n", "", "StopIteration"),
        ("    test: voc_relabelled_deeplabv3plus\n", "", "radius_6 has no test set"),
        ("airm-6:\n    title", "airm-6:\n    titel", "title"),
    ],
)
def test_faults_are_named(tmp_path, old, new, message):
    path = tmp_path / "tables.yaml"
    text = FILE.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        load_tables(path)


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(UserError, match="patchdct-14; there are patchdct-1, "):
        load_tables().table("patchdct-14")
    with pytest.raises(UserError, match="no row sirm; its rows are sirmf, airmf"):
        TABLES["airm-3"].select(["sirm"])


def test_no_key_stands_twice():
    for path in sorted(FILE.parent.glob("*.yaml")):
        yaml.load(path.read_text(), StrictLoader)
