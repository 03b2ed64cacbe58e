# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with a kernel."""


class KernelError(Exception):
    """A kernel does not compile, does what Metal forbids, or depends on the order of threads."""
