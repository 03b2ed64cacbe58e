# SPDX-License-Identifier: Apache-2.0
"""The demo model's corpus: documentation that the running CPython carries with itself.

Nothing is downloaded. Two kinds of documents come out:

* **prose**: the public docstrings of the standard library's Python files, the help topics of
  ``pydoc`` (the language reference), IDLE's help and the README files beside the modules;
* **questions**: for each public name of well-known modules, its signature and the first
  paragraph of its docstring, to be asked about in a chat.

The result depends on the CPython version and platform only; `corpus_hash` names it.
"""

import ast
import hashlib
import html
import importlib
import inspect
import pydoc_data.topics
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Directories and files left out: tests and development tools, and modules that few ask about or
# that are mostly doctests. A small model learns the rest the better.
SKIPPED_PARTS = {
    "test",
    "tests",
    "idle_test",
    "idlelib",
    "site-packages",
    "lib2to3",
    "distutils",
    "ensurepip",
    "turtledemo",
    "pydoc_data",
    "__pycache__",
    "tkinter",
    "turtle.py",
    "wsgiref",
    "xmlrpc",
    "imaplib.py",
    "nntplib.py",
    "telnetlib.py",
    "pickletools.py",
    "_pydecimal.py",
    "_pyio.py",
}

# Modules (and, with a dot after a class, their classes' methods) that people ask about.
QUESTION_MODULES = """
    builtins abc argparse array ast asyncio base64 bisect calendar cmath codecs collections
    colorsys configparser contextlib copy csv dataclasses datetime decimal difflib dis email enum
    fileinput fnmatch fractions functools gc getpass glob gzip hashlib heapq hmac html
    importlib inspect io ipaddress itertools json keyword locale logging math mimetypes
    multiprocessing operator os os.path pathlib pdb pickle platform pprint queue
    random re sched secrets select shelve shlex shutil signal socket sqlite3 statistics
    string struct subprocess sys tarfile tempfile textwrap threading time timeit
    tokenize traceback types typing unicodedata unittest urllib.parse urllib.request
    uuid warnings weakref wave zipfile zlib
"""

QUESTION_CLASSES = """
    builtins.str builtins.bytes builtins.list builtins.dict builtins.set builtins.tuple
    builtins.int builtins.float builtins.complex builtins.bytearray collections.deque
    collections.OrderedDict collections.Counter datetime.datetime datetime.date
    datetime.timedelta pathlib.Path threading.Thread threading.Semaphore
    threading.Event threading.Condition queue.Queue random.Random argparse.ArgumentParser
    subprocess.Popen string.Formatter configparser.ConfigParser logging.Logger
    fractions.Fraction decimal.Decimal
"""


@dataclass(frozen=True)
class Question:
    """A name of the standard library and the answer to "What does it do?"."""

    name: str
    answer: str


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order."""

    prose: list[str]
    questions: list[Question]

    def texts(self) -> list[str]:
        """Everything, in order."""
        return self.prose + [part for q in self.questions for part in (q.name, q.answer)]

    def characters(self) -> int:
        """Length of everything."""
        return sum(map(len, self.texts()))

    def corpus_hash(self) -> str:
        """SHA-256 over all documents, in order."""
        digest = hashlib.sha256()
        for text in self.texts():
            digest.update(text.encode("utf-8") + b"\0")
        return digest.hexdigest()


def collect() -> Corpus:
    """Collect the corpus from the running interpreter's standard library."""
    with warnings.catch_warnings():
        # Looking at deprecated names and parsing old string literals warns; both are wanted here.
        warnings.simplefilter("ignore")
        return Corpus(prose=_prose(), questions=_questions())


def reflow(text: str) -> str:
    """Join the lines of plain paragraphs; keep indented, listed and code paragraphs as they are."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text))
    return "\n\n".join(_reflow_paragraph(paragraph) for paragraph in paragraphs).strip()


def _reflow_paragraph(paragraph: str) -> str:
    lines = [line.rstrip() for line in paragraph.expandtabs(4).splitlines()]
    plain = not any(re.match(r"\s|[-*+>|=~#]|\d+[.)]", line) for line in lines)
    if plain and len(lines) > 1:
        return " ".join(lines)
    return "\n".join(lines)


def _prose() -> list[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    documents: list[str] = []
    for path in sorted(library.rglob("*")):
        parts = path.relative_to(library).parts
        if path.name == "help.html":
            documents.append(_plain_text(path))
        if SKIPPED_PARTS.intersection(parts) or not path.is_file():
            continue
        if path.suffix == ".py":
            documents.extend(_docstrings(path))
        elif path.name.startswith("README"):
            documents.append(_plain_text(path))
    documents.extend(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
    reflowed = (reflow(document) for document in documents)
    unique = dict.fromkeys(text for text in reflowed if _readable(text))
    return list(unique)


def _docstrings(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented):
            private = getattr(node, "name", "").startswith("_")
            docstring = ast.get_docstring(node)
            if docstring and not private:
                yield docstring


def _plain_text(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".html":
        text = html.unescape(re.sub(r"<[^>]+>", "", text))
    return text


def _readable(text: str) -> bool:
    """True for text that is mostly ASCII letters: leaves tables and fragments out."""
    letters = sum(character.isascii() and character.isalpha() for character in text)
    return len(text) >= 20 and text.isascii() and letters >= 0.55 * len(text)


def _questions() -> list[Question]:
    answers: dict[str, str] = {}
    for module_name in QUESTION_MODULES.split():
        module = importlib.import_module(module_name)
        if module.__doc__:
            _add(answers, module_name, "module", module.__doc__)
        for name, value in _public_members(module):
            if inspect.isclass(value) or inspect.isroutine(value):
                _add_object(answers, _spoken(module_name, name), value)
    for class_name in QUESTION_CLASSES.split():
        module_name, _, name = class_name.rpartition(".")
        owner = getattr(importlib.import_module(module_name), name)
        for method_name, method in _public_members(owner):
            if inspect.isroutine(method):
                _add_object(answers, f"{_spoken(module_name, name)}.{method_name}", method)
    return [Question(name, answers[name]) for name in sorted(answers)]


def _public_members(owner: object) -> list[tuple[str, object]]:
    exported = getattr(owner, "__all__", None)
    names = sorted(exported or vars(owner))
    members = [(name, getattr(owner, name, None)) for name in names if not name.startswith("_")]
    if exported or not inspect.ismodule(owner):
        return members
    # Without __all__, names that the module merely imports are not its own.
    own = owner.__name__
    return [
        (name, value)
        for name, value in members
        if str(getattr(value, "__module__", own)).lstrip("_").split(".")[0] == own.split(".")[0]
        or own in ("os.path", "math", "time", "sys")
    ]


def _spoken(module_name: str, name: str) -> str:
    return name if module_name == "builtins" else f"{module_name}.{name}"


def _add_object(answers: dict[str, str], name: str, value: object) -> None:
    docstring = getattr(value, "__doc__", None)
    if not isinstance(docstring, str):
        return
    if inspect.isclass(value):
        if issubclass(value, BaseException) or docstring.startswith(value.__name__ + "("):
            docstring = re.sub(r"^\w+\(.*?\)( -> \w+)?\s*", "", inspect.cleandoc(docstring))
        heading = name
    else:
        heading = f"{name}{_signature(value)}"
    _add(answers, name, heading, docstring)


def _signature(value: object) -> str:
    try:
        signature = inspect.signature(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "()"
    text = ", ".join(
        str(parameter.replace(annotation=inspect.Parameter.empty))
        for parameter in signature.parameters.values()
        if parameter.name not in ("self", "cls")
    )
    return f"({text})" if len(text) <= 60 and " at 0x" not in text else "(...)"


def _add(answers: dict[str, str], name: str, heading: str, docstring: str) -> None:
    text = inspect.cleandoc(docstring)
    # C functions open with their signature, sometimes on the summary's own line.
    text = re.sub(r"^[\w.]+\([^\n]*?\)( *-> *[^\n]+)?( -- |\n\s*|$)", "", text).strip()
    summary = " ".join(re.split(r"\n\s*\n", text)[0].split())
    if not summary.isascii() or not 15 <= len(summary) <= 400 or not summary[0].isalpha():
        return
    if heading == "module":
        heading = f"{name} (module)"
    answers.setdefault(name, f"{heading}: {summary}")
