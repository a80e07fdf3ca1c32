"""Speed and memory of sealing, beside the library's own decryptor.

    python benchmarks/bench_seal.py [--mib 1024] [--runs 7] [--memory-mib 2048] [--folder DIR] [--json]

Decrypting: one sealed payload into a given buffer, by ``Cobblestone256Decryptor.update_into`` with the whole
ciphertext in memory, and by Cloister from memory and through ``open_sealed(path).readinto``; for a buffer
that was used before, a fresh ``bytearray`` and a fresh ``numpy.empty``. The three take turns, each in every
position equally often; medians are reported, and the median of the per-round ratios to the library.

Memory: growth of the peak resident size while a file is sealed and while it is unsealed, each in a process of
its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.cobblestone import Cobblestone256Decryptor
from rich.console import Console
from rich.table import Table

from cloister.crypto.cobblestone import CHUNK_BYTES, CobblestoneReader
from cloister.crypto.keys import SecretKey
from cloister.seal import SigningKey, TrustedSigners, open_sealed, read_header, seal_file, unseal_file

KEY = SecretKey(bytes(range(32)))
MIB = 1 << 20


def seal(folder: Path, signer: SigningKey) -> None:
    """``folder/plain`` to ``folder/sealed``."""
    seal_file(
        folder / "plain",
        folder / "sealed",
        key=KEY,
        signer=signer,
        name="bench",
        version="1",
        sequence=1,
        kind="file",
        key_uri="kbs:///bench/dek/1",
    )


def write_plain(path: Path, size: int) -> None:
    """Random bytes, repeated every 16 MiB."""
    block = np.random.default_rng(1).bytes(min(size, 16 * MIB))
    with path.open("wb") as file:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])


def bench_decrypt(folder: Path, size: int, runs: int) -> list[dict[str, Any]]:
    """One row per kind of buffer and way of decrypting."""
    signer = SigningKey.generate()
    trusted = TrustedSigners([signer.public])
    write_plain(folder / "plain", size)
    seal(folder, signer)
    with (folder / "sealed").open("rb") as file:
        verified = read_header(file, trusted)
        file.seek(verified.stream_offset)
        message = file.read()
    first, last = _ends(folder / "plain")
    room = size + CHUNK_BYTES

    def library(buffer: Any) -> None:
        decryptor = Cobblestone256Decryptor(KEY.raw, verified.context)
        count = decryptor.update_into(message, buffer)
        tail = decryptor.finalize()
        memoryview(buffer)[count : count + len(tail)] = tail

    def from_memory(buffer: Any) -> None:
        CobblestoneReader(message, key=KEY.raw, context=verified.context).readinto(memoryview(buffer)[:size])

    def from_file(buffer: Any) -> None:
        with open_sealed(folder / "sealed", key=KEY, trusted=trusted) as sealed:
            sealed.readinto(memoryview(buffer)[:size])

    used = bytearray(b"\1" * room)
    buffers: dict[str, Callable[[], Any]] = {
        "used before": lambda: used,
        "fresh bytearray": lambda: bytearray(room),
        "fresh numpy.empty": lambda: np.empty(room, np.uint8),
    }
    ways: dict[str, Callable[[Any], None]] = {
        "library, memory": library,
        "cloister, memory": from_memory,
        "cloister, file": from_file,
    }
    rows = []
    for buffer_name, make in buffers.items():
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        order = list(ways)
        for _ in range(runs):
            for way in order:
                buffer = make()
                begin = time.perf_counter()
                ways[way](buffer)
                seconds[way].append(time.perf_counter() - begin)
                assert bytes(memoryview(buffer)[: len(first)]) == first
                assert bytes(memoryview(buffer)[size - len(last) : size]) == last
                del buffer
            order.append(order.pop(0))
        for way, taken in seconds.items():
            ratios = [base / own for base, own in zip(seconds["library, memory"], taken, strict=True)]
            rows.append(
                {
                    "buffer": buffer_name,
                    "way": way,
                    "gb_per_s": size / 1e9 / statistics.median(taken),
                    "ratio_to_library": statistics.median(ratios),
                    "ratios": ratios,
                }
            )
    return rows


def bench_memory(folder: Path, size: int) -> list[dict[str, Any]]:
    """Growth of the peak resident size of sealing and of unsealing, in fresh processes."""
    write_plain(folder / "plain", size)
    rows = []
    for step in ("seal", "unseal"):
        command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append({"step": step, "mib": size / MIB, **json.loads(done.stdout)})
    return rows


def run_step(step: str, folder: Path) -> dict[str, float]:
    """One step in this process: growth in MiB and seconds."""
    signer_path = folder / "signer.pem"
    if step == "seal":
        signer_path.unlink(missing_ok=True)
        SigningKey.generate().save(signer_path)
    signer = SigningKey.load(signer_path)
    before = peak_kib()
    begin = time.perf_counter()
    if step == "seal":
        seal(folder, signer)
    else:
        unseal_file(folder / "sealed", folder / "back", key=KEY, trusted=TrustedSigners([signer.public]))
    seconds = time.perf_counter() - begin
    return {"peak_growth_mib": (peak_kib() - before) / 1024, "seconds": seconds}


def peak_kib() -> int:
    """Peak resident size of this program; ``ru_maxrss`` would count that of the one that started it too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _ends(path: Path) -> tuple[bytes, bytes]:
    with path.open("rb") as file:
        first = file.read(4096)
        file.seek(-len(first), os.SEEK_END)
        return first, file.read()


def main() -> None:
    """Parse flags, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=1024, help="payload of the speed test; 0 leaves it out")
    parser.add_argument("--rounds", "--runs", dest="runs", type=int, default=7)
    parser.add_argument(
        "--memory-mib", type=int, default=2048, help="file of the memory test; 0 leaves it out"
    )
    parser.add_argument("--folder", type=Path, help="where to put the files (default: a temporary folder)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", choices=("seal", "unseal"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(run_step(arguments.step, arguments.folder)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        speed = bench_decrypt(Path(name), arguments.mib * MIB, arguments.runs) if arguments.mib else []
        memory = bench_memory(Path(name), arguments.memory_mib * MIB) if arguments.memory_mib else []
    if arguments.json:
        print(json.dumps({"decrypt": speed, "memory": memory}, indent=2))
        return
    console = Console()
    table = Table("buffer", "way", "GB/s", "ratio to library", title=f"Decrypting {arguments.mib} MiB")
    for row in speed:
        table.add_row(row["buffer"], row["way"], f"{row['gb_per_s']:.2f}", f"{row['ratio_to_library']:.2f}")
    if speed:
        console.print(table)
    table = Table("step", "MiB", "peak growth, MiB", "seconds", title="Memory")
    for row in memory:
        growth = f"{row['peak_growth_mib']:.1f}"
        table.add_row(row["step"], f"{row['mib']:.0f}", growth, f"{row['seconds']:.2f}")
    if memory:
        console.print(table)


if __name__ == "__main__":
    main()
