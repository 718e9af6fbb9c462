"""A report on COCO's own images and annotations: polygons, crowd regions, 80 classes, photographs of every size."""

import json

from pycocotools.coco import COCO

from reporting import write_report
from tests.support.models import tiny_cfg
from tests.tools.reporting.browser import drawn_card
from tests.tools.reporting.test_report_command import blocks


def test_the_truth_as_detections_is_without_fault(real_data, tmp_path, clean):
    root = real_data / "coco"
    json_file = root / "annotations" / "instances_val2017.json"
    truth = COCO(str(json_file))
    objects = [a for a in truth.anns.values() if not a["iscrowd"]]
    run = tmp_path / "run"
    cfg = tiny_cfg(num_classes=80)
    cfg.DATASETS.COCO_FORMAT = [["real_val_of_reports", str(json_file), str(root / "val2017")]]
    cfg.DATASETS.TEST = ("real_val_of_reports",)
    results = []
    for annotation in objects:
        rle = truth.annToRLE(annotation)
        rle["counts"] = rle["counts"].decode()
        kept = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        results.append({**kept, "segmentation": rle, "score": 0.75})
    (run / "inference" / "real_val_of_reports").mkdir(parents=True)
    (run / "inference" / "real_val_of_reports" / "coco_instances_results.json").write_text(json.dumps(results))
    (run / "config.yaml").write_text(cfg.dump())
    (run / "evaluation.json").write_text(json.dumps({"segm": {"AP": 100.0}}))
    page = write_report([run], tmp_path / "report.html")
    data = blocks(page)["data"]
    assert len(data["items"]) == len(truth.imgs) and len(data["classes"]) == 80
    assert sum(entry["isTrue"] for item in data["items"] for entry in item["objects"]) == len(objects)
    assert {item["values"]["boundary_iou"][0] for item in data["items"]} <= {1.0, None}
    assert {item["values"]["score"][0] for item in data["items"]} <= {0.75, None}
    assert page.stat().st_size < 100_000 * len(truth.imgs)  # 500 images: less than 50 MB
    print(f"{page.stat().st_size / len(truth.imgs) / 1000:.0f} kB an image")
    clean.get(page.as_uri())
    drawn_card(clean)
    assert clean.execute_script("return document.querySelector('#cards canvas').width") > 100
