"""Which TCB level a platform reaches, by verified TCB info and QE identity.

dcap-qvl decides this for every quote that it accepts. It refuses trust domains for attributes that are a
matter of policy here (debug, SEPT_VE_DISABLE clear, migratable, service TDs), and then says nothing of their
level; for those this module does, by the same rules. A test holds the two against each other on every quote
that both judge.

Source: Intel SGX/TDX Provisioning Certification Service API, version 4, "Get TCB Info" and "Enclave
Identity"; Intel TDX DCAP Quote Verification Library, checks of TCB level, convergence and relaunch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloister.attest.dcap.pck import PckExtension
from cloister.errors import EndorsementMismatch, MalformedInput, TcbOutOfDate

_PLATFORM_STATUSES = frozenset(
    {
        "UpToDate",
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
        "Revoked",
    }
)
_MODULE_STATUSES = frozenset({"UpToDate", "OutOfDate", "Revoked"})
_QE_STATUSES = _PLATFORM_STATUSES - {"SWHardeningNeeded", "ConfigurationAndSWHardeningNeeded"}
_CONFIGURATION = frozenset({"ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"})
_OUT_OF_DATE = frozenset({"OutOfDate", "OutOfDateConfigurationNeeded"})


@dataclass(frozen=True, slots=True)
class TcbLevel:
    """One level: status, date and what is known to be wrong with it."""

    status: str
    date: str
    advisory_ids: tuple[str, ...]

    def converge(self, component: TcbLevel) -> TcbLevel:
        """This platform level, with the level of a component (TDX module, QE) taken into account."""
        status = self.status
        if component.status == "Revoked":
            status = "Revoked"
        elif component.status == "OutOfDate" and status in _CONFIGURATION:
            status = "OutOfDateConfigurationNeeded"
        elif component.status == "OutOfDate" and status in {"UpToDate", "SWHardeningNeeded"}:
            status = "OutOfDate"
        added = tuple(item for item in component.advisory_ids if item not in self.advisory_ids)
        return TcbLevel(status, self.date, self.advisory_ids + added)


@dataclass(frozen=True, slots=True)
class TdxModule:
    """What a TD report says of the TDX module that made it."""

    tee_tcb_svn: bytes
    """SVNs at launch: module SVN, module version, then components."""
    tee_tcb_svn2: bytes | None
    """The same now; TD 1.5 only."""
    mr_signer_seam: bytes
    seam_attributes: bytes


def evaluate_tcb(
    tcb_info: Mapping[str, Any],
    qe_identity: Mapping[str, Any],
    pck: PckExtension,
    qe_report: bytes,
    module: TdxModule | None,
) -> TcbLevel:
    """The platform's TCB level, converged with its quoting enclave's.

    1. The quoting enclave is the one that QE identity describes; its ISVSVN selects the QE's level.
    2. TCB info is of this TEE and family; CPU, PCE and TDX component SVNs select the platform's level.
    3. The TDX module is the one that TCB info describes; its SVN selects the module's level.
    4. Convergence; for TD 1.5, whether only the launch was out of date.

    Args:
        module: None for SGX.
    Raises:
        TcbOutOfDate: no level is reached, or the level is revoked.
        EndorsementMismatch: the collateral is of another TEE, family, QE or module.
        MalformedInput: the collateral lacks a field.
    """
    try:
        _check_qe(qe_identity, qe_report, "QE" if module is None else "TD_QE")
        qe = _select(_levels(qe_identity), struct.unpack_from("<H", qe_report, 258)[0], "quoting enclave")
        _expect_status(qe, _QE_STATUSES, "QE identity")
        _check_tcb_info(tcb_info, pck, "SGX" if module is None else "TDX")
        if module is None:
            level = _platform_level(tcb_info, pck, None).converge(qe)
            return _not_revoked(level)
        _check_module(tcb_info, module)
        level = _not_revoked(_tdx_level(tcb_info, pck, module.tee_tcb_svn).converge(qe))
        if module.tee_tcb_svn2 is None:
            return level
        current = _not_revoked(_tdx_level(tcb_info, pck, module.tee_tcb_svn2).converge(qe))
        return TcbLevel(_relaunch(level.status, current.status), level.date, level.advisory_ids)
    except (KeyError, TypeError, AttributeError, ValueError, struct.error) as error:
        raise MalformedInput(
            f"TCB info or QE identity lacks a field or has it in another form: {error}"
        ) from error


def _relaunch(launch: str, current: str) -> str:
    """A TD that was launched by an old module which has been updated since should be launched again."""
    if launch not in _OUT_OF_DATE or current in _OUT_OF_DATE or current == "Revoked":
        return launch
    if launch == "OutOfDateConfigurationNeeded" or current in _CONFIGURATION:
        return "TDRelaunchAdvisedConfigurationNeeded"
    return "TDRelaunchAdvised"


def _check_qe(identity: Mapping[str, Any], report: bytes, expected_id: str) -> None:
    _expect("QE identity", "id", expected_id, identity["id"])
    _expect("quoting enclave", "MRSIGNER", identity["mrsigner"].lower(), report[128:160].hex())
    _expect("quoting enclave", "ISVPRODID", identity["isvprodid"], struct.unpack_from("<H", report, 256)[0])
    _expect_masked("MISCSELECT", identity["miscselect"], identity["miscselectMask"], report[16:20])
    _expect_masked("ATTRIBUTES", identity["attributes"], identity["attributesMask"], report[48:64])
    if report[48] & 0x02:
        raise EndorsementMismatch("quoting enclave is in debug mode")


def _check_tcb_info(tcb_info: Mapping[str, Any], pck: PckExtension, expected_id: str) -> None:
    _expect("TCB info", "id", expected_id, tcb_info["id"])
    _expect("TCB info", "FMSPC", pck.fmspc.hex(), tcb_info["fmspc"].lower())
    _expect("TCB info", "PCEID", pck.pce_id.hex(), tcb_info["pceId"].lower())


def _check_module(tcb_info: Mapping[str, Any], module: TdxModule) -> None:
    identity = _module_identity(tcb_info, module.tee_tcb_svn) or tcb_info["tdxModule"]
    _expect("TDX module", "MRSIGNER", identity["mrsigner"].lower(), module.mr_signer_seam.hex())
    mask = bytes.fromhex(identity["attributesMask"])
    _expect_masked(
        "SEAMATTRIBUTES", identity["attributes"], identity["attributesMask"], module.seam_attributes
    )
    if any(own & ~kept & 0xFF for own, kept in zip(module.seam_attributes, mask, strict=True)):
        raise EndorsementMismatch("TDX module SEAMATTRIBUTES has bits outside the mask of TCB info")


def _tdx_level(tcb_info: Mapping[str, Any], pck: PckExtension, svn: bytes) -> TcbLevel:
    level = _platform_level(tcb_info, pck, svn)
    identity = _module_identity(tcb_info, svn)
    if identity is None:
        return level
    module = _select(_levels(identity), svn[0], "TDX module")
    _expect_status(module, _MODULE_STATUSES, "TDX module identity")
    converged = level.converge(module)
    return TcbLevel(converged.status, min(level.date, module.date), converged.advisory_ids)


def _platform_level(tcb_info: Mapping[str, Any], pck: PckExtension, tee_svn: bytes | None) -> TcbLevel:
    for entry in sorted(tcb_info["tcbLevels"], key=_descending, reverse=True):
        tcb = entry["tcb"]
        if pck.pce_svn < tcb["pcesvn"] or not _reaches(pck.cpu_svn, _components(tcb, "sgx")):
            continue
        # With a module version, bytes 0 and 1 are the module's own, judged by its identity.
        skip = 2 if tee_svn is not None and tee_svn[1] else 0
        if tee_svn is not None and not _reaches(tee_svn[skip:], _components(tcb, "tdx")[skip:]):
            continue
        level = _level(entry)
        _expect_status(level, _PLATFORM_STATUSES, "TCB info")
        return level
    raise TcbOutOfDate("platform reaches no TCB level that its vendor knows", hint="update its firmware")


def _descending(entry: Mapping[str, Any]) -> tuple[bytes, int, bytes]:
    tcb = entry["tcb"]
    tdx = _components(tcb, "tdx") if "tdxtcbcomponents" in tcb else b""
    return _components(tcb, "sgx"), tcb["pcesvn"], tdx


def _components(tcb: Mapping[str, Any], kind: str) -> bytes:
    svns = bytes(component["svn"] for component in tcb[f"{kind}tcbcomponents"])
    if len(svns) != 16:
        raise ValueError(f"{kind}tcbcomponents has {len(svns)} entries")
    return svns


def _reaches(own: Iterable[int], required: Sequence[int]) -> bool:
    return all(have >= need for have, need in zip(own, required, strict=True))


def _module_identity(tcb_info: Mapping[str, Any], svn: bytes) -> Mapping[str, Any] | None:
    if svn[1] == 0:
        return None
    wanted = f"TDX_{svn[1]:02X}"
    for identity in tcb_info["tdxModuleIdentities"]:
        if identity["id"].upper() == wanted:
            found: Mapping[str, Any] = identity
            return found
    raise EndorsementMismatch(f"TCB info does not know the TDX module {wanted}")


def _levels(document: Mapping[str, Any]) -> list[tuple[int, TcbLevel]]:
    return [(entry["tcb"]["isvsvn"], _level(entry)) for entry in document["tcbLevels"]]


def _select(levels: list[tuple[int, TcbLevel]], svn: int, what: str) -> TcbLevel:
    for required, level in levels:
        if svn >= required:
            return level
    lowest = levels[-1][0] if levels else "any"
    raise TcbOutOfDate(f"{what} has SVN {svn}, the lowest known level needs {lowest}")


def _level(entry: Mapping[str, Any]) -> TcbLevel:
    return TcbLevel(entry["tcbStatus"], entry["tcbDate"], tuple(entry.get("advisoryIDs", ())))


def _not_revoked(level: TcbLevel) -> TcbLevel:
    if level.status == "Revoked":
        raise TcbOutOfDate(f"platform's TCB level of {level.date} has been revoked by its vendor")
    return level


def _expect_status(level: TcbLevel, known: frozenset[str], what: str) -> None:
    if level.status not in known:
        raise MalformedInput(f"{what} has the unknown TCB status {level.status!r}")


def _expect(what: str, field: str, expected: object, found: object) -> None:
    if expected != found:
        raise EndorsementMismatch(f"{what}: {field} expected {expected}, found {found}")


def _expect_masked(field: str, expected: str, mask: str, found: bytes) -> None:
    wanted, kept = bytes.fromhex(expected), bytes.fromhex(mask)
    if field == "MISCSELECT":  # written as an integer in TCB info, stored little-endian in the report
        wanted, kept = wanted[::-1], kept[::-1]
    pairs = zip(wanted, kept, found, strict=True)
    if any((want ^ have) & keep for want, keep, have in pairs):
        raise EndorsementMismatch(f"{field} expected {expected} under mask {mask}, found {found.hex()}")
