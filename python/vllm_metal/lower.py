# SPDX-License-Identifier: Apache-2.0
"""`python -m vllm_metal.lower MODEL`: shows, explains or verifies what it is lowered to.

MODEL is a directory, a hub name or a bare `config.json`; weights are needed by --verify only, which
draws random ones where there are none. Exit status: 0 done, or equal; 1 not equal (--verify,
--diff); 2 a wrong argument, or a model that cannot be loaded or lowered.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from vllm_metal import html_report

STAGES = ("captured", "imported", "fused", "plan")
FORMATS = ("text", "json", "dot", "html")
PLAN = "plan"
DTYPES = ("auto", "float32", "bfloat16", "float16")

EQUAL, DIFFERENT, FAILED = 0, 1, 2


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vllm_metal.lower",
        description="Shows what a vLLM model is lowered to, or verifies it against PyTorch.",
    )
    parser.add_argument("model", metavar="MODEL", help="directory, hub name or config.json")
    parser.add_argument("--stage", choices=STAGES, default="plan")
    parser.add_argument(
        "--format",
        choices=(*FORMATS, PLAN),
        help="text unless said; plan is a file that src/examples/generate.rs runs, with --output",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write there instead of to the terminal; FILE.plan means --format plan",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument(
        "--ir-ops",
        choices=("whole", "decomposed"),
        default="whole",
        help="whether vLLM's IR operators are captured whole or taken apart: the plan is the same",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="run the plan against vLLM's PyTorch model: exit 0 equal, 1 not",
    )
    parser.add_argument(
        "--explain",
        metavar="NODE",
        help="the rules that made an instruction (%%14, 1:%%14 in region 1, logits:0:%%14), or "
        "that took a captured node (mm.3), and the captured nodes with their source lines",
    )
    parser.add_argument(
        "--explain-missing",
        metavar="RULE",
        nargs="?",
        const="",
        help="where the rule's left side stands unfused, and which guard refused; without RULE, "
        "for every rule that has such a place",
    )
    parser.add_argument(
        "--diff",
        metavar="OTHER",
        help="compare with another model's plan, or with the same one's under --diff-dtype or "
        "--diff-ir-ops: exit 0 the same, 1 not",
    )
    parser.add_argument("--diff-dtype", choices=DTYPES, help="OTHER's dtype; as --dtype if absent")
    parser.add_argument(
        "--diff-ir-ops",
        choices=("whole", "decomposed"),
        help="OTHER's capture of IR operators; as --ir-ops if absent",
    )
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="progress bars on stderr; by default on a terminal, after a second",
    )
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="capture and lower again, and leave the plan cache alone",
    )
    parser.add_argument("--trust-remote-code", action="store_true")
    options = parser.parse_args(arguments)
    if options.format is None:
        is_plan = options.output is not None and options.output.endswith(f".{PLAN}")
        options.format = PLAN if is_plan else FORMATS[0]
    if options.format == PLAN and options.output is None:
        parser.error("--format plan needs --output FILE")
    return options


def describe(report: dict[str, Any]) -> str:
    """The report in a few lines."""
    nodes, regions = report["nodes"], report["regions"]
    lines = [
        f"{report['architecture']}  {report['dtype']}  {nodes['captured']:,} captured -> "
        f"{nodes['plan']:,} planned   {regions['total']} regions, {regions['unique']} unique   "
        f"sha {report['plan_sha256'][:12]}"
    ]
    for title in ("fused", "lowered"):
        counts = ", ".join(f"{name} {count}" for name, count in sorted(report[title].items()))
        lines.append(f"{title:8} {counts or 'nothing'}")
    for island in report["fallback"]:
        lines.append(
            f"island   {island['target']} x{island['count']}: {island['reason']}, at "
            f"{island['where']}"
        )
    decode = report["decode"]
    for title, launched in (("decode", decode), ("kernels", decode["kernels"])):
        lines.append(
            f"{title:8} {launched['launches']:,} launches, {launched['launches_per_layer']:.4g} a "
            f"layer; {launched['bytes_read'] / 1e6:,.1f} MB read, "
            f"{launched['bytes_written'] / 1e6:,.1f} MB written (1 request of "
            f"{decode['context_length']} tokens)"
        )
        of_layer = sorted(launched["layer"].items())
        lines.append(f"{'layer':8} {', '.join(f'{name} {count:.4g}' for name, count in of_layer)}")
    for kind in report["prompts"]:
        heads = f"{kind['num_heads']}/{kind['num_kv_heads']} heads of {kind['head_size']}"
        if kind["sliding_window"]:
            heads += f", window {kind['sliding_window']}"
        moved = "; ".join(
            f"{step['rows']} of {step['length']} tokens {step['kernel'] / 1e6:,.1f} MB in place, "
            f"{step['gather'] / 1e6:,.1f} MB gathered"
            for step in kind["steps"]
        )
        lines.append(f"prompts  {kind['layers']} layers, {heads}: {moved}")
    for rule, guards in report["near_misses"].items():
        counts = ", ".join(f"{guard} x{count}" for guard, count in guards.items())
        lines.append(f"missed   {rule}, which needs: {counts}")
    timings = ", ".join(f"{name} {ms:,.1f}" for name, ms in report["timings_ms"].items())
    lines.append(f"ms       {timings}")
    return "\n".join(lines)


def render(lowering: Any, stage: str, format: str) -> str:
    """A stage with the report, as text or JSON; DOT is the stage alone, HTML the whole plan."""
    if format == "html":
        return html_report.render(lowering.report, json.loads(lowering.plan.dump("plan", "json")))
    dump = lowering.plan.dump(stage, format)
    match format:
        case "json":
            document = {**lowering.report, "stage": stage, "graphs": json.loads(dump)}
            return json.dumps(document, indent=2) + "\n"
        case "dot":
            return str(dump)
        case _:
            return f"{describe(lowering.report)}\n\n{dump}"


def explain(lowering: Any, node: str | None, rule: str | None) -> str:
    """The history of an instruction, and a rule's near misses: of each rule that has any for ""."""
    texts = [] if node is None else [lowering.plan.explain(node)]
    if rule is not None:
        rules = [rule] if rule else lowering.report["near_misses"]
        texts += [lowering.plan.explain_missing(name) for name in rules]
    return "\n".join(texts) or "no near miss\n"


def write(text: str, path: str | None) -> None:
    if path is None:
        sys.stdout.write(text)
    else:
        Path(path).write_text(text, encoding="utf-8")


def fail(error: BaseException) -> NoReturn:
    # A configuration that pydantic refuses: its reasons, without its dump of the input.
    reasons = getattr(error, "errors", None)
    text = "; ".join(entry["msg"] for entry in reasons()) if callable(reasons) else str(error)
    print(f"{type(error).__name__}: {text}", file=sys.stderr)
    if os.environ.get("VLLM_METAL_DEBUG") == "1":
        raise error
    sys.exit(FAILED)


def lowered(options: argparse.Namespace, model: str, dtype: str, ir_ops: Any) -> Any:
    """The lowering of a model, from the plan cache where it is there."""
    import vllm_metal.capture as capture
    from vllm_metal.lowered import lower
    from vllm_metal.plan_cache import PlanCache

    config = capture.capture_config(model, dtype, trust_remote_code=options.trust_remote_code)
    with capture.single_process(config):
        return lower(
            capture.construct(config),
            config,
            ir_ops=ir_ops,
            cache=None if options.no_cache else PlanCache.configured(),
            with_stages=True,
            progress=options.progress,
        )


def run(options: argparse.Namespace) -> int:
    """Does what is asked for; gives the exit status."""
    import vllm_metal.capture as capture

    if options.diff is not None:
        first = lowered(options, options.model, options.dtype, options.ir_ops)
        dtype, ir_ops = (
            options.diff_dtype or options.dtype,
            options.diff_ir_ops or options.ir_ops,
        )
        same, text = first.plan.diff(lowered(options, options.diff, dtype, ir_ops).plan)
        write(text, options.output)
        return EQUAL if same else DIFFERENT
    if options.verify or options.format == PLAN:
        config = capture.capture_config(
            options.model, options.dtype, trust_remote_code=options.trust_remote_code
        )
        with capture.single_process(config):
            if options.verify:
                from vllm_metal.verify import verify

                result = verify(options.model, config, options.ir_ops)
                write(f"{result}\n", options.output)
                return EQUAL if result.equal else DIFFERENT
            from vllm_metal.plan_cache import PlanCache
            from vllm_metal.plan_file import write_plan

            cache = None if options.no_cache else PlanCache.configured()
            print(write_plan(config, Path(options.output), cache))
            return EQUAL
    lowering = lowered(options, options.model, options.dtype, options.ir_ops)
    if options.explain is not None or options.explain_missing is not None:
        text = explain(lowering, options.explain, options.explain_missing)
    else:
        text = render(lowering, options.stage, options.format)
    write(text, options.output)
    return EQUAL


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    # vLLM logs to the standard output by default, where the dump goes.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    from vllm_metal import envs

    try:
        envs.validate()
        return run(options)
    except KeyboardInterrupt:
        raise
    except Exception as error:  # whatever a model's own code raises: the user reads one line
        fail(error)


if __name__ == "__main__":
    sys.exit(main())
