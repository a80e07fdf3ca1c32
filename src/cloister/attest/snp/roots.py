"""AMD's root keys (ARK), one per product line, and the signing keys (ASK, ASVK) below them.

The certificates are files beside this module, as AMD's Key Distribution Service hands them out. What is
pinned is the roots' keys, by the SHA-256 of their SubjectPublicKeyInfo: a file that holds another key is not
a root. The signing keys are here so that evidence with nothing but its VCEK can be verified offline.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

from cryptography import x509

from cloister.attest.snp.certificate import spki
from cloister.attest.snp.tcb import PRODUCTS
from cloister.errors import ConfigError

AMD_ROOT_SPKI_SHA256 = {
    "Milan": "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9",
    "Genoa": "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831",
    "Turin": "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08",
}
AMD_REVOKED = frozenset({("Genoa", 0x20001)})
"""Product line and serial number of signing keys that AMD has revoked: known without its CRL."""
_AUTHORITY_PREFIX = {"vcek": "SEV", "vlek": "SEV-VLEK"}
_AUTHORITY_FILE = {"vcek": "ask", "vlek": "asvk"}


@cache
def amd_roots() -> tuple[x509.Certificate, ...]:
    """AMD's root of each product line.

    Raises:
        ConfigError: this installation was changed.
    """
    roots = tuple(_load(f"ark_{product.lower()}.pem") for product in PRODUCTS)
    for product, root in zip(PRODUCTS, roots, strict=True):
        if hashlib.sha256(spki(root)).hexdigest() != AMD_ROOT_SPKI_SHA256[product]:
            raise ConfigError(f"the certificate of AMD's root for {product} does not hold the pinned key")
    return roots


@cache
def amd_authority(product: str, kind: str) -> x509.Certificate:
    """The ASK (``vcek``) or ASVK (``vlek``) of a product line."""
    return _load(f"{_AUTHORITY_FILE[kind]}_{product.lower()}.pem")


def authority_name(product: str, kind: str) -> str:
    """Common name of the key that issues VCEKs or VLEKs."""
    return f"{_AUTHORITY_PREFIX[kind]}-{product}"


def root_name(product: str) -> str:
    """Common name of the root."""
    return f"ARK-{product}"


def is_amd_root(root: x509.Certificate) -> bool:
    """Whether this certificate holds one of AMD's keys; a chain that ends in any other root is simulated."""
    return hashlib.sha256(spki(root)).hexdigest() in AMD_ROOT_SPKI_SHA256.values()


def _load(name: str) -> x509.Certificate:
    file = resources.files("cloister.attest.snp") / "certificates" / name
    return x509.load_pem_x509_certificate(file.read_bytes())
