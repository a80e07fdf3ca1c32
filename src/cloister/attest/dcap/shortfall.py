"""How far a platform is behind: which security versions the newest good TCB level needs, and which it has.

Only words for people and logs: the TCB level itself is decided elsewhere. Called for platforms that are not
up to date, with collateral that has been verified.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cloister.attest.dcap.pck import PckExtension
from cloister.attest.dcap.tcb import TdxModule

_BEST = ("UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded")
_QE_ISVSVN_OFFSET = 258


def describe_shortfall(
    tcb_info: Mapping[str, Any],
    qe_identity: Mapping[str, Any],
    pck: PckExtension,
    qe_report: bytes,
    module: TdxModule | None,
) -> tuple[str, ...]:
    """Every security version below the newest good level, as ``TDX module SVN 6, needs 11``.

    Empty where no version is behind: the platform's configuration or software is what needs attention then.
    """
    try:
        return tuple(_behind(tcb_info, qe_identity, pck, qe_report, module))
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, struct.error):
        return ()  # decoration only: collateral of an unknown form has been refused elsewhere


def _behind(
    tcb_info: Mapping[str, Any],
    qe_identity: Mapping[str, Any],
    pck: PckExtension,
    qe_report: bytes,
    module: TdxModule | None,
) -> Iterator[str]:
    best = _best(tcb_info["tcbLevels"])
    tcb = best["tcb"]
    yield from _components("SGX component", pck.cpu_svn, tcb["sgxtcbcomponents"])
    if pck.pce_svn < tcb["pcesvn"]:
        yield f"PCE SVN {pck.pce_svn}, needs {tcb['pcesvn']}"
    if module is not None:
        yield from _module(tcb_info, tcb, module)
    yield from _isvsvn(
        "quoting enclave", struct.unpack_from("<H", qe_report, _QE_ISVSVN_OFFSET)[0], qe_identity
    )


def _module(tcb_info: Mapping[str, Any], tcb: Mapping[str, Any], module: TdxModule) -> Iterator[str]:
    svn = module.tee_tcb_svn
    skip = 0
    if svn[1]:
        skip = 2
        wanted = f"TDX_{svn[1]:02X}"
        for identity in tcb_info["tdxModuleIdentities"]:
            if identity["id"].upper() == wanted:
                yield from _isvsvn("TDX module", svn[0], identity)
    yield from _components("TDX component", svn, tcb["tdxtcbcomponents"], skip)


def _components(what: str, own: bytes, required: Sequence[Mapping[str, Any]], skip: int = 0) -> Iterator[str]:
    for index, (have, need) in enumerate(zip(own, required, strict=True)):
        if index >= skip and have < need["svn"]:
            kind = need.get("type") or need.get("category")
            name = f"{what} {index + 1} ({kind})" if kind else f"{what} {index + 1}"
            yield f"{name} SVN {have}, needs {need['svn']}"


def _isvsvn(what: str, have: int, document: Mapping[str, Any]) -> Iterator[str]:
    need = _best(document["tcbLevels"])["tcb"]["isvsvn"]
    if have < need:
        yield f"{what} SVN {have}, needs {need}"


def _best(levels: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The newest level among those of the best status that there is."""
    for status in _BEST:
        candidates = [level for level in levels if level["tcbStatus"] == status]
        if candidates:
            return max(candidates, key=lambda level: str(level["tcbDate"]))
    return levels[0]
