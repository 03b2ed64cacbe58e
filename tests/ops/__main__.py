# SPDX-License-Identifier: Apache-2.0
"""``python -m ops [--samples N] [ENTRY ...]`` writes docs/ops.md (`make ops`)."""

import argparse
import os

from ops import harness, table

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="ops", description="which ATen operators work on MLX")
    parser.add_argument(
        "--samples", type=int, default=harness.SAMPLES, help="of an entry and dtype"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("entries", nargs="*", help="run these, and keep the others' last outcomes")
    arguments = parser.parse_args()
    table.run(arguments.samples, set(arguments.entries), arguments.workers)
