# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium for pages on disk."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, sync_playwright

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)


def executable() -> str:
    """The browser of this machine."""
    found = [path for path in map(shutil.which, NAMES) if path]
    assert found, "these tests need Chromium: on Debian and Ubuntu, apt-get install chromium"
    return found[0]


@contextmanager
def open_page() -> Iterator[tuple[Page, list[str]]]:
    """A page, and what went wrong on it: console errors, exceptions, and requests to a network."""
    problems: list[str] = []
    arguments = ["--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=arguments)
        page = browser.new_page()
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda request: (
                problems.append(request.url)
                if not request.url.startswith(("file:", "data:"))
                else None
            ),
        )
        try:
            yield page, problems
        finally:
            browser.close()
