"""What verifying evidence costs, beside the quote library alone: medians with cached collateral.

Usage: python benchmarks/bench_attest.py [--json] [--runs 400] [--vectors ../shared/vectors]

The simulated platform's TDX quote is always measured; genuine quotes too where the vectors are there.
Cloister and dcap-qvl (its quicker form, ``verify_with_root_ca``) take turns, call by call.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dcap_qvl
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest import verify_evidence
from cloister.attest.dcap import DcapEndorsements
from cloister.attest.dcap.roots import intel_roots
from cloister.attest.simulated import SimulatedPlatform

GENUINE = {
    "genuine TDX v4": "tdx_v4_90c06f000000_UpToDate_8ea48ded_eval18_2026-03-16.json",
    "genuine TDX v5": "tdx_v5_90c06f000000_UpToDate_cf77a6e9_eval18_2026-03-16.json",
    "genuine SGX v3": "sgx_v3_00606a000000_SWHardeningNeeded_268c0681_eval17_2025-08-15.json",
}


def compare(ours: Callable[[], object], theirs: Callable[[], object], runs: int) -> dict[str, float]:
    """Median milliseconds of each, and the ratio of the medians; the two alternate."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for act, measured in zip((ours, theirs), times, strict=True):
            began = time.perf_counter()
            act()
            measured.append(time.perf_counter() - began)
    mine, library = (statistics.median(measured) * 1e3 for measured in times)
    return {"cloister_ms": mine, "dcap_qvl_ms": library, "ratio": mine / library}


def case(
    scheme: str, quote: bytes, mapping: dict[str, Any], now: datetime, root: Any, roots: list[Any] | None
) -> tuple[Callable[[], object], Callable[[], object]]:
    """One verification by each side."""
    endorsements = DcapEndorsements.from_mapping(mapping)
    collateral = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(mapping))
    der = root.public_bytes(Encoding.DER)
    seconds = int(now.timestamp())
    return (
        lambda: verify_evidence(scheme, quote, endorsements, now, roots=roots),
        lambda: dcap_qvl.verify_with_root_ca(quote, collateral, der, seconds),
    )


def cases(vectors: Path) -> Iterator[tuple[str, Callable[[], object], Callable[[], object]]]:
    """Every measured case: name, Cloister, library."""
    now = datetime.now(UTC)
    with tempfile.TemporaryDirectory() as folder:
        platform = SimulatedPlatform.create(Path(folder) / "platform", now)
    quote = platform.quote(bytes(64), mr_td=bytes(48), mr_config_id=bytes(48))
    mapping = platform.endorsements(now).to_mapping()
    yield ("simulated TDX v4", *case("tdx", quote, mapping, now, platform.root, [platform.root]))
    for name, file in GENUINE.items():
        path = vectors / "dcap-cases" / "dev" / file
        if not path.exists():
            continue
        document = json.loads(path.read_text())
        when = datetime.fromtimestamp(document["verification_time"], UTC)
        raw = (vectors / document["quote"]).read_bytes()
        scheme = "sgx" if "SGX" in name else "tdx"
        yield (name, *case(scheme, raw, document["collateral"], when, intel_roots()[0], None))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", "--runs", dest="runs", type=int, default=400)
    parser.add_argument("--vectors", type=Path, default=Path(__file__).parents[2] / "shared" / "vectors")
    options = parser.parse_args()
    results = {name: compare(ours, theirs, options.runs) for name, ours, theirs in cases(options.vectors)}
    if options.json:
        json.dump(results, sys.stdout, indent=2)
        return
    print(f"{'evidence':18} {'cloister':>10} {'dcap-qvl':>10} {'ratio':>7}")
    for name, row in results.items():
        print(f"{name:18} {row['cloister_ms']:7.2f} ms {row['dcap_qvl_ms']:7.2f} ms {row['ratio']:7.2f}")


if __name__ == "__main__":
    main()
