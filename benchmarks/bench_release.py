"""What a key release costs: challenge, attestation with a simulated TDX quote, resource, over loopback HTTPS.

Usage: python benchmarks/bench_release.py [--json] [--releases 4000] [--concurrency 8] [--rate 150]
                                          [--database URL]

A broker process as `cloister keys serve` starts it (SQLite with full synchronisation unless a database is
named), and as many client processes as `--concurrency`, each with one kept connection. Every release has a
nonce, TEE key and quote of its own, and ends with the key decrypted. Two runs:

- *closed*: every client begins the next release when the last one ends. Says how many the machine does; how
  long each takes is then concurrency divided by that.
- *paced*: releases arrive at `--rate` per second, at random, for `--concurrency` clients. How long each
  takes is counted from its arrival, time in the queue included.

The clients' own work (key, quote, decryption) happens on the same cores and is part of every figure.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import itertools
import json
import multiprocessing
import os
import queue
import random
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest.binding import report_data_for
from cloister.attest.simulated import SimulatedPlatform
from cloister.attest.verifier import verify_evidence
from cloister.crypto.jwe import TeePrivateKey, TeePublicKey
from cloister.kbs.client import BrokerAdmin
from cloister.policy.cedar import UNSAFE_SIMULATED_POLICY, shipped

MR_TD, MR_CONFIG_ID = bytes([0x11]) * 48, bytes([0x22]) * 48
KEY_URI, SECRET = "kbs:///bench/key/one", bytes(range(32))
STEPS = ("auth", "attest", "resource")
WARM_RELEASES = 20
BROKER = """
import sys
from cloister.kbs.server import run_broker
from cloister.settings import load_settings
flags = {"keys." + name: value for name, value in zip(sys.argv[1::2], sys.argv[2::2])}
run_broker(load_settings(flags=flags).keys)
"""


@dataclass
class Broker:
    """A broker in a process of its own."""

    folder: Path
    platform: SimulatedPlatform
    database: str = ""
    url: str = ""
    ca: Path = Path()
    process: subprocess.Popen[str] = field(init=False)

    def __enter__(self) -> Broker:
        files = {
            "reference_values": (
                f'allow_simulated = true\n[tdx]\nmr_td = ["{MR_TD.hex()}"]\n'
                f'mr_config_id = ["{MR_CONFIG_ID.hex()}"]\n'
            ).encode(),
            "policy": shipped(UNSAFE_SIMULATED_POLICY).encode(),
            "collateral": msgspec.json.encode(self.platform.endorsements(datetime.now(UTC)).to_mapping()),
            "simulated_root": self.platform.root.public_bytes(Encoding.PEM),
        }
        arguments = ["folder", str(self.folder / "keys"), "port", "0", "rate_limit", "100000"]
        for name, content in files.items():
            (self.folder / name).write_bytes(content)
            arguments += [name, str(self.folder / name)]
        if self.database:
            arguments += ["database", self.database]
        command = [sys.executable, "-c", BROKER, *arguments]
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, text=True)
        while not self.url:
            time.sleep(0.05)
            for line in (self.folder / "log").read_text().splitlines():
                if line.startswith("{") and (event := json.loads(line))["event"] == "listening":
                    self.url, self.ca = event["url"], Path(event["certificate"])
            if self.process.poll() is not None:
                raise SystemExit((self.folder / "log").read_text())
        with BrokerAdmin(self.url, token=(self.folder / "keys/admin.token").read_text(), ca=self.ca) as admin:
            admin.put_resource(KEY_URI, SECRET)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


class Wire:
    """HTTP/1.1 on one kept TLS connection; no more of it than the load needs."""

    def __init__(self, url: str, ca: Path) -> None:
        host, _, port = url.removeprefix("https://").rpartition(":")
        context = ssl.create_default_context(cafile=str(ca))
        plain = socket.create_connection((host, int(port)))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(plain, server_hostname=host)
        self._host = f"{host}:{port}"
        self._cookie = ""
        self._received = b""

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """One exchange that has to succeed."""
        cookie = f"Cookie: {self._cookie}\r\n" if self._cookie else ""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n{cookie}Content-Length: {len(body)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + body)
        head_bytes, _, rest = self._until(b"\r\n\r\n")
        status, *lines = head_bytes.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if "set-cookie" in headers:
            self._cookie = headers["set-cookie"].partition(";")[0]
        length = int(headers["content-length"])
        while len(rest) < length:
            rest += self._more()
        self._received = rest[length:]
        if " 200 " not in status:
            raise SystemExit(f"{status}: {rest!r}")
        return rest[:length]

    def _until(self, mark: bytes) -> tuple[bytes, bytes, bytes]:
        while mark not in self._received:
            self._received += self._more()
        return self._received.partition(mark)

    def _more(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise SystemExit("the broker closed the connection")
        return data


def release(wire: Wire, platform: SimulatedPlatform) -> list[float]:
    """One full release; the moments before the first step and after each."""
    moments = [time.perf_counter()]
    request = {"version": "0.4.0", "tee": "tdx", "extra-params": ""}
    nonce = json.loads(wire.request("POST", "/kbs/v0/auth", msgspec.json.encode(request)))["nonce"]
    moments.append(time.perf_counter())
    key = TeePrivateKey.generate()
    public = TeePublicKey.from_jwk(key.public_jwk).jwk
    runtime = {"additional-evidence": "", "nonce": nonce, "tee-pubkey": public}
    quote = platform.quote(report_data_for(runtime), mr_td=MR_TD, mr_config_id=MR_CONFIG_ID)
    evidence = {"cc_eventlog": None, "quote": base64.b64encode(quote).decode()}
    attestation = {
        "runtime-data": {"nonce": nonce, "tee-pubkey": public},
        "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
    }
    wire.request("POST", "/kbs/v0/attest", msgspec.json.encode(attestation))
    moments.append(time.perf_counter())
    answer = wire.request("GET", "/kbs/v0/resource/" + KEY_URI.removeprefix("kbs:///"))
    if key.decrypt(msgspec.json.decode(answer)) != SECRET:
        raise SystemExit("another key than the one that was stored")
    moments.append(time.perf_counter())
    return moments


def client(options: dict[str, Any], number: int, barrier: Any, results: Any) -> None:
    """One client process: warms up, waits for the others, then asks for its share."""
    platform = SimulatedPlatform.load(Path(options["platform"]))
    wire = Wire(options["url"], Path(options["ca"]))
    for _ in range(WARM_RELEASES):
        release(wire, platform)
    random.seed(number)
    barrier.wait()
    began, worked = time.perf_counter(), time.process_time()
    due = began
    rows = []
    for _ in range(options["each"]):
        if options["rate"]:
            due += random.expovariate(options["rate"])
            time.sleep(max(0.0, due - time.perf_counter()))
        moments = release(wire, platform)
        rows.append([moments[-1] - (due if options["rate"] else moments[0]), *_gaps(moments)])
    results.put((began, time.perf_counter(), time.process_time() - worked, rows))


def run(broker: Broker, concurrency: int, releases: int, rate: float) -> dict[str, Any]:
    """One run; `rate` 0 is the closed one."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(concurrency), context.Queue()
    options = {
        "platform": str(broker.folder / "platform"),
        "url": broker.url,
        "ca": str(broker.ca),
        "each": releases // concurrency,
        "rate": rate / concurrency,
    }
    clients = [
        context.Process(target=client, args=(options, number, barrier, results))
        for number in range(concurrency)
    ]
    for process in clients:
        process.start()
    used = _cpu_s(broker.process.pid)
    done = [_result(results, clients) for _ in clients]
    used = _cpu_s(broker.process.pid) - used
    for process in clients:
        process.join()
    rows = [row for *_, client_rows in done for row in client_rows]
    took = max(end for _, end, *_ in done) - min(start for start, *_ in done)
    total = sorted(row[0] * 1e3 for row in rows)
    warm = WARM_RELEASES * concurrency
    return {
        "releases": len(rows),
        "releases_per_s": len(rows) / took,
        "p50_ms": statistics.median(total),
        "p99_ms": total[int(len(total) * 0.99)],
        "broker_cpu_ms": used * 1e3 / (len(rows) + warm),
        "client_cpu_ms": sum(worked for _, _, worked, _ in done) * 1e3 / len(rows),
        "steps_p50_ms": {
            step: statistics.median(row[number] for row in rows) * 1e3 for number, step in enumerate(STEPS, 1)
        },
    }


def verification_ms(platform: SimulatedPlatform) -> float:
    """The verification of one quote alone: median."""
    now = datetime.now(UTC)
    endorsements = platform.endorsements(now)
    times = []
    for number in range(300):
        quote = platform.quote(number.to_bytes(64, "big"), mr_td=MR_TD, mr_config_id=MR_CONFIG_ID)
        began = time.perf_counter()
        verify_evidence("tdx", quote, endorsements, now, roots=[platform.root])
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--releases", type=int, default=4000)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--rate", type=float, default=150.0)
    parser.add_argument("--database", default="", help="SQLAlchemy URL instead of SQLite")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        platform = SimulatedPlatform.create(Path(folder) / "platform", datetime.now(UTC))
        with Broker(Path(folder), platform, options.database) as broker:
            closed = run(broker, options.concurrency, options.releases, 0)
            paced = run(broker, options.concurrency, options.releases, options.rate)
    results: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "concurrency": options.concurrency,
        "closed": closed,
        "paced": paced,
        "verification_p50_ms": verification_ms(platform),
    }
    if options.json:
        json.dump(results, sys.stdout, indent=2)
        return
    print(f"{options.concurrency} clients, {results['cores']} cores")
    print(
        f"{'':20}{'releases/s':>11}{'p50':>9}{'p99':>9}   auth, attest, resource (p50)   CPU broker, clients"
    )
    for name, title in (("closed", "closed"), ("paced", f"paced at {options.rate:g}/s")):
        row = results[name]
        steps = ", ".join(f"{row['steps_p50_ms'][step]:5.1f}" for step in STEPS)
        print(
            f"{title:20}{row['releases_per_s']:11.0f}{row['p50_ms']:6.1f} ms{row['p99_ms']:6.1f} ms"
            f"   {steps} ms           {row['broker_cpu_ms']:5.2f}, {row['client_cpu_ms']:5.2f} ms"
        )
    print(f"verification of one quote alone: {results['verification_p50_ms']:.2f} ms")


def _result(results: Any, clients: list[Any]) -> Any:
    while True:
        with contextlib.suppress(queue.Empty):
            return results.get(timeout=1)
        if any(process.exitcode for process in clients):
            for process in clients:
                process.terminate()
            raise SystemExit("a client failed")


def _gaps(moments: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(moments)]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
