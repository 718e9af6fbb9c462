"""Runs every method on the same coarse masks, and sums up what each has made of them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from airm.evaluation.metrics import intersection_and_union, mean_boundary_accuracies
from airm.instances.crops import find_window
from pixelmask.errors import UserError
from pixelmask.rle import Rle, encode
from reporting.gallery import Instance, Picture
from reporting.matching import disagreement

from .cases import Case, CaseSet
from .methods import MARGIN, Method

COARSE = "coarse"
WORSE = 10.0  # points of IoU that a mask has to lose to count as made worse
NUMBER_OF_WORST = 10
MEASURES = {
    "IoU": "IoU, percent",
    "mBA": "mBA, percent",
    "change": "change of IoU, points",
}

Entry = dict[str, Any]
"""A mask: kind, method, image, IoU and mBA in per cent, change of IoU, seconds. None for what cannot be said."""


@dataclass
class Comparison:
    """What came out: a row for each kind and method, the masks' own figures, the worst of each kind, and failures."""

    rows: list[Entry] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    worst: dict[str, list[Picture]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def compare(cases: CaseSet, kinds: Sequence[str], methods: Sequence[Method], seed: int) -> Comparison:
    """Refine the coarse masks of each kind of all cases by each method, one after the other.

    A method that fails on a mask is named, and has no figures for it; AP then counts the coarse mask.
    """
    answer = Comparison()
    names = [COARSE, *(method.name for method in methods)]
    masks: dict[tuple[str, str], list[Rle | None]] = {
        (kind, name): [None] * cases.number for kind in kinds for name in names
    }
    lost: dict[str, list[tuple[float, int, Picture]]] = {kind: [] for kind in kinds}
    with tqdm(total=cases.number * len(kinds) * len(methods), unit="mask") as bar:
        for index in range(cases.number):
            try:
                case = cases.read(index)
            except UserError as e:
                answer.faults.append(str(e))
                bar.update(len(kinds) * len(methods))
                continue
            for kind in kinds:
                found: dict[str, np.ndarray] = {COARSE: case.coarse_mask(kind, seed)}
                seconds: dict[str, float] = {}
                for method in methods:
                    bar.set_postfix_str(f"{method.name}, {kind}, {case.id}", refresh=False)
                    start = time.perf_counter()
                    try:
                        refine = method.refine_instance if cases.in_crops else method.refine
                        found[method.name] = refine(case.pixels, found[COARSE])
                        seconds[method.name] = time.perf_counter() - start
                    except UserError as e:
                        answer.faults.append(f"{method.name} on {case.id} ({kind}): {e}")
                    bar.update()
                entries = measure(case, kind, found, seconds)
                answer.entries += entries
                if cases.in_crops:
                    for name in names:
                        masks[kind, name][index] = encode(found.get(name, found[COARSE]))
                change = min((entry["change"] for entry in entries if entry["change"] is not None), default=None)
                if change is not None:
                    lost[kind].append((change, index, make_picture(case, found, entries, names, cases.in_crops)))
                    lost[kind] = sorted(lost[kind], key=lambda entry: entry[:2])[:NUMBER_OF_WORST]
    for kind in kinds:
        answer.worst[kind] = [picture for _, _, picture in lost[kind]]
        for name in names:
            own = [entry for entry in answer.entries if (entry["kind"], entry["method"]) == (kind, name)]
            precision = cases.average_precision(masks[kind, name]) if any(masks[kind, name]) else {}
            answer.rows.append({"kind": kind, "method": name, **summarise(own), **precision})
    return answer


def measure(case: Case, kind: str, found: dict[str, np.ndarray], seconds: dict[str, float]) -> list[Entry]:
    """Return an entry for each mask of a case, the coarse one first; without truth it has seconds only."""
    entries: list[Entry] = []
    masks, truth = list(found.values()), case.truth
    accuracies = None if truth is None else mean_boundary_accuracies(masks, truth)
    for i, (name, mask) in enumerate(found.items()):
        both, either = (0, 0) if truth is None else intersection_and_union(mask, truth)
        iou = None if truth is None else 100 * both / either if either else 100.0
        entry: Entry = {"kind": kind, "method": name, "image": case.id, "IoU": iou}
        entry["mBA"] = 100 * accuracies[i] if accuracies else None
        entry["change"] = iou - entries[0]["IoU"] if iou is not None and i else None
        entries.append({**entry, "seconds": seconds.get(name)})
    return entries


def summarise(entries: Sequence[Entry]) -> Entry:
    """Sum up the entries of one kind and method.

    Returns:
        "masks", how many have a truth; means of "IoU", "mBA" and "seconds"; "worse", the share in per cent that lost
        more than 10 points of IoU (0.1); "worst", the least "change" of IoU in points and its "image". None for what no
        entry has.
    """
    changed = [entry for entry in entries if entry["change"] is not None]
    worst = min(changed, key=lambda entry: entry["change"], default=None)
    return {
        "masks": sum(entry["IoU"] is not None for entry in entries),
        **{key: _mean([entry[key] for entry in entries]) for key in ("IoU", "mBA")},
        "worse": _mean([100.0 * (entry["change"] < -WORSE) for entry in changed]),
        "worst": worst and {key: worst[key] for key in ("change", "image")},
        "seconds": _mean([entry["seconds"] for entry in entries]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def make_picture(
    case: Case, found: dict[str, np.ndarray], entries: Sequence[Entry], names: Sequence[str], in_crops: bool
) -> Picture:
    """Return what the report's gallery shows of a case, an instance in its crop: a layer for each name, and the truth.

    Args:
        found, entries: masks and their figures, of those methods that did not fail.
        names: of all.
    """
    assert case.truth is not None
    window = slice(None), slice(None)
    if in_crops:
        rows, columns = np.nonzero(case.truth | found[COARSE])
        box = columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
        window = find_window([int(n) for n in box], case.truth.shape, MARGIN)
    shown = [Instance(encode(found[name][window])) if name in found else None for name in names]
    by_name = {entry["method"]: entry for entry in entries}
    layers = {f"run{i}": [instance] if instance else [] for i, instance in enumerate(shown)}
    return Picture(
        case.id,
        case.pixels[window].copy(),
        {"truth": [Instance(encode(case.truth[window]))], **layers},
        {key: [by_name[name][key] if name in by_name else None for name in names] for key in MEASURES},
        {
            f"{i}-{j}": disagreement(a, b) if a and b else None
            for i, a in enumerate(shown)
            for j, b in enumerate(shown)
            if i < j
        },
    )
