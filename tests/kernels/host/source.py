# SPDX-License-Identifier: Apache-2.0
"""The text of a kernel as MLX hands it to Metal's compiler, and as clang takes it.

MLX writes a custom kernel's signature, attributes and instantiation; without Metal it does so while
a function is exported, and prints the text when asked. What is compiled here is that text: only
`threadgroup` declarations change, and a function that calls the kernel is added.
"""

import contextlib
import ctypes
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from .errors import KernelError
from .toolchain import PREFIX


@dataclass(frozen=True)
class Source:
    """A kernel's text; `buffers` are the names of its buffers in order."""

    metal: str
    name: str
    instance: str
    parameters: list[tuple[str, str, str]]  # type, name, attribute
    body_line: int

    @property
    def buffers(self) -> list[str]:
        return [name for _, name, attribute in self.parameters if attribute.startswith("buffer(")]


@contextlib.contextmanager
def _standard_output() -> Iterator[list[str]]:
    """What native code prints while the block runs, as one string."""
    sys.stdout.flush()
    printed: list[str] = []
    with tempfile.TemporaryFile() as file:
        saved = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            yield printed
        finally:
            ctypes.CDLL(None).fflush(None)
            os.dup2(saved, 1)
            os.close(saved)
            file.seek(0)
            printed.append(file.read().decode())


def generate(kernel, inputs: list[mx.array], **launch) -> Source:
    """The text of an `mx.fast.metal_kernel` for inputs and a launch.

    Raises:
        KernelError: MLX refuses the launch, or prints no kernel.
    """

    def call(*arrays: mx.array):
        return kernel(inputs=list(arrays), verbose=True, **launch)

    with _standard_output() as printed, tempfile.TemporaryDirectory() as directory:
        try:
            mx.export_function(os.path.join(directory, "kernel.mlxfn"), call, *inputs)
        except ValueError as error:
            raise KernelError(f"MLX refuses the kernel: {error}") from error
    pieces = printed[0].split("```\n")
    if len(pieces) < 3:
        raise KernelError(f"MLX {mx.__version__} printed no kernel")
    return parse(pieces[1])


def parse(metal: str) -> Source:
    """Finds the signature that MLX wrote."""
    found = re.search(r"\[\[kernel\]\] void (custom_kernel_\w+)\(\n(.*?)\) \{\n", metal, re.S)
    if found is None:
        raise KernelError("the text has no kernel")
    parameters = []
    for parameter in found[2].split(",\n"):
        parts = re.fullmatch(r"\s*(.*?)(\w+) \[\[(.+)\]\]", parameter, re.S)
        if parts is None:
            raise KernelError(f"a parameter of another form: {parameter}")
        parameters.append((parts[1].strip(), parts[2], parts[3]))
    instance = re.search(r"decltype\((.*?)\) custom_kernel_\w+<", metal)
    return Source(
        metal=metal,
        name=found[1],
        instance=instance[1] if instance else found[1],
        parameters=parameters,
        body_line=metal[: found.end()].count("\n"),
    )


_DECLARATION = re.compile(
    r"\bthreadgroup\s+((?:[\w:]+(?:\s*<[^;{}()]*?>)?\s+)+?)"
    r"(\w+\s*(?:\[[^\]]*\]\s*)*(?:,\s*\w+\s*(?:\[[^\]]*\]\s*)*)*;)"
)


def _body(source: Source) -> str:
    """The text without the instantiation, variables of a threadgroup marked."""
    text = re.sub(r"\ntemplate \[\[host_name.*$", "\n", source.metal, flags=re.S)
    return f'{PREFIX}#line 1 "kernel.metal"\n' + _DECLARATION.sub(r"MSL_THREADGROUP \1\2", text)


def translate(source: Source) -> str:
    """C++ with the functions that `execute` calls."""
    arguments = []
    for kind, _, attribute in source.parameters:
        buffer = re.fullmatch(r"buffer\((\d+)\)", attribute)
        if buffer and kind.endswith("&"):
            arguments.append(f"*({kind[:-1]}*)buffers[{buffer[1]}]")
        elif buffer:
            arguments.append(f"({kind})buffers[{buffer[1]}]")
        elif kind == "uint3":
            value = f"thread_->{attribute}"
            arguments.append(f"uint3({value}.x, {value}.y, {value}.z)")
        else:
            arguments.append(f"thread_->{attribute}")
    return f"""{_body(source)}
extern "C" void msl_entry(void** buffers, const msl_host::Thread* thread_) {{
  {source.instance}({", ".join(arguments)});
}}
extern char __start_msl_threadgroup[] __attribute__((weak));
extern char __stop_msl_threadgroup[] __attribute__((weak));
extern "C" char* msl_memory() {{ return __start_msl_threadgroup; }}
extern "C" char* msl_memory_end() {{ return __stop_msl_threadgroup; }}
"""


def instantiate(source: Source) -> str:
    """C++ that is checked for its syntax alone, with the instance that MLX asks for."""
    return f"{_body(source)}\nauto* msl_instance = &{source.instance};\n"
