"""Which source of keys a URL names, and who is asked when one is away."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.attest.model import Attester
from cloister.errors import ConfigError, KeyUnavailable, TransportError
from cloister.kbs.cache.client import CacheClient
from cloister.kbs.client import BrokerClient
from cloister.kbs.source import FirstReachable, open_key_source
from tests.kbs.broker_process import RunningBroker, Tee
from tests.kbs.conftest import SECRET

URI = "kbs:///models/key/digits"


def no_evidence() -> Attester:
    raise AssertionError("evidence was asked for")


@pytest.mark.parametrize("url", ["unix:/run/x.sock", "unix:///run/x.sock"])
def test_a_cache_wants_no_evidence(url: str) -> None:
    """A UNIX path opens a cache's client; no Attester is needed for it."""
    assert isinstance(open_key_source(url, attester=no_evidence), CacheClient)


def test_a_broker(broker: RunningBroker) -> None:
    """An HTTPS URL opens a broker's client."""
    with open_key_source(broker.url, attester=lambda: Tee(broker.platform), ca=broker.ca) as source:
        assert isinstance(source, BrokerClient)
        assert source.get_resource(URI) == SECRET


def test_the_next_one_is_asked_when_one_is_away(broker: RunningBroker, tmp_path: Path) -> None:
    """A cache that is down does not keep a TEE from the broker behind it."""
    url = f"unix:{tmp_path}/absent {broker.url}"
    with open_key_source(url, attester=lambda: Tee(broker.platform), ca=broker.ca) as source:
        assert source.get_resource(URI) == SECRET


class Fixed:
    """A source that answers always the same."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.closed = False

    def get_resource(self, uri: str) -> bytes:
        raise self.error

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Fixed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def test_a_refusal_is_final() -> None:
    """Nobody shops around for a yes: after a refusal no other source is asked."""
    refusing, other = Fixed(KeyUnavailable("no")), Fixed(AssertionError("asked"))
    with FirstReachable([refusing, other]) as source, pytest.raises(KeyUnavailable):
        source.get_resource(URI)
    assert refusing.closed
    assert other.closed


def test_all_away_names_all() -> None:
    """When nobody can be reached, the error says so of each."""
    source = FirstReachable([Fixed(TransportError("a is away")), Fixed(TransportError("b is away"))])
    with pytest.raises(TransportError, match="a is away; b is away"):
        source.get_resource(URI)


@pytest.mark.parametrize("url", ["", "  ", "unix:relative", "http://x", "file:/x"])
def test_other_urls(url: str, broker: RunningBroker) -> None:
    """What names neither a cache nor a broker is a configuration error."""
    with pytest.raises(ConfigError):
        open_key_source(url, attester=lambda: Tee(broker.platform))
