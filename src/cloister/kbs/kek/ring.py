"""The table of providers, and the ring: the KEK of today with those that older records still need."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cloister.crypto.keys import SecretKey
from cloister.errors import BadCiphertext, ConfigError
from cloister.kbs.kek.file import file_path, file_provider
from cloister.kbs.kek.pkcs11 import pkcs11_provider
from cloister.kbs.kek.provider import KekProvider, WrappedKey
from cloister.kbs.kek.tpm import tpm_provider
from cloister.kbs.kek.vault import vault_provider

KEK_PROVIDERS: dict[str, Callable[[str], KekProvider]] = {
    "file": file_provider,
    "pkcs11": pkcs11_provider,
    "tpm": tpm_provider,
    "vault": vault_provider,
}
"""One entry per URI scheme; each takes what follows the colon."""


class KekRing:
    """A ``KekProvider`` that wraps under the first of several and unwraps under any."""

    def __init__(self, current: KekProvider, previous: Sequence[KekProvider] = ()) -> None:
        self.current = current
        self.previous = tuple(previous)

    @property
    def local(self) -> bool:
        """See ``KekProvider``."""
        return all(kek.local for kek in (self.current, *self.previous))

    @property
    def key_id(self) -> str:
        """See ``KekProvider``."""
        return self.current.key_id

    def holds(self, kek_id: str) -> bool:
        """See ``KekProvider``."""
        return any(kek.holds(kek_id) for kek in (self.current, *self.previous))

    def wrap(self, key: SecretKey, resource: str) -> WrappedKey:
        """See ``KekProvider``."""
        return self.current.wrap(key, resource)

    def unwrap(self, wrapped: WrappedKey, resource: str) -> SecretKey:
        """See ``KekProvider``."""
        for kek in (self.current, *self.previous):
            if kek.holds(wrapped.kek_id):
                return kek.unwrap(wrapped, resource)
        raise BadCiphertext(f"{resource} is wrapped under KEK {wrapped.kek_id}, which this broker lacks")

    def renew(self) -> str:
        """See ``KekProvider``."""
        return self.current.renew()

    def retire(self) -> None:
        """See ``KekProvider``; the previous ones are their owner's to retire."""
        self.current.retire()


def open_kek(uri: str, *, make: bool = True) -> KekProvider:
    """The provider that a URI names, for example ``file:/var/lib/cloister/kek``.

    Args:
        make: whether a KEK that is not in its file yet is made; tokens and Vault never make one.
    Raises:
        ConfigError: unknown scheme, or the provider cannot be used.
        MissingDependencyError: the package that the provider needs is not installed.
    """
    scheme, colon, rest = uri.partition(":")
    provider = KEK_PROVIDERS.get(scheme)
    if not colon or not rest or provider is None:
        known = ", ".join(f"{name}:" for name in sorted(KEK_PROVIDERS))
        raise ConfigError(f"unknown KEK provider {scheme[:20]!r}", hint=f"known: {known}")
    path = file_path(rest.partition("?")[0])
    if scheme in ("file", "tpm") and not make and not path.exists():
        raise ConfigError(f"there is no KEK in {path}")
    return provider(rest)


def open_ring(uri: str, previous: Sequence[str] = (), *, make: bool = True) -> KekRing:
    """The KEK for new records, and those that older records still need; see ``open_kek``."""
    return KekRing(open_kek(uri, make=make), [open_kek(older, make=False) for older in previous])
