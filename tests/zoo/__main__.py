# SPDX-License-Identifier: Apache-2.0
"""`python -m zoo [NAME...]` (from `tests/`): runs architectures, all by default."""

import argparse
import json
import sys
from pathlib import Path

from zoo import coverage
from zoo.case import Outcome
from zoo.pool import Pool
from zoo.registry import cases


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m zoo", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of names")
    parser.add_argument("--only", choices=["both", "vllm"], help="which registries know it")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="the rows, as JSON")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the table, as Markdown")
    options = parser.parse_args()
    outcomes: list[Outcome] = []
    with Pool(options.processes) as pool:
        chosen = [
            case
            for case in pool.call(cases)
            if (not options.names or any(name in case.architecture for name in options.names))
            and (options.only is None or case.in_transformers == (options.only == "both"))
        ]
        for outcome in pool.run(chosen):
            outcomes.append(outcome)
            print(f"{len(outcomes):3}/{len(chosen)} {coverage.line(outcome)}", flush=True)
            if options.names and outcome.detail:
                print(outcome.detail, file=sys.stderr)
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps([o.asdict() for o in outcomes], indent=1))
    if options.write:
        options.write.write_text(coverage.table(outcomes), encoding="utf-8")
    print(coverage.summary(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
