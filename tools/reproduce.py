#!/usr/bin/env python
"""Make the papers' tables anew, and set what was obtained beside what is printed.

    python tools/reproduce.py list [TABLE ...]
    python tools/reproduce.py run patchdct-5 --row two_stage_dct --num-gpus 8
    python tools/reproduce.py run patchdct-5 --repeats 3
    python tools/reproduce.py run patchdct-5 --quick
    python tools/reproduce.py show patchdct-5 --format csv

"run" trains, evaluates and measures what is missing; it goes on where it was interrupted and repeats nothing, also not
what another table has made. Data that is missing is named, and everything else is made. "show" runs nothing.

--quick takes small models and drawn images: all of the machinery on a laptop, a minute for each row. Its figures cannot
be compared with a paper's.
"""

import argparse
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

from pixelmask.cli import console, positive, print_table, run
from pixelmask.errors import UserError
from pixelmask.files import write_text
from reproduction import quick
from reproduction.results import FORMATS, overview, render, results_of
from reproduction.session import OUTPUT, PARTS, Session
from reproduction.tables import Tables, load_tables
from reproduction.zoo import MODEL_ZOO, OBTAINED, collect, model_zoo, read_obtained


def list_rows(args: argparse.Namespace, tables: Tables, session: Session) -> None:
    chosen = {name: tables.table(name) for name in args.tables or tables.tables}
    lines = overview(replace(tables, tables=chosen), session)
    if args.json:
        sys.stdout.write(json.dumps(lines, indent=2) + "\n")
        return
    out = console(160)
    if args.quick:
        out.print(quick.TITLE)
    for name, table in chosen.items():
        rows = [line for line in lines if line["table"] == name]
        ours = [row["needs"] for row in rows if row["config"]]
        shared = [need for need in ours[0] if all(need in needs for needs in ours)]
        texts = []
        for row in rows:
            hours = "" if row["gpu_hours"] is None else f"{row['gpu_hours']:.0f}"
            needs = ", ".join(need for need in row["needs"] if need not in shared)
            state = row["state"] + (f", {row['runs']} runs" if row["runs"] > 1 else "")
            texts.append([row["row"], row["labels"], row["config"] or "", needs, state, hours])
        out.print(f"[bold]{name}[/]  {table.heading}\n[italic]needs {', '.join(shared)}[/]")
        print_table("", ("row", "", "config", "needs also", "state", "GPU hours"), texts, left=5, width=160)
    # Rows that share a config share its run
    trainings = {line["config"]: line["gpu_hours"] for line in lines if line["gpu_hours"]}
    if trainings:
        out.print(
            f"{len(trainings)} trainings, {sum(trainings.values()):,.0f} GPU hours if nothing is there yet: an "
            "estimate from published speeds on V100, see tools/reproduction/tables.yaml"
        )
    if not args.tables:
        for figure, command in tables.figures.items():
            out.print(f"{figure}:  {command}", markup=False, highlight=False)


def run_rows(args: argparse.Namespace, tables: Tables, session: Session) -> None:
    table = tables.table(args.table)
    rows = table.select(args.row)
    problems = session.make(table, rows, args.parts)
    sys.stdout.write("\n" + render(table, rows, results_of(table, rows, session), "markdown", args.quick))
    if problems:
        raise UserError("\n".join([f"not everything of {table.name} could be made:", *problems]))


def show_rows(args: argparse.Namespace, tables: Tables, session: Session) -> None:
    table = tables.table(args.table)
    rows = table.select(args.row)
    text = render(table, rows, results_of(table, rows, session), args.format, args.quick)
    if args.to:
        write_text(args.to, text)
    else:
        sys.stdout.write(text)


def write_zoo(args: argparse.Namespace, tables: Tables, session: Session) -> None:
    if args.collect:
        taken = collect(tables, session)
        print(f"{len(taken)} rows of {session.output} are now in {OBTAINED}", *taken, sep="\n")
    text = model_zoo(tables, read_obtained())
    if not args.check:
        write_text(MODEL_ZOO, text)
    elif not MODEL_ZOO.is_file() or MODEL_ZOO.read_text(encoding="utf-8") != text:
        raise UserError(f"{MODEL_ZOO.name} is not up to date: python tools/reproduce.py zoo")


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("pixelmask.config").setLevel(
        logging.ERROR
    )  # would say for every row that there is no CUDA device
    options = {name: getattr(args, name) for name in ("overrides", "iterations", "repeats", "num_gpus") if name in args}
    args.do(args, load_tables(), Session(args.output, args.quick, **options))


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="{list,run,show,zoo}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR", help=f"of the runs; default {OUTPUT}")
    common.add_argument("--quick", action="store_true", help="small models, drawn images: not the paper's data")
    one = argparse.ArgumentParser(add_help=False)
    one.add_argument("table", metavar="TABLE", help="such as patchdct-2 or airm-1, see list")
    one.add_argument("--row", action="append", default=[], metavar="ROW", help="may be given several times; else all")

    command = commands.add_parser("list", parents=[common], help="every table and row: config, data, GPU hours, state")
    command.add_argument("tables", nargs="*", metavar="TABLE", help="such as patchdct-2; all by default")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(do=list_rows)

    command = commands.add_parser("run", parents=[common, one], help="train, evaluate and measure what is missing")
    command.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to do; default all")
    command.add_argument("--num-gpus", type=positive, default=1, metavar="N", help="default 1")
    command.add_argument("--iterations", type=positive, metavar="N", help="of every training; its steps in proportion")
    command.add_argument("--repeats", type=positive, metavar="N", help="train with each of the seeds 1 to N")
    command.add_argument(
        "--set", dest="overrides", nargs="+", default=[], metavar="KEY VALUE", help="override the configs"
    )
    command.set_defaults(do=run_rows)

    command = commands.add_parser("show", parents=[common, one], help="the paper's figures beside the obtained ones")
    command.add_argument("--format", choices=FORMATS, default=FORMATS[0], help=f"default {FORMATS[0]}")
    command.add_argument("--to", type=Path, metavar="FILE", help="write to a file instead")
    command.set_defaults(do=show_rows)

    command = commands.add_parser("zoo", parents=[common], help="write MODEL_ZOO.md")
    command.add_argument("--collect", action="store_true", help="take this machine's evaluated rows over first")
    command.add_argument("--check", action="store_true", help="write nothing, fail if it is not up to date")
    command.set_defaults(do=write_zoo)
    return parser


if __name__ == "__main__":
    run(main, argument_parser().parse_args())
