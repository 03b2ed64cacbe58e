# SPDX-License-Identifier: Apache-2.0
"""`--thread-sanitizer`: kernels run under clang's thread sanitizer; see test_races.py."""

import pytest

from .host.execute import settings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thread-sanitizer", action="store_true")


def pytest_configure(config: pytest.Config) -> None:
    settings.sanitize = config.getoption("--thread-sanitizer", default=False)
