"""AMD's endorsements as one value: the certificates of one endorsement key, and the root's CRL.

============== ===================================================================================
member         content
============== ===================================================================================
``vcek``       certificate of the chip's key
``vlek``       certificate of the cloud provider's key, where the report was signed with that
``ask``        certificate of the authority that issues VCEKs; absent: AMD's own, which is built in
``asvk``       certificate of the authority that issues VLEKs; absent: AMD's own, which is built in
``ark``        the root's certificate; absent: AMD's own. It is compared with the trusted root, never trusted
``crl``        the root's revocation list; absent: only what AMD had revoked when this was written is refused
============== ===================================================================================

In JSON a value is PEM, or base64 or hexadecimal of DER (or base64 of PEM). A PEM text may hold several
certificates; each is put where its subject's common name says. These names and forms are understood too:

=========================== ======================================================================
name                        form
=========================== ======================================================================
``cert_chain``              PEM with several certificates (as AMD's KDS answers), a list of texts, or
                            Trustee's list of ``{"cert_type": "VCEK", "data": [48, 130, ...]}``
``vcekCert``,               the answer of Azure's host to a guest (``tcbm`` and ``cacheControl`` beside
``certificateChain``        them are left alone)
``ek``                      VCEK or VLEK
``auxblob``                 the certificate table of an extended report (``cloister.attest.snp.table``)
=========================== ======================================================================

Letter case, hyphens, underscores and a last ``cert``, ``pem`` or ``der`` in names do not matter. An unknown
name is an error.

Source: AMD 57230 (VCEK Certificate and KDS Interface) revision 1.00, chapter 4.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from cloister.attest.snp.certificate import load_certificate
from cloister.attest.snp.table import parse_table
from cloister.errors import MalformedInput

MAX_TEXT_CHARACTERS = 512 * 1024
MAX_ITEMS = 16
_NAMES: dict[str, str | None] = {
    "vcek": "vcek",
    "vlek": "vlek",
    "ask": "ask",
    "asvk": "asvk",
    "ark": "ark",
    "crl": "crl",
    "ek": None,
    "chain": None,
    "certchain": None,
    "certificatechain": None,
}
_SUFFIXES = re.compile("(cert|certificate|pem|der)$")
_TABLE_NAMES = {"auxblob", "certtable"}
_IGNORED = {"tcbm", "cachecontrol"}
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,40})-----([^-]*)-----END \1-----")
_SUBJECTS = (
    ("SEV-VCEK", "vcek"),
    ("SEV-VLEK-", "asvk"),
    ("SEV-VLEK", "vlek"),
    ("SEV-", "ask"),
    ("ARK-", "ark"),
)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SnpEndorsements:
    """What AMD (or a simulated AMD) says of one processor or provider; every member is DER or None."""

    vcek: bytes | None = None
    vlek: bytes | None = None
    ask: bytes | None = None
    asvk: bytes | None = None
    ark: bytes | None = None
    crl: bytes | None = None

    def __repr__(self) -> str:
        return f"SnpEndorsements({', '.join(self.to_mapping()) or 'empty'})"

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Endorsements from their JSON form; see the module's tables.

        Raises:
            MalformedInput: an unknown member, one that cannot be read, or two different ones of a kind.
        """
        if not isinstance(mapping, Mapping):
            raise MalformedInput("SEV-SNP endorsements are not a JSON object")
        found = _Found()
        for key, value in mapping.items():
            name = _SUFFIXES.sub("", re.sub("[-_]", "", str(key).lower()))
            if value is None or name in _IGNORED:
                continue
            if name in _TABLE_NAMES:
                for blob in _blobs(value, str(key)):
                    found.add_table(parse_table(blob))
            elif name in _NAMES:
                found.add_all(value, _NAMES[name], str(key))
            else:
                raise MalformedInput(
                    f"SEV-SNP endorsements: unknown member {str(key)[:40]!r},"
                    f" known are {', '.join(item.name for item in fields(cls))}"
                )
        return cls(**found.members)

    def to_mapping(self) -> dict[str, Any]:
        """JSON form, as ``from_mapping`` takes it: base64 of DER."""
        return {
            item.name: base64.b64encode(value).decode("ascii")
            for item in fields(self)
            if (value := getattr(self, item.name)) is not None
        }

    def completed_by(self, table: Mapping[str, bytes]) -> Self:
        """These endorsements, and from a report's certificate table what they lack."""
        if not table:
            return self
        found = _Found()
        found.add_table(table)
        lacking = {name: der for name, der in found.members.items() if getattr(self, name) is None}
        return replace(self, **lacking)


class _Found:
    """Collects certificates and puts each where it belongs."""

    def __init__(self) -> None:
        self.members: dict[str, bytes] = {}

    def add_all(self, value: Any, kind: str | None, what: str) -> None:
        """A value of JSON, of whatever form."""
        if isinstance(value, list) and not _is_octets(value):
            if len(value) > MAX_ITEMS:
                raise MalformedInput(f"SEV-SNP endorsements: {what} has more than {MAX_ITEMS} members")
            for item in value:
                if isinstance(item, Mapping):
                    self._add_typed(item, what)
                else:
                    self._add_blobs(item, kind, what)
            return
        self._add_blobs(value, kind, what)

    def add_table(self, table: Mapping[str, bytes]) -> None:
        """What ``parse_table`` found."""
        for kind, content in table.items():
            self._add_blobs(content, kind, kind)

    def _add_blobs(self, value: Any, kind: str | None, what: str) -> None:
        for blob in _blobs(value, what):
            self._add(blob, kind)

    def _add(self, der: bytes, kind: str | None) -> None:
        """One certificate or CRL; ``kind`` is believed where the certificate's own name says nothing."""
        if kind != "crl":
            name = load_certificate(der, "certificate of SEV-SNP endorsements").name
            kind = next((own for prefix, own in _SUBJECTS if name.startswith(prefix)), kind)
        if kind is None:
            raise MalformedInput("SEV-SNP endorsements: a certificate is neither VCEK, VLEK, ASK nor ARK")
        if self.members.setdefault(kind, der) != der:
            raise MalformedInput(f"SEV-SNP endorsements: two different certificates for {kind}")

    def _add_typed(self, item: Mapping[str, Any], what: str) -> None:
        """Trustee's ``{"cert_type", "data"}``; a type that it calls ``OTHER`` is left alone."""
        kind, data = item.get("cert_type"), item.get("data")
        if not isinstance(kind, str) or kind.lower() == "empty":
            return
        self._add_blobs(data, _NAMES.get(kind.lower()), f"{what} {kind[:10]}")


def _blobs(value: Any, what: str) -> Iterable[bytes]:
    """DER of everything in a value: bytes, numbers, PEM, base64 or hexadecimal."""
    if isinstance(value, list) and _is_octets(value):
        value = bytes(value)
    if isinstance(value, bytes | bytearray):
        if not bytes(value).lstrip().startswith(b"-----BEGIN "):
            return [bytes(value)]
        value = bytes(value).rstrip(b"\x00").decode("ascii", errors="replace")
    if not isinstance(value, str) or len(value) > MAX_TEXT_CHARACTERS:
        raise MalformedInput(f"SEV-SNP endorsements: {what} is not PEM, base64 or hexadecimal")
    if "-----BEGIN " in value:
        return _pem_blobs(value, what)
    der = _unbase(value, what)
    return _blobs(der, what) if der.lstrip().startswith(b"-----BEGIN ") else [der]


def _pem_blobs(text: str, what: str) -> list[bytes]:
    blocks = _PEM.findall(text)
    if not blocks or len(blocks) > MAX_ITEMS or len(blocks) != text.count("-----BEGIN "):
        raise MalformedInput(f"SEV-SNP endorsements: {what} is not PEM of 1 to {MAX_ITEMS} certificates")
    return [_unbase(body, what) for _, body in blocks]


def _unbase(text: str, what: str) -> bytes:
    """Base64 or hexadecimal. DER begins with 0x30 0x82, so its base64 begins with ``M`` and is never hex."""
    packed = "".join(text.split())
    try:
        if re.fullmatch("[0-9a-fA-F]+", packed) and len(packed) % 2 == 0:
            return bytes.fromhex(packed)
        return base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedInput(f"SEV-SNP endorsements: {what} is not PEM, base64 or hexadecimal") from error


def _is_octets(value: list[Any]) -> bool:
    return bool(value) and all(type(item) is int and 0 <= item <= 0xFF for item in value)
