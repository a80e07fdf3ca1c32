"""Messages of the key release protocol: vectors, versions, paths, and hostile input."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attest.binding import report_data_for
from cloister.crypto.jwe import TeePrivateKey, TeePublicKey
from cloister.errors import MalformedInput
from cloister.kbs import protocol
from cloister.kbs.evidence import read_evidence, write_evidence
from cloister.kbs.protocol import ResourcePath
from tests.vectors import vector

FORMS = {
    "parse_request": protocol.Request,
    "parse_challenge": protocol.Challenge,
    "parse_response": protocol.ResourceAnswer,
    "parse_attestation": protocol.Attestation,
    "parse_error_information": protocol.ErrorInformation,
}


def test_published_messages_parse_and_come_back() -> None:
    """Every message of the reference types is read, and written again with the same members."""
    for case in json.loads(vector("kbs/dev/kbs_types_unit_vectors.json").read_text()):
        form = next(form for name, form in FORMS.items() if case["test"].startswith(name))
        again = json.loads(protocol.render(protocol.parse(json.dumps(case["json"]).encode(), form)))
        found = {name: again[name] for name in case["json"]}
        found.get("runtime-data", {}).pop("nonce", None)
        assert found == case["json"]


def test_runtime_data_has_the_published_canonical_form() -> None:
    """Key, nonce and the (empty) additional evidence give the published JCS text and report data."""
    for case in json.loads(vector("kbs/dev/kbs_jwe_and_runtime_data_vectors.json").read_text())[
        "runtime_data"
    ]:
        given_data = case["runtime_data"]
        key = TeePublicKey.from_jwk({**given_data["tee-pubkey"], "kid": "not bound"})
        built = protocol.runtime_data(given_data["nonce"], key)
        assert rfc8785.dumps(built).decode() == case["jcs"]
        assert report_data_for(built).hex() == case["report_data_64_with_default_sha384"]


def test_canonical_hash_vector() -> None:
    """The specification's vector of JCS and SHA-384."""
    digest = hashlib.sha384(rfc8785.dumps({"c": {"d": "e"}, "b": 1, "a": "test"})).hexdigest()
    assert digest == (
        "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c4597480a186427c813ca941da78870c3"
    )


def test_additional_evidence_is_bound_even_when_empty() -> None:
    """The hyphenated member is there when empty, and changes the digest when not."""
    key = TeePublicKey.from_jwk(TeePrivateKey.generate().public_jwk)
    empty = protocol.runtime_data("n", key)
    assert empty["additional-evidence"] == ""
    assert report_data_for(empty) != report_data_for(protocol.runtime_data("n", key, "{}"))


def test_request_of_this_version_is_accepted() -> None:
    """Version 0.4.0 with the usual hash algorithms passes."""
    extra = {"supported-hash-algorithms": ["SHA256", "SHA384", "sha512"]}
    protocol.check_request(protocol.Request(version="0.4.0", tee="tdx", extra_params=extra))
    protocol.check_request(protocol.Request(version="0.4.0", tee="snp"))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"version": "0.3.0"}, "0.3.0"),
        ({"version": "0.4.1"}, "0.4.0"),
        ({"version": ""}, "0.4.0"),
        ({"tee": "sev"}, "sev"),
        ({"extra_params": {"supported-hash-algorithms": ["md5", "sm3"]}}, "sha384"),
        ({"extra_params": {"supported-hash-algorithms": 7}}, "sha384"),
    ],
)
def test_other_requests_are_refused(change: dict[str, Any], names: str) -> None:
    """Another version, an unknown TEE, or no common hash is refused, and the message names it."""
    with pytest.raises(MalformedInput, match=names):
        protocol.check_request(protocol.Request(**{"version": "0.4.0", "tee": "tdx", **change}))


@pytest.mark.parametrize(
    "challenge",
    [
        protocol.Challenge(nonce=""),
        protocol.Challenge(nonce="x", extra_params={"selected-hash-algorithm": "md5"}),
    ],
)
def test_unusable_challenges_are_refused(challenge: protocol.Challenge) -> None:
    """A client does not answer a challenge without a nonce or with a hash that it does not do."""
    with pytest.raises(MalformedInput):
        protocol.check_challenge(challenge)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("kbs:///models/digits/1.0-2", ResourcePath("models", "digits", "1.0-2")),
        ("kbs:///a/b/c?version=3", ResourcePath("a", "b", "c", 3)),
        ("kbs://broker.example:8600/a/b/c", ResourcePath("a", "b", "c")),
    ],
)
def test_resource_uris(uri: str, expected: ResourcePath) -> None:
    """A resource URI names repository, type, tag, and perhaps a version."""
    assert ResourcePath.from_uri(uri) == expected


@pytest.mark.parametrize(
    "uri",
    [
        *("", "kbs:///a/b", "kbs:///a/b/c/d", "kbs:///a//c", "kbs:///a/../c", "kbs:///.a/b/c"),
        *("http:///a/b/c", "kbs:///a/b/c?version=0", "kbs:///a/b/c?version=x", "kbs:///a/b/c#d"),
        *("kbs:///a/b/ c", "kbs:///a/b/%2e", "kbs:///a/b/c\n", "kbs:///a/b/" + "c" * 200, "kbs:///ä/b/c"),
    ],
)
def test_other_uris_are_refused(uri: str) -> None:
    """A path of other length, with dots, escapes or other characters never reaches the database."""
    with pytest.raises(MalformedInput):
        ResourcePath.from_uri(uri)


def test_error_bodies() -> None:
    """Two variants are 404, all others 401; the detail is one line under the published type."""
    assert [protocol.status_of(v) for v in ("InvalidRequestPath", "PluginNotFound")] == [404, 404]
    assert {protocol.status_of(v) for v in ("PolicyDeny", "PluginInternalError", "TokenNotFound")} == {401}
    error = protocol.ErrorInformation.of("PolicyDeny", "two\nlines")
    assert error.type == "https://github.com/confidential-containers/kbs/errors/PolicyDeny"
    assert error.detail == "two lines"


@pytest.mark.parametrize("tee", ["tdx", "sgx"])
def test_evidence_shapes(tee: str) -> None:
    """Vendor bytes survive the wire form of their TEE."""
    wire = write_evidence(tee, b"\x00quote\xff")
    assert read_evidence(tee, json.loads(json.dumps(wire))).raw == b"\x00quote\xff"


@pytest.mark.parametrize(
    ("tee", "primary"),
    [
        ("sample", {"svn": "1", "report_data": "AA=="}),
        ("snp", {"quote": "AA=="}),
        ("tdx", {}),
        ("tdx", []),
        ("tdx", {"quote": 5}),
        ("tdx", {"quote": "not base64!"}),
    ],
)
def test_other_evidence_is_refused(tee: str, primary: Any) -> None:
    """The sample TEE, TEEs that are not supported, and other shapes are refused."""
    with pytest.raises(MalformedInput):
        read_evidence(tee, primary)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=10,
)
near_attestation = st.fixed_dictionaries(
    {
        "runtime-data": json_values
        | st.fixed_dictionaries({"nonce": json_values, "tee-pubkey": json_values}),
        "tee-evidence": json_values | st.fixed_dictionaries({"primary_evidence": json_values}),
    }
)


@given(st.binary(max_size=80) | (json_values | near_attestation).map(lambda v: json.dumps(v).encode()))
@settings(max_examples=150, deadline=None)
def test_parsers_raise_only_malformed_input(raw: bytes) -> None:
    """Whatever arrives is read or refused as malformed, at each level of the message."""
    for form in set(FORMS.values()):
        with contextlib.suppress(MalformedInput):
            protocol.parse(raw, form)
    with contextlib.suppress(MalformedInput):
        attestation = protocol.parse(raw, protocol.Attestation)
        TeePublicKey.from_jwk(attestation.runtime_data.tee_pubkey)
        read_evidence("tdx", attestation.evidence().primary_evidence)


def test_deep_nesting_is_malformed() -> None:
    """A body nested ten thousand levels deep does not take the process with it."""
    raw = b'{"version":"0.4.0","tee":"tdx","extra-params":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    with pytest.raises(MalformedInput):
        protocol.parse(raw, protocol.Request)


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_paths_raise_only_malformed_input(text: str) -> None:
    """Whatever text is given as a path or URI, it is refused or is exactly three plain segments."""
    for read in (ResourcePath.parse, ResourcePath.from_uri):
        with contextlib.suppress(MalformedInput):
            path = read(text)
            assert len(path.path.split("/")) == 3
            assert ".." not in path.path.split("/")
