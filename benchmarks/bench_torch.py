"""Time and peak memory of sealed checkpoints, beside torch.save and torch.load.

    python benchmarks/bench_torch.py [--mib 100] [--tensor-mib 4] [--runs 9] [--folder DIR] [--json]

One state dict of float32 tensors. Each run of each way is a process of its own, after the file has been read
once (so that it is in the page cache), and the ways take turns; medians are reported. The key comes from
memory: what a broker or a cache takes for it does not depend on the size of the checkpoint. Memory is the
growth of the peak resident size during the call.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import cloister.torch
from cloister.crypto.keys import SecretKey
from cloister.seal.signing import SigningKey, TrustedSigners

KEY = SecretKey(bytes(range(32)))
URI = "kbs:///bench/dek/1"
MIB = 1 << 20
WAYS = ("torch.load", "torch.load, mmap", "cloister.torch.load", "torch.save", "cloister.torch.save")


class Keys:
    """The benchmark's key."""

    def get_resource(self, uri: str) -> bytes:
        return KEY.raw


def checkpoint(size: int, tensor: int) -> dict[str, torch.Tensor]:
    """Tensors of ``tensor`` bytes that make ``size`` together."""
    return {f"layer{n}.weight": torch.randn(tensor // 4) for n in range(max(1, size // tensor))}


def run_way(way: str, folder: Path, size: int, tensor: int) -> dict[str, float]:
    """One way in this process: seconds, and growth of the peak in MiB."""
    signer = SigningKey.load(folder / "signer.pem")
    trusted = TrustedSigners([signer.public])
    plain, sealed = folder / "plain.pt", folder / "net.sealed"
    state = checkpoint(size, tensor) if way.endswith("save") else {}
    ways: dict[str, Callable[[], Any]] = {
        "torch.load": lambda: torch.load(plain, weights_only=True),
        "torch.load, mmap": lambda: touch(torch.load(plain, weights_only=True, mmap=True)),
        "cloister.torch.load": lambda: cloister.torch.load(sealed, keys=Keys(), trusted=trusted),
        "torch.save": lambda: torch.save(state, folder / "again.pt"),
        "cloister.torch.save": lambda: cloister.torch.save(
            state, folder / "again.sealed", URI, signer=signer, dek=KEY
        ),
    }
    warm_up(folder, signer)
    before = peak_kib()
    begin = time.perf_counter()
    kept = ways[way]()
    seconds = time.perf_counter() - begin
    del kept
    return {"seconds": seconds, "peak_growth_mib": (peak_kib() - before) / 1024}


def touch(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Read every page: a mapped checkpoint is not loaded before that."""
    for tensor in state.values():
        tensor[::1024].sum()
    return state


def warm_up(folder: Path, signer: SigningKey) -> None:
    """Everything once with a small checkpoint, so that imports and first calls are not measured."""
    small = {"w": torch.ones(8)}
    torch.save(small, folder / "small.pt")
    torch.load(folder / "small.pt", weights_only=True)
    cloister.torch.save(small, folder / "small.sealed", URI, signer=signer, dek=KEY)
    cloister.torch.load(folder / "small.sealed", keys=Keys(), trusted=TrustedSigners([signer.public]))


def peak_kib() -> int:
    """Peak resident size of this program."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def bench(folder: Path, size: int, tensor: int, runs: int) -> list[dict[str, Any]]:
    """One row per way."""
    signer = SigningKey.generate()
    signer.save(folder / "signer.pem")
    state = checkpoint(size, tensor)
    torch.save(state, folder / "plain.pt")
    cloister.torch.save(state, folder / "net.sealed", URI, signer=signer, dek=KEY)
    for name in ("plain.pt", "net.sealed"):
        (folder / name).read_bytes()
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    order = list(WAYS)
    for _ in range(runs):
        for way in order:
            command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
            command += ["--mib", str(size / MIB), "--tensor-mib", str(tensor / MIB)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            taken[way].append(json.loads(done.stdout))
        order.append(order.pop(0))
    return [
        {"way": way, **{name: statistics.median(row[name] for row in rows) for name in rows[0]}}
        for way, rows in taken.items()
    ]


def main() -> None:
    """Parse flags, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=float, default=100)
    parser.add_argument("--tensor-mib", type=float, default=4)
    parser.add_argument("--rounds", "--runs", dest="runs", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where to put the files (default: a temporary folder)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size, tensor = int(arguments.mib * MIB), int(arguments.tensor_mib * MIB)
    if arguments.way:
        print(json.dumps(run_way(arguments.way, arguments.folder, size, tensor)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        rows = bench(Path(name), size, tensor, arguments.runs)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("way", "ms", "peak growth, MiB", title=f"A checkpoint of {arguments.mib:g} MiB")
    for row in rows:
        table.add_row(row["way"], f"{row['seconds'] * 1e3:.0f}", f"{row['peak_growth_mib']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
