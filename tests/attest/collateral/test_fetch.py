"""HTTP with everything bounded."""

from __future__ import annotations

import socket
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cloister.attest.collateral.fetch import (
    ATTEMPTS,
    MAX_BODY_BYTES,
    MAX_WAIT_S,
    HttpFetcher,
    NotKnown,
    check_base,
)
from cloister.errors import ConfigError, TransportError
from cloister.kbs.tls import make_certificate
from tests.fakes.pcs import FakeVendors, Reply, serving


def get(fetcher: HttpFetcher, url: str) -> bytes:
    with fetcher.session() as session:
        return session(url).body


def answers(vendors: FakeVendors, *replies: Reply) -> list[Reply]:
    """Answer with these replies, in turn, then with the last."""
    left = list(replies)
    vendors.change = lambda path, reply: left.pop(0) if len(left) > 1 else left[0]
    return left


def test_an_answer_is_returned(fetcher: HttpFetcher, vendors: FakeVendors) -> None:
    """Body and headers of a 200 come back; header names in lower case."""
    answers(vendors, Reply(200, b"body", {"Some-Header": "x"}))
    with fetcher.session() as session:
        answer = session(f"{vendors.url}/a?b=c")
    assert (answer.body, answer.headers["some-header"], answer.where) == (b"body", "x", "127.0.0.1/a")


def test_404_is_told_apart(fetcher: HttpFetcher, vendors: FakeVendors) -> None:
    """That a service does not know something is another error than that it failed."""
    with pytest.raises(NotKnown, match="404"):
        get(fetcher, f"{vendors.url}/nothing")


@pytest.mark.parametrize("status", [204, 304, 400, 401, 500])
def test_other_statuses_are_errors(fetcher: HttpFetcher, vendors: FakeVendors, status: int) -> None:
    """What is not 200 is no answer, and is not asked for again."""
    answers(vendors, Reply(status))
    with pytest.raises(TransportError, match=str(status)):
        get(fetcher, f"{vendors.url}/a")
    assert len(vendors.asked) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_asked_again(
    fetcher: HttpFetcher, vendors: FakeVendors, waits: list[float], status: int
) -> None:
    """It is waited longer each time, as long as the service says, but not for ever."""
    answers(vendors, Reply(status), Reply(status, headers={"Retry-After": "99999"}), Reply(200, b"at last"))
    assert get(fetcher, f"{vendors.url}/a") == b"at last"
    assert 0.5 <= waits[0] <= 1.0
    assert waits[1] == MAX_WAIT_S


def test_a_service_that_stays_busy_is_given_up(
    fetcher: HttpFetcher, vendors: FakeVendors, waits: list[float]
) -> None:
    """After a few attempts it is an error that names the status."""
    answers(vendors, Reply(429))
    with pytest.raises(TransportError, match="429"):
        get(fetcher, f"{vendors.url}/a")
    assert (len(vendors.asked), len(waits)) == (ATTEMPTS, ATTEMPTS - 1)


def test_a_redirect_within_the_host_is_followed(fetcher: HttpFetcher, vendors: FakeVendors) -> None:
    """A service may move things around on itself."""
    answers(vendors, Reply(302, headers={"Location": "/elsewhere"}), Reply(200, b"there"))
    assert get(fetcher, f"{vendors.url}/a") == b"there"
    assert vendors.asked == ["/a", "/elsewhere"]


def test_a_redirect_to_another_host_is_refused(fetcher: HttpFetcher, vendors: FakeVendors) -> None:
    """Nobody can send the client elsewhere: not to another host, port or scheme."""
    with serving(FakeVendors()) as other:
        for target in (f"{other.url}/a", vendors.url.replace("127.0.0.1", "localhost"), "https://127.0.0.1/"):
            answers(vendors, Reply(307, headers={"Location": target}))
            with pytest.raises(TransportError, match="another host"):
                get(fetcher, f"{vendors.url}/a")
        assert other.asked == []


@pytest.mark.parametrize("location", ["/a", "http://[", ""])
def test_redirects_that_lead_nowhere_end(fetcher: HttpFetcher, vendors: FakeVendors, location: str) -> None:
    """A circle, or what is no URL, is an error."""
    answers(vendors, Reply(302, headers={"Location": location}))
    with pytest.raises(TransportError, match="redirect"):
        get(fetcher, f"{vendors.url}/a")


def test_an_answer_that_is_too_long_is_refused(fetcher: HttpFetcher, vendors: FakeVendors) -> None:
    """Reading stops at the limit, whatever length the service states."""
    answers(vendors, Reply(200, bytes(MAX_BODY_BYTES + 1)))
    with pytest.raises(TransportError, match="more than"):
        get(fetcher, f"{vendors.url}/a")


def test_an_answer_that_is_cut_off_is_refused(vendors: FakeVendors) -> None:
    """An answer shorter than it says, from a service that hangs, ends with the time limit."""
    answers(vendors, Reply(200, b"ab", {"Content-Length": "3"}))
    with pytest.raises(TransportError, match="cannot be reached"):
        get(HttpFetcher(timeout_s=0.2), f"{vendors.url}/a")


def test_an_answer_that_drips_is_given_up(vendors: FakeVendors) -> None:
    """The time limit is for the whole answer: a byte now and then does not prolong it."""
    answers(vendors, Reply(200, bytes(200), pause_s=0.05))
    begin = time.monotonic()
    with pytest.raises(TransportError, match="longer than"):
        get(HttpFetcher(timeout_s=0.3), f"{vendors.url}/a")
    assert time.monotonic() - begin < 5


def test_tls_is_checked_against_the_authority_that_is_set(tmp_path: Path) -> None:
    """A PCCS with a certificate of its own works where that is named, and nowhere else."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = make_certificate(key, "localhost", datetime.now(UTC)).public_bytes(Encoding.PEM)
    (tmp_path / "ca.pem").write_bytes(certificate)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "both.pem").write_bytes(private + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    vendors = FakeVendors()
    answers(vendors, Reply(200, b"body"))
    with serving(vendors, context):
        assert get(HttpFetcher(ca=tmp_path / "ca.pem"), f"{vendors.url}/a") == b"body"
        with pytest.raises(TransportError, match="certificate"):
            get(HttpFetcher(), f"{vendors.url}/a")


def test_compressed_answers_are_refused(fetcher: HttpFetcher, vendors: FakeVendors) -> None:
    """Nothing is unpacked: what is counted is what arrives."""
    answers(vendors, Reply(200, b"x", {"Content-Encoding": "gzip"}))
    with pytest.raises(TransportError, match="compressed"):
        get(fetcher, f"{vendors.url}/a")


def test_headers_are_bounded(fetcher: HttpFetcher, vendors: FakeVendors) -> None:
    """A header of a mebibyte is an error."""
    answers(vendors, Reply(200, b"x", {"A": "x" * 1024 * 1024}))
    with pytest.raises(TransportError):
        get(fetcher, f"{vendors.url}/a")


def test_a_service_that_is_not_there(fetcher: HttpFetcher) -> None:
    """No connection is an error that names host and path, not the query."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(TransportError, match=r"127\.0\.0\.1/a cannot be reached") as caught:
            get(fetcher, f"http://127.0.0.1:{unused.getsockname()[1]}/a?chip=secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "ftp://127.0.0.1",
        "https://",
        "https://user:password@example.com",
        "https://example.com/?a=b",
        "https://example.com/#a",
        "https://example.com:port",
        "https://[",
        "",
        "no url",
        "https://exa mple.com\n",
    ],
)
def test_bases_that_are_none_are_refused(url: str) -> None:
    """A base is https, or http on this machine, and has nothing but host and path; no password is shown."""
    with pytest.raises(ConfigError) as caught:
        check_base(url, "collateral.pcs_url")
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://example.com/", "http://localhost:1", "http://[::1]:8081/a/"])
def test_bases_lose_their_last_slash(url: str) -> None:
    """A base is taken with or without a slash at its end."""
    assert check_base(url, "x") == url.rstrip("/")


def test_settings_that_cannot_work_are_refused() -> None:
    """A time limit of zero and a missing certificate are errors before anything is asked."""
    with pytest.raises(ConfigError):
        HttpFetcher(timeout_s=0)
    with pytest.raises(ConfigError):
        HttpFetcher(ca=Path("/absent.pem"))
