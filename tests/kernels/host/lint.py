# SPDX-License-Identifier: Apache-2.0
"""What Apple's compiler refuses and clang does not, as far as text and address spaces show it."""

import re

from .source import Source, instantiate
from .toolchain import check_syntax

_FORBIDDEN = [
    (r"\bdouble\b", "Metal has no double"),
    (r"\blong\s+long\b", "Metal has no long long: long has 64 bits"),
    (r"\bstd::", "Metal has no C++ standard library"),
    (r"\b(?:new|delete)\b", "Metal has no heap"),
    (r"\b(?:virtual|dynamic_cast|typeid)\b", "Metal has no run-time types"),
    (r"\b(?:throw|try|catch)\b", "Metal has no exceptions"),
    (r"\bgoto\b", "Metal has no goto"),
    (r"\bthread_local\b", "Metal has no thread-local storage"),
    (r"\basm\b", "Metal has no inline assembly"),
    (r"\bprintf\b|\"", "Metal kernels print nothing and have no strings"),
    (r"\bstatic\b(?!\s+(?:constexpr|constant|_?assert|inline|METAL_FUNC))", "no static variables"),
    (r"\[[=&]?\w*\]\s*\([^)]*\)\s*(?:->\s*\w+\s*)?\{", "Metal before 3.2 has no lambdas"),
    (r"#\s*include\s*[<\"](?!metal_)", "only Metal's own headers"),
    (
        r"\bthreadgroup\s+[\w:<>, ]+\s+\w+\s*(?:\[[^\]]*\])?\s*=",
        "threadgroup variables start unset",
    ),
    (r"\b__\w+", "names with two underscores belong to the compiler"),
    (r"\batomic_float\b|\batomic<float>", "float atomics are not in threadgroup memory"),
]


def _without_comments(text: str) -> str:
    """The text with comments blanked, line by line."""
    blank = lambda found: re.sub(r"[^\n]", " ", found[0])  # noqa: E731
    return re.sub(r"//[^\n]*|/\*.*?\*/", blank, text, flags=re.S)


def forbidden(text: str) -> list[str]:
    """Findings in a kernel's own text, `line: reason`."""
    text = _without_comments(text)
    found = []
    for pattern, reason in _FORBIDDEN:
        for match in re.finditer(pattern, text):
            line = text[: match.start()].count("\n") + 1
            found.append(f"{line}: {reason}: {match[0].strip()}")
    return found + _nested_threadgroup(text) + _recursion(text)


def _nested_threadgroup(text: str) -> list[str]:
    """Threadgroup variables live at the outermost level of a kernel."""
    depth, found = 0, []
    for line, content in enumerate(text.splitlines(), 1):
        if depth and re.search(r"\bthreadgroup\s+[\w:<>, ]+\s+\w+\s*(?:\[[^\]]*\])+\s*;", content):
            found.append(f"{line}: a threadgroup variable in a nested scope: {content.strip()}")
        depth += content.count("{") - content.count("}")
    return found


def _recursion(text: str) -> list[str]:
    """Functions of a header that call themselves."""
    found = []
    for match in re.finditer(r"\b(\w+)\s*\([^;{}]*\)\s*(?:const\s*)?\{", text):
        name, depth, end = match[1], 1, match.end()
        if name in ("if", "for", "while", "switch"):
            continue
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if re.search(rf"\b{name}\s*\(", text[match.end() : end]):
            found.append(f"{text[: match.start()].count(chr(10)) + 1}: {name} calls itself")
    return found


# Stores of vectors through pointers with an address space cannot be said in C++.
_NOT_SAYABLE = re.compile(
    r"no viable overloaded '[-+*/]?='|implicit instantiation|'this' argument|no matching member"
)


def address_spaces(source: Source) -> list[str]:
    """Conversions between address spaces, in the text that MLX made."""
    errors = check_syntax(instantiate(source), ["-DMSL_ADDRESS_SPACES"])
    own = [error for error in errors if error.startswith("kernel.metal:")]
    return [error for error in own if not _NOT_SAYABLE.search(error)]
