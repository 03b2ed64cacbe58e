# SPDX-License-Identifier: Apache-2.0
"""`python -m vllm_metal.doctor [MODEL]`: what this machine has, and what a model would need of it.

What to paste into a bug report: versions, device, memory, measured copy bandwidth and launch cost,
and for a MODEL (a directory, a hub name or a bare `config.json`; no weights are read) its weights,
its KV cache and the ceiling that bandwidth sets to decoding. Exit status: 0 all well, 1 something
would keep a server from starting (said in a line `problem`), 2 a wrong argument.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

OK, PROBLEM = 0, 1

Section = dict[str, Any]

_COPY_BYTES = 1 << 28
_LAUNCHES = 512
_REPEATS = 5


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vllm_metal.doctor", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("model", metavar="MODEL", nargs="?")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--dtype", default="auto", help="of the model's weights and KV cache")
    parser.add_argument("--trust-remote-code", action="store_true")
    return parser.parse_args(arguments)


def versions() -> Section:
    """Versions of what takes part, and whether the native module fits the installed MLX."""
    found: Section = {"python": platform.python_version()}
    for name in ("vllm-metal", "vllm", "mlx", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    try:
        from vllm_metal._native import core

        found["built_against_mlx"] = core.MLX_VERSION
    except ImportError as error:
        found["problem"] = str(error)
    return found


def machine() -> Section:
    """The chip, its memory, and the device that MLX would compute on."""
    from vllm_metal.device import select_device
    from vllm_metal.memory import available_memory, total_memory

    device = select_device()
    return {
        "name": str(device),
        "device": device.name,
        "total_bytes": total_memory(),
        "available_bytes": available_memory(),
        "working_set_bytes": device.working_set,
    }


def budget(total: int, working_set: int | None) -> Section:
    """What a server would take, by VLLM_METAL_MEMORY_FRACTION and the device."""
    from vllm_metal import envs

    fraction = envs.MEMORY_FRACTION.value()
    limit = int(total * fraction)
    reason = f"{envs.MEMORY_FRACTION.name}={fraction:g}"
    if working_set is not None and working_set < limit:
        limit, reason = working_set, "the working set that Metal recommends"
    return {"limit_bytes": limit, "reason": reason}


def measure(device_name: str) -> Section:
    """Bytes a second that a copy reads and writes, and microseconds that a small kernel in a chain
    of dependent ones takes, on MLX's device."""
    import mlx.core as mx

    mx.set_default_device(mx.gpu if device_name == "gpu" else mx.cpu)
    source = mx.zeros((_COPY_BYTES // 4,), dtype=mx.float32)
    small = mx.zeros((8,), dtype=mx.float32)
    mx.eval(source, small)

    def copy() -> None:
        mx.eval(source + 1)

    def chain() -> None:
        x = small
        for _ in range(_LAUNCHES):
            x = x + 1
        mx.eval(x)

    copy_seconds, chain_seconds = _median_seconds(copy), _median_seconds(chain)
    return {
        "copy_bytes_per_second": 2 * _COPY_BYTES / copy_seconds,
        "launch_microseconds": chain_seconds / _LAUNCHES * 1e6,
    }


def _median_seconds(work: Any) -> float:
    work()  # the first one allocates and compiles
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def model(
    options: argparse.Namespace, limit: int, copy_bytes_per_second: float, device_name: str
) -> Section:
    """What MODEL needs: bytes of weights, of KV cache and state, and the decode ceiling.

    The ceiling is the bandwidth over the bytes that one token at batch 1 has to read, at an empty
    context: no software decodes faster.
    """
    import vllm_metal.capture as capture
    from vllm_metal.kernels.usable import check_kernels, kernel_runner
    from vllm_metal.lowered import lower

    config = capture.capture_config(
        options.model, options.dtype, trust_remote_code=options.trust_remote_code
    )
    with capture.single_process(config):
        built = capture.construct(config)
        lowering = lower(built, config)
        weights = sum(p.numel() * p.element_size() for p in built.parameters())
        layers = config.compilation_config.static_forward_context.values()
        specs = [
            layer.get_kv_cache_spec(config)
            for layer in layers
            if hasattr(layer, "get_kv_cache_spec")
        ]
    pages = [spec for spec in specs if spec is not None]
    kv_per_token = sum(spec.page_size_bytes / spec.block_size for spec in pages)
    decode = lowering.report.get("decode") or {}
    read = decode.get("bytes_read", weights)
    needed = weights + kv_per_token * config.model_config.max_model_len
    section: Section = {
        "name": options.model,
        "architecture": lowering.report["architecture"],
        "dtype": lowering.report["dtype"],
        "weight_bytes": weights,
        "kv_bytes_per_1000_tokens": int(1000 * kv_per_token),
        "max_model_len": config.model_config.max_model_len,
        "bytes_read_per_token": read,
        "decode_ceiling_tokens_per_second": copy_bytes_per_second / read,
        "launches_per_token": decode.get("launches"),
        "islands": lowering.report["fallback"],
        "kernels": check_kernels(lowering.plan, kernel_runner(device_name)).table(),
    }
    if weights > limit:
        section["problem"] = "the weights do not fit in the memory budget"
    elif needed > limit:
        section["problem"] = (
            f"one request of {config.model_config.max_model_len:,} tokens does not fit beside the "
            "weights: lower --max-model-len"
        )
    return section


def environment() -> Section:
    """The variables of vLLM and MLX that the user has set."""
    return {name: text for name, text in os.environ.items() if name.startswith(("VLLM_", "MLX_"))}


def examine(options: argparse.Namespace, settings: Section) -> Section:
    """All sections; one that fails says so in its `problem`."""
    report: Section = {"versions": versions()}
    if "problem" in report["versions"]:
        return report
    report["machine"] = machine()
    here = report["machine"]
    report["memory"] = budget(here["total_bytes"], here["working_set_bytes"])
    report["memory"] |= measure(here["device"])
    report["environment"] = settings
    if options.model:
        memory = report["memory"]
        try:
            report["model"] = model(
                options, memory["limit_bytes"], memory["copy_bytes_per_second"], here["device"]
            )
        except Exception as error:  # whatever a model's own code raises belongs in the report
            text = str(error).strip().splitlines() or [""]
            report["model"] = {
                "name": options.model,
                "problem": f"{type(error).__name__}: {text[0]}",
            }
    return report


def problems(report: Section) -> list[str]:
    """What would keep a server from starting."""
    return [section["problem"] for section in report.values() if "problem" in section]


def describe(report: Section) -> str:
    """The report for people, a few lines."""
    from vllm_metal.memory import human

    found = report["versions"]
    names = ("vllm-metal", "vllm", "mlx", "torch", "transformers")
    rows = [
        ("versions", ", ".join(f"{name} {found[name] or 'missing'}" for name in names)),
        ("", f"Python {found['python']}; built against mlx {found.get('built_against_mlx', '?')}"),
    ]
    if "machine" in report:
        here, memory = report["machine"], report["memory"]
        rows = [("machine", here["name"]), *rows]
        rows += [
            (
                "memory",
                f"budget {human(memory['limit_bytes'])} of {human(here['total_bytes'])} "
                f"({memory['reason']}); {human(here['available_bytes'])} available now",
            ),
            (
                "measured",
                f"copy {memory['copy_bytes_per_second'] / 1e9:,.1f} GB/s; "
                f"launch {memory['launch_microseconds']:.1f} us",
            ),
        ]
        settings = " ".join(f"{name}={value}" for name, value in report["environment"].items())
        rows.append(("settings", settings or "none"))
    if "weight_bytes" in report.get("model", {}):
        needs = report["model"]
        islands = sum(island["count"] for island in needs["islands"])
        rows += [
            ("model", f"{needs['architecture']} {needs['dtype']}; {islands} islands"),
            (
                "",
                f"{human(needs['weight_bytes'])} of weights, "
                f"{human(needs['kv_bytes_per_1000_tokens'])} of KV cache for 1,000 tokens",
            ),
            (
                "",
                f"ceiling at batch 1: {needs['decode_ceiling_tokens_per_second']:,.0f} tokens/s "
                "(measured bandwidth over the bytes that a token reads)",
            ),
        ]
    for index, row in enumerate(report.get("model", {}).get("kernels", [])):
        reason = f": {row['reason']}" if row["reason"] else ""
        title = "" if index else "kernels"
        rows.append((title, f"{row['kernel']} {row['status']}{reason}"))
    rows += [("problem", problem) for problem in problems(report)]
    return "\n".join(f"{title:9} {text}" for title, text in rows)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    settings = environment()  # before vLLM and this plugin add theirs
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    report = examine(options, settings)
    print(json.dumps(report, indent=2) if options.json else describe(report))
    return PROBLEM if problems(report) else OK


if __name__ == "__main__":
    sys.exit(main())
