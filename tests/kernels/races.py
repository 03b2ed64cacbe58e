# SPDX-License-Identifier: Apache-2.0
"""What test_races.py runs under the sanitizer, to see that it finds a race and invents none."""

import numpy as np

from .test_host import ROW_SUM, row_sum, some


def check(body: str) -> None:
    x = some((2, 200))
    np.testing.assert_allclose(row_sum(body, x), x.numbers().sum(1), atol=1e-4)


def test_right() -> None:
    check(ROW_SUM)


def test_wrong() -> None:
    """All lanes of a simdgroup write the same number: right in every order, and still a race."""
    check(ROW_SUM.replace("if (thread_index_in_simdgroup == 0) {", "if (true) {"))
