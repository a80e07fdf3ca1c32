"""wrk, Debian's load generator, with one result for each run."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Load:
    """What one run of wrk found."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    requests: int
    failed: int


def run_wrk(
    url: str,
    body: Path,
    *,
    connections: int,
    seconds: float,
    content_type: str = "application/json",
    once: bool = False,
) -> Load:
    """Post a file's content for a while; with ``once`` the file holds many bodies, each to be sent once."""
    script = HERE / ("replay.lua" if once else "post.lua")
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds:g}s",
        "--timeout",
        "30s",
        "-s",
        str(script),
        url,
    ]
    environment = {**os.environ, "BODY_FILE": str(body), "CONTENT_TYPE": content_type}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    line = next((line for line in found.stdout.splitlines() if line.startswith("{")), None)
    if line is None:
        raise SystemExit(f"wrk at {url} said nothing: {found.stdout[-500:]} {found.stderr[-500:]}")
    result = json.loads(line)
    return Load(
        requests_per_s=result["requests"] / result["us"] * 1e6,
        p50_ms=result["p50_us"] / 1e3,
        p99_ms=result["p99_us"] / 1e3,
        max_ms=result["max_us"] / 1e3,
        requests=result["requests"],
        failed=result["bad_status"] + result["socket_errors"] + result["timeouts"],
    )
