# SPDX-License-Identifier: Apache-2.0
"""Runs cases in processes of their own, each with a limit of time.

A server process imports vLLM once and forks for every case: importing takes longer than a case
does. The server evaluates nothing on MLX, after which a fork would hang.
"""

import multiprocessing
import os
import re
import resource
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from zoo import sizes
from zoo.case import Case, Outcome, Part, run, set_environment

CPU_SECONDS = 120
"""Limit of a case's processor time; most take under ten. Elapsed time depends on other programs."""
ELAPSED_SECONDS = 300
MOST_TRIES = 8
"""Runs of a case, each with one more of the keys that its configuration turns out to lack."""

_ADAPTED = (Part.TRANSFORMERS, Part.POOLED)
"""Parts with models that vLLM makes of others, which it refuses to do with some."""


class Pool:
    """`processes` cases at a time. Use as a context."""

    def __init__(self, processes: int = 2, seed: str = "", flags: bool = False) -> None:
        """`seed` draws configurations, with `flags` true or false fields too: zoo/draw.py."""
        set_environment()
        self._seed = seed
        self._variant = {sizes.VARIANT: seed} | ({sizes.FLAGS: "1"} if flags else {})
        # Python's fork server silently passes over what it does not find on this path.
        path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["zoo.preload"])
        self._threads = ThreadPoolExecutor(processes)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function in a process of its own.

        Raises TimeoutError, or ChildProcessError when the process ended without one.
        """
        receive, send = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_child, args=(send, function, arguments, self._variant)
        )
        process.start()
        send.close()
        try:
            if not receive.poll(ELAPSED_SECONDS):
                raise TimeoutError(f"no answer in {ELAPSED_SECONDS} s")
            return receive.recv()
        except EOFError:
            process.join(10)
            raise ChildProcessError(f"the process ended with status {process.exitcode}") from None
        finally:
            process.kill()
            process.join()

    def run(self, cases: Iterable[Case]) -> Iterator[Outcome]:
        """Outcomes as they come."""
        pending = [self._threads.submit(self._run_case, case) for case in cases]
        for future in as_completed(pending):
            yield future.result()

    def _run_case(self, case: Case) -> Outcome:
        added: list[str] = []
        for _ in range(MOST_TRIES):
            outcome = self._run_once(case, added)
            missing = _MISSING_KEY.search(outcome.reason)
            if missing is None or missing[1] in added:
                break
            added.append(missing[1])
        if outcome.result == "differs":
            self._ask_torch(case, added, outcome)
        elif outcome.result.startswith("failed to") and (self._seed or case.part in _ADAPTED):
            self._ask_whether_refused(case, added, outcome)
        if outcome.result == "ran":
            self._judge_by_torch(case, added, outcome)
        return outcome

    def _run_once(self, case: Case, added: list[str], torch: bool = False) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="zoo-") as directory:
            try:
                return self.call(run, case, Path(directory), added, torch)
            except (TimeoutError, ChildProcessError) as error:
                return Outcome(case, "stopped", str(error))

    def _ask_torch(self, case: Case, added: list[str], outcome: Outcome) -> None:
        """vLLM's own model may be what differs from Hugging Face's."""
        torch = self._run_once(case, added, torch=True)
        if torch.largest_difference is not None and torch.result == "differs":
            apart = outcome.apart_from(torch)
            outcome.reason += (
                f"; vLLM's PyTorch model differs from it by {torch.largest_difference:.1e}, "
                f"the lowered one from vLLM's by {apart:.1e}"
            )
            if apart <= outcome.tolerance:
                outcome.result = "as vLLM"
        elif torch.result != "passed":
            outcome.reason += f"; vLLM's PyTorch model {torch.result}: {torch.reason}"

    def _ask_whether_refused(self, case: Case, added: list[str], outcome: Outcome) -> None:
        """A configuration that was drawn may be one that vLLM's own model has no code for."""
        torch = self._run_once(case, added, torch=True)
        # PyTorch ends such an error with a bracket more where it only traces.
        ours, theirs = (one.reason.rstrip(")") for one in (outcome, torch))
        if torch.result.startswith("failed to") and ours == theirs:
            by_hugging_face = case.part != Part.VLLM and outcome.result == "failed to build"
            where = "Hugging Face" if by_hugging_face else "vLLM"
            outcome.result = f"refused by {where}"
        else:
            outcome.reason += f"; vLLM's PyTorch model {torch.result} {torch.reason}"

    def _judge_by_torch(self, case: Case, added: list[str], outcome: Outcome) -> None:
        """Without a Hugging Face model the reference is vLLM's own."""
        torch = self._run_once(case, added, torch=True)
        if torch.result != "ran":
            outcome.result = "no reference"
            outcome.reason = f"vLLM's PyTorch model {torch.result}: {torch.reason}"
            return
        outcome.largest_difference = outcome.apart_from(torch)
        equal = outcome.largest_difference <= outcome.tolerance
        outcome.result = "passed" if equal else "differs"


_MISSING_KEY = re.compile(
    r"(?:Config' object has no attribute '|ValueError: )(\w+)(?:'| not exist)"
)


def _child(
    send: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    variant: dict[str, str],
) -> None:
    os.environ.update(variant)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        if not os.environ.get("ZOO_LOG"):
            os.dup2(nowhere.fileno(), 2)
    send.send(function(*arguments))
