"""Against the limit: a protected server beside the same engine called in process, in a loop.

Usage: python benchmarks/bench_limit.py [--tasks resnet50,bert-large] [--precisions int8] [--callers 16]
           [--rounds 3] [--seconds 10] [--json] [--page]

The loop decodes every JPEG, has the same model, streams and threads, and takes the best of three ways of
calling the engine (`peers/limit.py`). The server gets requests that were sealed ahead (OHTTP), from callers
on the same cores. Both are loaded, one works at a time; the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from rig.forms import TASKS, ensure_forms
from rig.limit import start_limit
from rig.options import Results, make_parser
from rig.page import render_table
from rig.protected import start_protected
from rig.rounds import Rounds, run_in_turn
from rig.ways import Asking, pack_heavy, start_open

WARM_S = 4.0


def measure_task(
    task: str, precision: str, *, callers: int, rounds: int, seconds: float, environments: Path, work: Path
) -> tuple[Rounds, str]:
    """The runs of server and loop, and how the loop calls the engine."""
    forms = ensure_forms(task, environments)
    archive = pack_heavy(task, precision, forms, work)
    asking = Asking(work, task, callers=callers, seconds=seconds)
    with start_open([archive], work) as plain:
        asking.warm(plain, archive.stem, min(seconds, WARM_S))
    with (
        start_protected([archive], work / "protected") as protected,
        start_limit(task, forms, precision, work) as limit,
    ):

        def measure(name: str) -> dict[str, float]:
            if name == "in process":
                return limit.run(seconds)
            before = protected.processor_s()
            found = asking.ohttp(protected, archive.stem)
            used = (protected.processor_s() - before) / found.requests
            return found.figures() | {"processor_s": used, "callers_s": found.processor_s / found.requests}

        asking.shorter(WARM_S, measure, "protected")
        return run_in_turn(["in process", "protected"], rounds, measure), limit.way


def main() -> int:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--precisions", default="int8")
    parser.add_argument("--callers", type=int, default=16)
    options = parser.parse_args()
    results = Results("bench_limit")
    data: dict[str, Any] = {}
    rows = []
    for task in options.tasks.split(","):
        for precision in options.precisions.split(","):
            with tempfile.TemporaryDirectory(prefix="bench-limit-") as folder:
                rounds, way = measure_task(
                    task,
                    precision,
                    callers=options.callers,
                    rounds=options.rounds,
                    seconds=options.seconds,
                    environments=options.environments,
                    work=Path(folder),
                )
            ratio = rounds.ratio("protected", "in process", "per_s")
            data[f"{task} {precision}"] = {
                "medians": rounds.medians(),
                "runs": rounds.runs(),
                "ratio": round(ratio, 4),
                "way": way,
            }
            rows.append(
                [
                    f"{task} {precision.upper()}",
                    f"{rounds.median('in process', 'per_s'):,.1f} ({way})",
                    f"{rounds.median('protected', 'per_s'):,.1f}",
                    f"{ratio:.3f}",
                    f"{rounds.median('in process', 'processor_s') * 1e3:.1f}",
                    f"{rounds.median('protected', 'processor_s') * 1e3:.1f}",
                    f"{rounds.median('protected', 'callers_s') * 1e3:.2f}",
                ]
            )
    head = ["Model", "In process, /s", "Protected, /s", "Ratio"]
    head += ["ms of processor each, in process", "server", "callers"]
    results.publish(options, {"results": data}, render_table(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
