"""`make bench-local`: the figures of the local cluster. Prints a table and writes bench/results/local.json.

    bench/local.py                     start, boot and memory, about 8 minutes
    bench/local.py start boot          only these; nothing is written unless --output says where
    bench/local.py --from-nothing      `make run` from a clean clone and empty caches (bench/results/from-nothing.json)

Everything runs in clusters of its own on loopback, in a scratch directory, and is taken down at the end, also after
an error or Ctrl-C. Figures that fall short are printed like the others; only a failure to measure exits with 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import boots
import memory
import nothing
import startup
from clusters import BenchError, Cluster, progress, scratch, terminable
from figures import Report

PARTS = ("start", "boot", "memory")


def main() -> int:
    """Measure what was asked for."""
    arguments = _arguments()
    terminable()
    report = Report("from-nothing" if arguments.from_nothing else "local")
    report.note_load("at the start")
    try:
        with scratch(arguments.scratch) as directory:
            if arguments.from_nothing:
                nothing.measure(report, directory)
            else:
                _local(report, directory, arguments)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; everything was taken down", file=sys.stderr)
        return 130
    report.show()
    if arguments.output or arguments.from_nothing or not arguments.parts:
        print(f"written: {report.write(arguments.output)}")
    return 0


def _local(report: Report, directory: Path, arguments: argparse.Namespace) -> None:
    parts = arguments.parts or PARTS
    with Cluster(directory) as cluster:
        progress("a first cluster, not counted: it builds what is missing and warms the caches")
        report.raw["first up"] = cluster.up()
    if "start" in parts:
        startup.measure(report, directory, repeats=arguments.starts)
    if "boot" in parts:
        boots.measure(report, directory, repeats=arguments.boots)
    if "memory" in parts:
        memory.measure(report, directory, machines=arguments.machines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the local cluster.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--from-nothing", action="store_true", help="time `make run` from nothing")
    parser.add_argument("--starts", type=int, default=4, help="repeats of up and down (4)")
    parser.add_argument("--boots", type=int, default=6, help="repeats of each boot (6)")
    parser.add_argument("--machines", type=int, default=40, help="machines without QEMU (40)")
    parser.add_argument("--scratch", type=Path, help="where the scratch directory is made")
    parser.add_argument("--output", type=Path, help="the results file")
    arguments = parser.parse_args()
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
