"""Fuzz for some minutes: python -m tests.fuzz --minutes 20 --seed 1."""

import argparse
import sys

from .readers import READERS
from .runner import fuzz

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--minutes", type=float, default=20)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--reader", help="the one whose name begins so; default: all in turns")
parser.add_argument("--number", type=int, help="try this file alone")
args = parser.parse_args()
readers = [reader for reader in READERS if reader.name.startswith(args.reader or "")]
start, most = (0, None) if args.number is None else (args.number, args.number + 1)
found = fuzz(args.seed, 60 * args.minutes, most, readers, start)
for name, number, what in found.findings:
    print(f"--- {name}, file {number} of seed {args.seed}\n{what}")
counts = ", ".join(f"{number} {what}" for what, number in sorted(found.counts.items()))
print(
    f"{found.tried} files, {counts}; {len(found.findings)} findings. The slowest took {found.slowest[0]:.1f} s "
    f"({found.slowest[1]}, file {found.slowest[2]}); at most {found.peak / 2**20:.0f} MiB were in use"
)
sys.exit(bool(found.findings))
