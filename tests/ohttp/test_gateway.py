"""The gateway: which requests it opens, once, and what those outside can learn from a refusal."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cloister.crypto.hpke import Kem, PrivateKey
from cloister.errors import BadCiphertext, ConfigError, Overloaded, Replayed, UnknownKeyConfig
from cloister.ohttp.bhttp import Request
from cloister.ohttp.capsule import KeyConfig, parse_key_configs, seal_request
from cloister.ohttp.chunked import RequestSealer
from cloister.ohttp.gateway import Gateway, GatewayKey
from cloister.ohttp.replay import ReplayGuard, check_date, render_date


def config_of(gateway: Gateway) -> KeyConfig:
    """The key configuration that evidence would carry."""
    return KeyConfig.parse(gateway.key_config)


@pytest.mark.parametrize("kem", list(Kem))
def test_conversation(kem: Kem) -> None:
    """A request sealed to the published key opens, and its answer opens at the caller."""
    gateway = Gateway.generate(kem)
    capsule, opener = seal_request(config_of(gateway), b"request")
    request, sealer = gateway.open(capsule)
    assert request == b"request"
    assert opener.open(sealer.seal(b"response")) == b"response"


def test_several_keys() -> None:
    """A former key still opens, the document lists all, and the first is the current one."""
    former = GatewayKey.generate()
    current = GatewayKey.generate(besides=(former.key_id,))
    gateway = Gateway((current, former))
    assert parse_key_configs(gateway.key_configs) == (current.config, former.config)
    assert config_of(gateway) == current.config
    assert gateway.open(seal_request(former.config, b"late")[0])[0] == b"late"


def test_key_ids_are_unique() -> None:
    """Two keys under one id, or none at all, is a mistake that is said."""
    key = GatewayKey.generate()
    with pytest.raises(ConfigError):
        Gateway((key, GatewayKey(key.key_id, GatewayKey.generate().private)))
    with pytest.raises(ConfigError):
        Gateway(())
    assert GatewayKey.generate(besides=range(255)).key_id == 255


def test_unknown_key_id_and_suite() -> None:
    """A key id or suite that is not offered has its own error: the caller then asks for the current key."""
    gateway = Gateway((GatewayKey(7, GatewayKey.generate().private, ((1, 1),)),))
    capsule, _ = seal_request(config_of(gateway), b"request")
    for bad in (
        b"\x08" + capsule[1:],
        capsule[:5] + b"\x00\x02" + capsule[7:],
        b"\x07\x00\x10" + capsule[3:],
    ):
        with pytest.raises(UnknownKeyConfig):
            gateway.open(bad)


def test_refusals_sound_alike() -> None:
    """Truncated, changed, unusable and foreign requests are refused in the same words."""
    gateway = Gateway.generate()
    config = config_of(gateway)
    capsule, _ = seal_request(config, b"request")
    foreign = KeyConfig(config.key_id, GatewayKey.generate().config.public, config.algorithms)
    attempts = (
        b"",
        capsule[:6],
        capsule[:20],
        capsule[:-1],
        capsule[:-1] + bytes([capsule[-1] ^ 1]),
        capsule[:7] + bytes(32) + capsule[39:],
        seal_request(foreign, b"request")[0],
    )
    said = set()
    for bad in attempts:
        with pytest.raises(BadCiphertext) as caught:
            gateway.open(bad)
        said.add((str(caught.value), caught.value.hint))
    assert len(said) == 1


def test_replayed_request_is_refused() -> None:
    """The same sealed request opens once."""
    gateway = Gateway.generate()
    capsule, _ = seal_request(config_of(gateway), b"request")
    gateway.open(capsule)
    with pytest.raises(Replayed):
        gateway.open(capsule)


def test_forged_request_burns_nothing() -> None:
    """A request that does not authenticate is not remembered, so that it cannot block the real one."""
    guard = ReplayGuard()
    gateway = Gateway((GatewayKey.generate(),), guard=guard)
    capsule, _ = seal_request(config_of(gateway), b"request")
    with pytest.raises(BadCiphertext):
        gateway.open(capsule[:-1] + bytes([capsule[-1] ^ 1]))
    assert len(guard) == 0
    assert gateway.open(capsule)[0] == b"request"


def test_full_guard_refuses_instead_of_forgetting() -> None:
    """At capacity new requests wait; none of the remembered ones becomes replayable."""
    now = [0.0]
    gateway = Gateway(
        (GatewayKey.generate(),), guard=ReplayGuard(retention_s=8, capacity=2), clock=lambda: now[0]
    )
    first, second, third = (seal_request(config_of(gateway), b"x")[0] for _ in range(3))
    gateway.open(first)
    gateway.open(second)
    with pytest.raises(Overloaded):
        gateway.open(third)
    with pytest.raises(Replayed):
        gateway.open(first)
    now[0] = 10.0
    assert gateway.open(third)[0] == b"x"


def test_streamed_conversation() -> None:
    """A chunked request opens piece by piece, and its answer can begin before it has ended."""
    gateway = Gateway.generate()
    sealer = RequestSealer(config_of(gateway))
    stream = gateway.open_stream()
    assert stream.receive(sealer.begin()) == []
    assert stream.receive(sealer.seal(b"one")) == [b"one"]
    answer = stream.response_sealer()
    opener = sealer.response_opener()
    assert opener.receive(answer.begin() + answer.seal(b"early")) == [b"early"]
    assert stream.receive(sealer.seal(b"two") + sealer.seal(b"three", final=True)) == [b"two"]
    assert stream.finish() == b"three"
    assert opener.receive(answer.seal(b"late", final=True)) == []
    assert opener.finish() == b"late"


def test_streamed_replay() -> None:
    """A chunked request is taken once, whether it comes whole or in parts, one after the other or at once."""
    gateway = Gateway.generate()
    sealer = RequestSealer(config_of(gateway))
    raw = sealer.begin() + sealer.seal(b"one") + sealer.seal(b"", final=True)
    early, first, late = gateway.open_stream(), gateway.open_stream(), gateway.open_stream()
    assert early.receive(raw[:39]) == []
    assert first.receive(raw) == [b"one"]
    assert first.finish() == b""
    with pytest.raises(Replayed):
        early.receive(raw[39:])
    with pytest.raises(Replayed):
        late.receive(raw)


@pytest.mark.parametrize("between_s", [0.0, 30.0, 100.0])
def test_a_slow_stream_and_a_clock_that_is_set(between_s: float) -> None:
    """What began under a clock that was behind and ended under the right one does not come again either."""
    true = datetime(2026, 6, 1, tzinfo=UTC).timestamp()
    wall, ticks = [true - 7200], [1000.0]
    gateway = Gateway(
        (GatewayKey.generate(),), guard=ReplayGuard(wall=lambda: wall[0]), clock=lambda: ticks[0]
    )
    sealer = RequestSealer(config_of(gateway))
    first = sealer.begin() + sealer.seal(b"half")
    last = sealer.seal(b"end", final=True)
    dated = Request(
        b"POST", b"https", b"a", b"/", ((b"date", render_date(datetime.fromtimestamp(true, UTC))),)
    )

    def ask() -> None:
        upload = gateway.open_stream()
        upload.receive(first)
        wall[0] = true
        ticks[0] += between_s
        upload.receive(last)
        upload.finish()
        check_date(dated, datetime.fromtimestamp(wall[0], UTC), floor=gateway.floor)

    ask()
    for _ in range(10):
        ticks[0] += 60.0
        gateway.open(seal_request(config_of(gateway), b"another, so that what is old is forgotten")[0])
        wall[0] = true - 7200  # and forward again, while it comes
        with pytest.raises(Replayed):
            ask()


def test_streamed_refusals() -> None:
    """Another key, another suite, a changed byte or a cut: the errors of whole requests."""
    gateway = Gateway.generate()
    sealer = RequestSealer(config_of(gateway))
    raw = sealer.begin() + sealer.seal(b"one") + sealer.seal(b"", final=True)
    for bad in (bytes([raw[0] ^ 1]) + raw[1:], raw[:1] + b"\xff\xff" + raw[3:]):
        with pytest.raises(UnknownKeyConfig):
            gateway.open_stream().receive(bad)
    with pytest.raises(BadCiphertext):
        gateway.open_stream().receive(raw[:45] + bytes([raw[45] ^ 1]) + raw[46:])
    cut = gateway.open_stream()
    cut.receive(raw[:-1])
    with pytest.raises(BadCiphertext):
        cut.finish()
    with pytest.raises(Replayed):
        gateway.open_stream().receive(raw)


def test_rotation() -> None:
    """A new key becomes the current one; the former is accepted until it is dropped, older ones never."""
    gateway = Gateway.generate()
    configs = [KeyConfig.parse(gateway.key_config)]
    for _ in range(2):
        gateway.rotate()
        configs.append(KeyConfig.parse(gateway.key_config))
    assert len({config.key_id for config in configs}) == 3
    assert [config.key_id for config in parse_key_configs(gateway.key_configs)] == [
        configs[2].key_id,
        configs[1].key_id,
    ]
    capsule, _ = seal_request(configs[1], b"former")
    assert gateway.open(capsule)[0] == b"former"
    with pytest.raises(Replayed):
        gateway.open(capsule)
    gateway.drop_former()
    for config in configs[:2]:
        with pytest.raises(UnknownKeyConfig):
            gateway.open(seal_request(config, b"x")[0])
    with pytest.raises(ConfigError):
        gateway.rotate(GatewayKey(configs[2].key_id, PrivateKey.generate(Kem.X25519_HKDF_SHA256)))
