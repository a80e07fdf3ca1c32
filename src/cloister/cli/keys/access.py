"""How a command reaches the broker: on its own machine by its folder, or over the network with a token."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from cloister.cli.options import ConfigFile
from cloister.cli.serve import effective_settings
from cloister.errors import ConfigError
from cloister.settings import KeysSettings

Folder = Annotated[str | None, typer.Option(help="The broker's state folder, on its own machine.")]
BrokerUrl = Annotated[
    str | None,
    typer.Option("--broker", help="URL of the broker; without one, its folder."),
]
AdminToken = Annotated[
    Path | None,
    typer.Option(
        "--admin-token", help="File with an admin token, or a client certificate with its key (PEM)."
    ),
]
BrokerCa = Annotated[Path | None, typer.Option("--broker-ca", help="PEM certificate of the broker.")]


class KeyAdmin(Protocol):
    """What the commands do to a broker: ``BrokerAdmin`` over the network, ``LocalAdmin`` in its folder."""

    def put_version(self, uri: str, data: bytes) -> int: ...
    def delete_resource(self, uri: str) -> None: ...
    def list_resources(self) -> list[dict[str, Any]]: ...
    def show_resource(self, uri: str) -> dict[str, Any]: ...
    def revoke(self, uri: str, reason: str) -> None: ...
    def restore(self, uri: str, reason: str = "") -> None: ...
    def set_minimum(self, uri: str, version: int) -> int: ...
    def rotate_kek(self, *, renew: bool = True, retire: bool = True) -> dict[str, Any]: ...
    def set_policy(self, text: str) -> None: ...
    def get_policy(self) -> str: ...
    def set_reference_values(self, text: str) -> None: ...
    def get_reference_values(self) -> str: ...


class LocalAdmin:
    """Acts on the database of a broker on this machine, whether it runs or not."""

    def __init__(self, administration: Any, settings: KeysSettings) -> None:
        self.administration = administration
        self._settings = settings

    def put_version(self, uri: str, data: bytes) -> int:
        """Store a version; returns its number."""
        return int(self.administration.store(_path(uri), data).version)

    def delete_resource(self, uri: str) -> None:
        """Delete versions."""
        self.administration.delete(_path(uri))

    def list_resources(self) -> list[dict[str, Any]]:
        """Every stored version."""
        return [
            {"uri": f"kbs:///{v.path}", "version": v.version, "bytes": v.size, "created": v.created}
            for v in self.administration.resources()
        ]

    def show_resource(self, uri: str) -> dict[str, Any]:
        """Versions and their standing."""
        facts: dict[str, Any] = self.administration.show(_path(uri)).to_mapping()
        return facts

    def revoke(self, uri: str, reason: str) -> None:
        """Release to nobody any more."""
        self.administration.revoke(_path(uri), reason)

    def restore(self, uri: str, reason: str = "") -> None:
        """Take a revocation back."""
        self.administration.restore(_path(uri), reason)

    def set_minimum(self, uri: str, version: int) -> int:
        """Set the oldest version that is released."""
        return int(self.administration.set_minimum(_path(uri), version))

    def rotate_kek(self, *, renew: bool = True, retire: bool = True) -> dict[str, Any]:
        """Rotate the KEK."""
        return asdict(self.administration.rotate_kek(renew=renew, retire=retire))

    def set_policy(self, text: str) -> None:
        """Set the policy that decides releases."""
        from cloister.kbs.documents import RESOURCE_POLICY, refuse_pinned
        from cloister.policy.release import parse_release_policy

        refuse_pinned(self._settings.policy, "policies")
        parse_release_policy(text)
        self.administration.put_document(RESOURCE_POLICY, text)

    def get_policy(self) -> str:
        """The policy that decides now."""
        from cloister.kbs.documents import RESOURCE_POLICY
        from cloister.policy.cedar import RELEASE_POLICY, shipped

        if self._settings.policy:
            return read_text(Path(self._settings.policy))
        return self.administration.get_document(RESOURCE_POLICY) or shipped(RELEASE_POLICY)

    def set_reference_values(self, text: str) -> None:
        """Set the reference values."""
        from cloister.kbs.documents import REFERENCE_VALUES, refuse_pinned
        from cloister.kbs.stored import parse_reference_values

        refuse_pinned(self._settings.reference_values, "reference values")
        parse_reference_values(text)
        self.administration.put_document(REFERENCE_VALUES, text)

    def get_reference_values(self) -> str:
        """The reference values that hold now."""
        from cloister.kbs.documents import REFERENCE_VALUES

        if self._settings.reference_values:
            return read_text(Path(self._settings.reference_values))
        text = self.administration.get_document(REFERENCE_VALUES)
        if text is None:
            raise ConfigError("this broker has no reference values: every attestation is refused")
        return str(text)


@contextmanager
def administrator(
    config: Path | None,
    folder: str | None,
    broker: str | None = None,
    admin_token: Path | None = None,
    broker_ca: Path | None = None,
) -> Iterator[KeyAdmin]:
    """The broker that the options name."""
    if broker is None:
        with local_admin(config, folder) as admin:
            yield admin
        return
    from cloister.kbs.client import BrokerAdmin

    if admin_token is None:
        raise ConfigError("administration over the network needs --admin-token")
    with BrokerAdmin(broker, token=read_text(admin_token), ca=broker_ca) as remote:
        yield remote


Reach = Callable[[], AbstractContextManager[KeyAdmin]]
"""Opens the broker that a command's options name."""
_BROKER_OPTIONS: dict[str, Any] = {
    "config": ConfigFile,
    "folder": Folder,
    "broker": BrokerUrl,
    "admin_token": AdminToken,
    "broker_ca": BrokerCa,
}


def reaches_broker(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command whose first parameter is a ``Reach`` the options that say which broker that is.

    They stand before its last parameter, which is ``as_json``.
    """

    @functools.wraps(command)
    def run(**values: Any) -> None:
        options = {name: values.pop(name) for name in _BROKER_OPTIONS}
        command(lambda: administrator(**options), **values)

    signature = inspect.signature(command, eval_str=True)
    _, *own, last = signature.parameters.values()
    options = [
        last.replace(name=name, annotation=kind, default=None) for name, kind in _BROKER_OPTIONS.items()
    ]
    parameters = [*own, *options, last]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {item.name: item.annotation for item in parameters}
    return run


@contextmanager
def local_admin(config: Path | None, folder: str | None) -> Iterator[LocalAdmin]:
    """The broker of this machine."""
    from cloister.kbs.state import open_administration

    settings = keys_settings(config, folder)
    with open_administration(settings) as administration:
        yield LocalAdmin(administration, settings)


def keys_settings(config: Path | None, folder: str | None) -> KeysSettings:
    """The broker's settings."""
    return effective_settings(config, {"keys.folder": folder}).keys


def read_text(path: Path) -> str:
    """A text file that the user names."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8") from error


def clock(text: str) -> str:
    """A time of the database, for people."""
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _path(uri: str) -> Any:
    from cloister.kbs.protocol import ResourcePath

    return ResourcePath.from_uri(uri)
