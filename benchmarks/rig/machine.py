"""Says what a figure was measured on: machine, versions, load before the run, and the command."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("cloister", "torch", "openvino", "nncf", "transformers", "numpy", "cryptography", "uvloop")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, kernel, versions, time, load of the last minute, command."""
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "load_before": round(os.getloadavg()[0], 2),
        "command": command_line(),
    }


def command_line() -> str:
    """How this script was called, with its path as a reader would type it."""
    script = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parents[2]
    shown = script.relative_to(root) if script.is_relative_to(root) else Path(script.name)
    return shlex.join(["python", str(shown), *(a for a in sys.argv[1:] if not a.startswith("/"))])


def render_machine(machine: dict[str, Any]) -> str:
    """One paragraph for people."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Linux "
        f"{machine['kernel']}, Python {machine['python']}, {versions}; {machine['date']}, load before "
        f"{machine['load_before']}. `{machine['command']}`"
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name", platform.machine())
    flags = fields.get("flags", "").split()
    found = [flag for flag in ("avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16") if flag in flags]
    return f"{name} ({', '.join(found)})" if found else name


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
