"""Prompt hygiene: whatever a caller sends and a model says, nobody else gets to read it.

One protected server with everything on that writes anything (access log, traces, metrics, decisions, gRPC,
management), the broker, a verifier and the local proxy are sent canaries by every way in, good requests and
broken ones. Then all that these processes printed, wrote, sent or show is searched.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

import cloister
from cloister.attest.appraisal import ReferenceValues
from cloister.attest.simulated import SimulatedPlatform
from cloister.cli.walkthrough.canary import encodings
from cloister.errors import CloisterError
from cloister.ohttp import bhttp, chunked
from cloister.ohttp.capsule import KeyConfig, parse_key_configs, seal_request
from cloister.serve.access.api_keys import make_api_key
from tests.processes.owner import seal_handler
from tests.processes.server import Server, free_port
from tests.processes.test_javascript import run_verifier
from tests.processes.test_protected import CANARIES, World, make_world
from tests.processes.test_sealed_access import STREAMER
from tests.serve.grpc.stubs import INFERENCE_SERVICE, MANAGEMENT_SERVICE, Stub, management, predictions
from tests.serve.test_tracing import SPAN, TRACE, collector

GROUP = 54_321
"""Group of the server's processes: files below /proc belong to it, unless a process may not be dumped."""
C = {
    kind: f"canary-{kind}-e81d"
    for kind in ("header", "query", "body", "path", "file", "model", "token", "json", "nonce", "capsule")
} | CANARIES
ALL = b" ".join(value.encode() for value in C.values())


def leaks(content: bytes | str) -> list[str]:
    """Kinds of canary in this, in any encoding."""
    raw = content.encode() if isinstance(content, str) else content
    return [kind for kind, marker in C.items() if any(form in raw for form in encodings(marker))]


@dataclass
class Scene:
    """Everything that runs, and what others than the caller have seen of it."""

    world: World
    server: Server
    flags: dict[str, Any]
    verifier: str
    proxy: str
    key: str
    pids: list[int]
    others: dict[str, bytes] = field(default_factory=dict)
    """Answers that are not sealed to, or not for, whoever sent the canary."""

    @property
    def plain(self) -> str:
        return f"http://127.0.0.1:{self.world.http_port}"

    def sealed(self) -> httpx.Client:
        """A caller whose requests travel sealed."""
        transport = cloister.transport(
            self.server.url,
            reference_values=ReferenceValues.from_toml(self.world.reference_values(self.flags)),
            roots=[SimulatedPlatform.load(self.world.folder / "platform").root],
        )
        headers = {
            "x-private": C["header"],
            "traceparent": f"00-{TRACE}-{SPAN}-01",
            "user-agent": C["header"],
        }
        return httpx.Client(transport=transport, base_url=self.server.url, headers=headers, timeout=60)


@contextmanager
def run_proxy(world: World, server: Server) -> Iterator[tuple[str, int]]:
    """The local proxy: its address and process number; what it prints goes to a file."""
    (world.folder / "proxy.toml").write_text(world.reference_values(world.flags))
    command = [str(Path(sys.executable).parent / "cloister"), "proxy", server.url, "--listen", "127.0.0.1:0"]
    command += ["-r", str(world.folder / "proxy.toml")]
    command += ["--simulated-root", str(world.folder / "platform" / "root.pem")]
    with (world.folder / "proxy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield next(word for word in line.split() if word.startswith("http://")), process.pid
    finally:
        process.terminate()
        (world.folder / "proxy.out").write_text(process.communicate(timeout=20)[0])


def allow_dumps() -> None:
    """Let the server's processes write core dumps, unless they do something about it themselves."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def spawn(world: World, name: str) -> dict[str, Any]:
    """How the server's process is started: where a core dump would be found, and in a group of its own."""
    folder = world.folder / name
    folder.mkdir()
    options: dict[str, Any] = {"cwd": folder, "preexec_fn": allow_dumps}
    return options | ({"group": GROUP} if os.geteuid() == 0 else {})


@pytest.fixture(scope="module", params=[1, 2], ids=("one process", "two frontends"))
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Everything up, sent every canary by every way in, and then stopped."""
    folder = tmp_path_factory.mktemp("hygiene")
    with ExitStack() as stack:
        otel, spans = stack.enter_context(collector())
        extra = {
            "serve.frontends": request.param,
            "serve.access_log": True,
            "serve.otel_endpoint": otel,
            "serve.otel_sample": 1.0,
            "serve.api_keys": str(folder / "api-keys.jsonl"),
            "serve.decision_log": str(folder / "decisions.jsonl"),
            "serve.decision_log_key": str(folder / "decisions.key"),
            "serve.grpc_port": free_port(),
            "serve.grpc_management_port": free_port(),
            "serve.management_port": free_port(),
            "serve.model_api": True,
            "serve.key_file": str(folder / "key_file.json"),
            "serve.log_level": "debug",
        }
        key = make_api_key(folder / "api-keys.jsonl", "caller", now=datetime.now(UTC))
        world = stack.enter_context(make_world(folder, **extra))
        seal_handler(world, "talk", STREAMER)
        verifier, _ = stack.enter_context(run_verifier(world))
        environment = {"HOME": str(folder / "home"), "PYTHONFAULTHANDLER": "1"}
        server = stack.enter_context(Server(world.flags, environment=environment, **spawn(world, "run")))
        server.wait_ready()
        proxy, proxy_pid = stack.enter_context(run_proxy(world, server))
        made = Scene(world, server, world.flags, verifier, proxy, key, [server.pid, proxy_pid])
        made.pids += children(server.pid)
        for probe in PROBES:
            probe(made)
        time.sleep(0.3)
        watch(made)
        made.others["metrics"] = httpx.get(f"{server.url}/metrics", verify=False).content
        made.others["models"] = httpx.get(f"{server.url}/models", verify=False).content
        assert server.stop() == 0
        made.others |= {"stdout": server.stdout.encode(), "stderr": server.stderr.encode()}
        made.others["spans"] = b"".join(spans)
        # Nobody is there any more: what the proxy says of that is for its log too.
        httpx.post(f"{proxy}/predictions/own?q={C['query']}", content=C["body"], timeout=60)
        stack.close()
        yield made


def watch(scene: Scene) -> None:
    """Note what anybody on the machine may list of each process."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            for name in ("cmdline", "environ", "comm"):
                with suppress(OSError):
                    scene.others[f"{process.name}/{name}"] = (process / name).read_bytes()


# What is sent, by each way in.


def sealed_requests(scene: Scene) -> None:
    """OHTTP: an answer, a handler's exception, an unknown path, broken JSON, too long a body, a stream."""
    with scene.sealed() as http:
        path = f"/predictions/own?q={C['query']}"
        answer = http.post(path, content=C["body"], headers={"content-type": "text/plain"})
        assert (answer.status_code, C["answer"] in answer.text) == (200, True)
        failed = http.post(path, content="raise", headers={"content-type": "text/plain"})
        assert (failed.status_code, "fingerprint " in failed.text) == (503, True)
        scene.others["its own error, without the handler's text"] = failed.content
        assert http.get(f"/{C['path']}/{C['path']}").status_code == 404
        assert http.post(f"/predictions/{C['model']}", content=C["body"]).status_code == 404
        bad = http.post(path, content=f'{{"{C["json"]}', headers={"content-type": "application/json"})
        assert bad.status_code == 400
        long = http.post(path, content=ALL * (6_600_000 // len(ALL) + 1))
        assert long.status_code == 413
        files = {"data": (C["file"], C["body"].encode(), "text/plain"), C["file"]: (C["file"], b"x")}
        http.post("/predictions/own", files=files)
        assert http.post("/v2/models/own/infer", content=f'{{"inputs": "{C["json"]}"').status_code == 400
        http.post("/v2/models/own/infer", json={"inputs": [{"name": C["json"], "datatype": C["json"]}]})
        assert "end" in http.post("/predictions/talk", content=b"2").text
        wrong = http.get("/models", headers={"authorization": f"Bearer {C['token']}"})
        assert wrong.status_code == 401
        assert http.get("/models", headers={"x-api-key": scene.key}).status_code == 200
        http.post(path, content="exit", headers={"content-type": "text/plain"})


def rest_requests(scene: Scene) -> None:
    """TorchServe's REST and the Open Inference Protocol under the attested key; and what is no HTTP."""
    with httpx.Client(verify=False, base_url=scene.server.url, timeout=60) as http:
        headers = {"x-private": C["header"], "content-type": "text/plain", "cookie": f"a={C['token']}"}
        for verb in ("predictions", "explanations"):
            http.post(f"/{verb}/own?q={C['query']}", content=C["body"], headers=headers)
        http.post("/predictions/own", content="raise", headers=headers)
        http.put(f"/predictions/own/{C['path']}", content=C["body"])
        http.request("BREW", f"/{C['path']}", content=C["body"])
        http.post("/v2/models/own/infer", content=C["body"], headers={"Inference-Header-Content-Length": "5"})
        http.get(f"/v2/models/{C['model']}/versions/{C['path']}/ready")
        http.options(f"/{C['path']}", headers={"origin": f"https://{C['header']}"})
        http.get(f"/.well-known/cloister/evidence?nonce={C['nonce']}")


def plain_requests(scene: Scene) -> None:
    """The plain port: all that it says can be read by anybody."""
    with httpx.Client(base_url=scene.plain, timeout=60) as http:
        asked = {
            "path": http.get(f"/{C['path']}?q={C['query']}", headers={"x-private": C["header"]}),
            "predict": http.post("/predictions/own", content=C["body"]),
            "nonce": http.get(f"/.well-known/cloister/evidence?nonce={C['nonce']}"),
            "capsule": http.post("/.well-known/ohttp-gateway", content=ALL, headers=SEALED),
            "chunked": http.post("/.well-known/ohttp-gateway", content=ALL, headers=CHUNKED),
            "type": http.post(
                "/.well-known/ohttp-gateway", content=ALL, headers={"content-type": C["header"]}
            ),
        }
        keys = http.get("/.well-known/ohttp-gateway").content
        config = parse_key_configs(keys)[0]
        asked["whole"] = http.post(
            "/.well-known/ohttp-gateway", content=seal_request(config, ALL)[0], headers=SEALED
        )
        asked["parts"] = http.post(
            "/.well-known/ohttp-gateway", content=broken_chunks(config), headers=CHUNKED
        )
        assert {name: answer.status_code for name, answer in asked.items()} == {
            "path": 403,
            "predict": 403,
            "nonce": 400,
            "capsule": 400,
            "chunked": 400,
            "type": 415,
            "whole": 200,
            "parts": 200,
        }
        for name, answer in asked.items():
            scene.others[f"plain {name}"] = answer.content + str(answer.headers).encode()


SEALED = {"content-type": "message/ohttp-req"}
CHUNKED = {"content-type": "message/ohttp-chunked-req"}


def broken_chunks(config: KeyConfig) -> bytes:
    """A chunked request that opens, and is no Binary HTTP inside."""
    sealer = chunked.RequestSealer(config)
    return sealer.begin() + sealer.seal(ALL) + sealer.seal(ALL, final=True)


def unknown_methods(scene: Scene) -> None:
    """A sealed request whose parts are canaries: method, authority, path, header names."""
    config = parse_key_configs(httpx.get(f"{scene.plain}/.well-known/ohttp-gateway").content)[0]
    headers = ((b"date", C["header"].encode()), (C["header"].encode(), b"x"))
    request = bhttp.Request(b"GET", b"https", C["path"].encode(), f"/{C['path']}".encode(), headers, ALL)
    raw = bhttp.render_request(request)
    answer = httpx.post(
        f"{scene.plain}/.well-known/ohttp-gateway", content=seal_request(config, raw)[0], headers=SEALED
    )
    scene.others["a bad date"] = answer.content


def grpc_requests(scene: Scene) -> None:
    """gRPC: predictions, Open Inference Protocol's names, metadata, management; under the attested key."""
    import ssl

    for port, service in (("grpc_port", INFERENCE_SERVICE), ("grpc_management_port", MANAGEMENT_SERVICE)):
        number = scene.flags[f"serve.{port}"]
        root = ssl.get_server_certificate(("127.0.0.1", number)).encode()
        metadata = (("x-private", C["header"]), ("authorization", f"Bearer {C['token']}"))
        with grpc.secure_channel(f"127.0.0.1:{number}", grpc.ssl_channel_credentials(root)) as channel:
            stub = Stub(channel, service)
            calls = (
                [
                    lambda stub=stub: stub.Predictions(predictions("own", body=C["body"].encode())),
                    lambda stub=stub: stub.Predictions(predictions("own", body=b"raise")),
                    lambda stub=stub: stub.Predictions(predictions(C["model"], body=b"x")),
                    lambda stub=stub, metadata=metadata: stub.Predictions(
                        predictions("own", body=b"x"), metadata=metadata
                    ),
                ]
                if service == INFERENCE_SERVICE
                else [
                    lambda stub=stub, metadata=metadata: stub.RegisterModel(
                        management("RegisterModelRequest", url=f"https://{C['model']}/x.mar"),
                        metadata=metadata,
                    ),
                    lambda stub=stub: stub.DescribeModel(
                        management("DescribeModelRequest", model_name=C["model"])
                    ),
                ]
            )
            for call in calls:
                with suppress(grpc.RpcError):
                    call()


def management_requests(scene: Scene) -> None:
    """Management: models, URLs and tokens that are canaries, with its token and without."""
    token = json.loads(Path(scene.flags["serve.key_file"]).read_text())["management"]["key"]
    url = f"https://127.0.0.1:{scene.flags['serve.management_port']}"
    with httpx.Client(verify=False, base_url=url, timeout=60) as http:
        for bearer in (token, C["token"]):
            headers = {"authorization": f"Bearer {bearer}"}
            for name in (C["model"], f"https%3A%2F%2F{C['model']}%2Fx.mar", f"..%2F{C['path']}", "own.mar"):
                answer = http.post(f"/models?url={name}&handler={C['file']}", headers=headers)
                assert answer.status_code >= 400
            http.delete(f"/models/{C['model']}", headers=headers)
            http.get(f"/models/{C['model']}/{C['path']}?customized=true", headers=headers)
            http.put(f"/models/own?min_worker={C['query']}", headers=headers)
            http.post(f"/models?{C['query']}", content=ALL, headers=headers)
    scene.others["management token"] = b""


def broker_and_verifier_requests(scene: Scene) -> None:
    """The broker's and the verifier's doors: paths, bodies and credentials that are canaries."""
    broker = scene.flags["serve.broker"]
    with httpx.Client(verify=False, timeout=30, headers={"authorization": f"Bearer {C['token']}"}) as http:
        http.get(f"{broker}/kbs/v0/resource/{C['path']}/{C['path']}/1")
        http.post(f"{broker}/kbs/v0/auth", content=f'{{"version": "{C["json"]}"')
        http.post(f"{broker}/kbs/v0/auth", json={"version": C["json"], "tee": C["json"]})
        http.post(f"{broker}/kbs/v0/attest", json={"tee-pubkey": C["json"], "tee-evidence": C["json"]})
        http.put(f"{broker}/kbs/v0/resource/a/b/{C['path']}", content=ALL)
        for nonce in (C["nonce"], "A" * 43):
            http.post(f"{scene.verifier}/v1/verdict?nonce={nonce}", content=f'{{"evidence": "{C["json"]}"}}')
        http.post(f"{scene.verifier}/v1/verdict?nonce={'A' * 43}", content=ALL)
        http.get(f"{scene.verifier}/{C['path']}")


def proxy_requests(scene: Scene) -> None:
    """The local proxy: what passes, what fails inside, a page that may not, a caller that leaves."""
    with httpx.Client(base_url=scene.proxy, timeout=60, headers={"x-private": C["header"]}) as http:
        answer = http.post(f"/predictions/own?q={C['query']}", content=C["body"])
        assert answer.status_code == 200
        http.post("/predictions/own", content="raise", headers={"content-type": "text/plain"})
        http.get(f"/{C['path']}")
        assert http.get("/ping", headers={"origin": f"https://{C['header']}"}).status_code == 403
        assert http.get("/ping", headers={"host": C["header"]}).status_code == 403

        def leaves() -> Iterator[bytes]:
            yield ALL
            raise ZeroDivisionError

        with suppress(ZeroDivisionError):
            http.post("/predictions/own", content=leaves())


PROBES = (
    sealed_requests,
    rest_requests,
    plain_requests,
    unknown_methods,
    grpc_requests,
    management_requests,
    broker_and_verifier_requests,
    proxy_requests,
)


# What others have seen.


def test_what_others_get(scene: Scene) -> None:
    """Logs, spans, metrics, command lines, environments, answers in the clear: no canary in any encoding."""
    assert scene.others["stderr"].count(b'"event"') > 5
    assert scene.others["spans"].count(b"inference") > 3
    assert b"cloister_requests_total" in scene.others["metrics"]
    assert any(name.endswith("/environ") and content for name, content in scene.others.items())
    allowed = {"its own error, without the handler's text": {"query"}}
    found = {
        name: kinds
        for name, content in scene.others.items()
        if (kinds := set(leaks(content)) - allowed.get(name, set()))
    }
    assert found == {}


def test_what_is_on_disk(scene: Scene) -> None:
    """Logs of broker, proxy and verifier, decisions, databases, the store: no canary in any file."""
    files = [path for path in scene.world.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    names = {path.name for path in files}
    assert {"broker.log", "proxy.log", "proxy.out", "log", "decisions.jsonl"} <= names
    assert (scene.world.folder / "decisions.jsonl").stat().st_size > 200
    found = {str(path): kinds for path in files if (kinds := leaks(path.read_bytes()))}
    assert found == {}
    assert not [path for path in files if leaks(str(path))]


def test_credentials_are_nowhere(scene: Scene) -> None:
    """An API key that was used is in no log, span, metric or file; only its hash is kept."""
    seen = dict(scene.others)
    for path in scene.world.folder.rglob("*"):
        if path.is_file():
            seen[str(path)] = path.read_bytes()
    raw = scene.key.encode()
    assert [name for name, content in seen.items() if raw in content] == []


def test_handler_failures_are_known_by_fingerprint(scene: Scene) -> None:
    """What the caller of a failed request is told is found again in the log, and nothing else of it."""
    message = json.loads(scene.others["its own error, without the handler's text"])["message"]
    mark = message.split("fingerprint ")[1].rstrip(")")
    lines = [json.loads(line) for line in scene.others["stderr"].decode().splitlines() if mark in line]
    assert lines
    assert lines[0]["event"] == "handler failed"
    assert set(lines[0]) == {"event", "model", "version", "fingerprint", "times", "level", "timestamp"}


def test_nothing_is_left_in_memory_file_systems(scene: Scene) -> None:
    """After the stop the server's folder in memory is empty."""
    left = [path for path in scene.world.memory.rglob("*") if path.is_file() and leaks(path.read_bytes())]
    assert [path for path in left if "talk" not in path.name and "src-" not in str(path)] == []


def in_group(pid: int) -> bool:
    """Whether a process's files below /proc belong to its group: so they do as long as it may be dumped."""
    return Path(f"/proc/{pid}/environ").stat().st_gid == GROUP


def children(pid: int) -> list[int]:
    """All processes that a process has started, whichever of its threads it was."""
    lists = [task.joinpath("children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return [int(child) for text in lists for child in text.split()]


def core_limit(pid: int) -> str:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in lines if line.startswith("Max core file size")).split()[4]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start a process in another group")
def test_no_dumps(tmp_path: Path) -> None:
    """Core, frontends and workers may not be dumped; their crashes leave no core and no word of a request."""
    control = subprocess.Popen(["sleep", "60"], group=GROUP, preexec_fn=allow_dumps)
    time.sleep(0.2)
    assert in_group(control.pid)
    assert core_limit(control.pid) != "0"
    control.kill()
    control.wait()
    environment = {"PYTHONFAULTHANDLER": "1"}
    with make_world(tmp_path, **{"serve.frontends": 2}) as world:
        with Server(world.flags, environment=environment, **spawn(world, "crash")) as server:
            server.wait_ready()
            pids = [server.pid, *children(server.pid)]
            assert len(pids) >= 4
            with world.client(server.url) as client:
                client.predict("own", C["body"])
                for pid in pids:
                    assert not in_group(pid)
                    assert core_limit(pid) == "0"
                for pid in pids[1:]:
                    os.kill(pid, signal.SIGSEGV)
                    deadline = time.monotonic() + 30
                    while True:
                        with suppress(CloisterError):
                            client.predict("own", C["body"])
                            break
                        assert time.monotonic() < deadline
            os.kill(server.pid, signal.SIGSEGV)
            assert server.finish() == -signal.SIGSEGV
        assert "Segmentation fault" in server.stderr
        assert leaks(server.stdout + server.stderr) == []
        assert list((world.folder / "crash").iterdir()) == []
