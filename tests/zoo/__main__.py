# SPDX-License-Identifier: Apache-2.0
"""`python -m zoo [NAME...]` (from `tests/`): runs architectures, all by default.

A run of some keeps the rows of the others in its JSON file and its table.
"""

import argparse
import json
import sys
from pathlib import Path

from zoo import coverage
from zoo.case import Outcome, Part
from zoo.pool import Pool
from zoo.registry import cases


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m zoo", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of names")
    parser.add_argument("--only", choices=list(Part), help="a part of the table")
    parser.add_argument(
        "--variant", metavar="SEED", default="", help="other configurations, see zoo/draw.py"
    )
    parser.add_argument("--flags", action="store_true", help="in these, turn true or false fields")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="the rows, as JSON")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the table, as Markdown")
    options = parser.parse_args()
    some = options.names or options.only
    rows = {} if options.json is None or not some else _read(options.json)
    done = 0
    with Pool(options.processes, options.variant, options.flags) as pool:
        known = pool.call(cases)
        chosen = [
            case
            for case in known
            if (not options.names or any(name in case.architecture for name in options.names))
            and options.only in (None, case.part)
        ]
        for outcome in pool.run(chosen):
            rows[outcome.case.architecture] = outcome
            done += 1
            print(f"{done:3}/{len(chosen)} {coverage.line(outcome)}", flush=True)
            if options.names and outcome.detail:
                print(outcome.detail, file=sys.stderr)
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                text = json.dumps([row.asdict() for row in rows.values()], indent=1)
                options.json.write_text(text, encoding="utf-8")
    if options.write:
        options.write.parent.mkdir(exist_ok=True)
        every = [rows.get(case.architecture, Outcome(case, "not run")) for case in known]
        options.write.write_text(coverage.table(every), encoding="utf-8")
    print(coverage.summary(list(rows.values())))
    return 0


def _read(path: Path) -> dict[str, Outcome]:
    """Rows of earlier runs, which a run of some architectures adds to."""
    if not path.exists():
        return {}
    rows = [Outcome.fromdict(row) for row in json.loads(path.read_text(encoding="utf-8"))]
    return {row.case.architecture: row for row in rows}


if __name__ == "__main__":
    sys.exit(main())
