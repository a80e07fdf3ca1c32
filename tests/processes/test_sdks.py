"""Other people's SDKs against a protected server: over the sealing transport, or through the local proxy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import numpy as np
import openai
import pytest
from tritonclient import http as triton

import cloister
from cloister.attest.appraisal import ReferenceValues
from cloister.attest.simulated import SimulatedPlatform
from tests.processes.owner import seal_handler
from tests.processes.server import Server
from tests.processes.test_protected import World, make_world

CHAT = """
import json

def handle(data, context):
    if data is None:
        return None
    path = context.get_request_header(0, "url_path")
    asked = data[0].get("body") or data[0].get("data")
    if isinstance(asked, (bytes, bytearray)):
        asked = json.loads(bytes(asked))
    if path == "v1/models":
        model = {"id": "chat", "object": "model", "created": 1, "owned_by": "me"}
        return [{"object": "list", "data": [model]}]
    if path != "v1/chat/completions":
        context.set_response_status(404, "no such path", 0)
        return [{"error": {"message": "no such path: " + str(path)}}]
    words = ("you said: " + asked["messages"][-1]["content"]).split(" ")
    if not asked.get("stream"):
        message = {"role": "assistant", "content": " ".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": len(words), "total_tokens": 1 + len(words)}
        return [{"id": "c1", "object": "chat.completion", "created": 1, "model": "chat",
                 "choices": [choice], "usage": usage}]
    context.set_response_content_type(0, "text/event-stream")
    for number, word in enumerate(words):
        delta = {"content": word if number == 0 else " " + word}
        chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "chat",
                 "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        context.send_part(0, "data: " + json.dumps(chunk) + "\\n\\n")
    return ["data: [DONE]\\n\\n"]
"""
TENSORS = """
def handle(data, context):
    if data is None:
        return None
    return [{"doubled": row["body"].arrays["numbers"] * 2} for row in data]
"""


@dataclass
class Service:
    """A running server, and what callers need."""

    world: World
    url: str
    references: ReferenceValues
    roots: list[Any]

    def sync_http(self, library: str) -> Any:
        """A client of httpx or httpx2 whose requests are sealed."""
        trust: Any = {"reference_values": self.references, "roots": self.roots}
        if library == "httpx":
            return httpx.Client(transport=cloister.transport(self.url, **trust), timeout=30)
        return httpx2.Client(transport=cloister.httpx2_transport(self.url, **trust), timeout=30)

    def async_http(self, library: str) -> Any:
        """The same for an event loop."""
        trust: Any = {"reference_values": self.references, "roots": self.roots}
        if library == "httpx":
            return httpx.AsyncClient(transport=cloister.async_transport(self.url, **trust), timeout=30)
        return httpx2.AsyncClient(transport=cloister.async_httpx2_transport(self.url, **trust), timeout=30)

    def async_transport(self) -> httpx.AsyncBaseTransport:
        """What is below it."""
        return cloister.async_transport(self.url, reference_values=self.references, roots=self.roots)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A protected server with a model that chats, and one that computes with tensors."""
    with make_world(tmp_path_factory.mktemp("sdks")) as world:
        seal_handler(world, "chat", CHAT)
        seal_handler(world, "tensors", TENSORS)
        with Server(world.flags) as server:
            server.wait_ready()
            references = ReferenceValues.from_toml(world.reference_values(world.flags))
            roots = [SimulatedPlatform.load(world.folder / "platform").root]
            yield Service(world, server.url, references, roots)


@pytest.fixture(scope="module")
def proxy(service: Service) -> Iterator[str]:
    """A local proxy to it; its address."""
    values = service.world.folder / "values.toml"
    values.write_text(service.world.reference_values(service.world.flags))
    command = [str(Path(sys.executable).parent / "cloister"), "proxy", service.url, "-r", str(values)]
    command += ["--simulated-root", str(service.world.folder / "platform" / "root.pem")]
    with subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield next(word for word in line.split() if word.startswith("http://"))
        process.terminate()


MESSAGES: Any = [{"role": "user", "content": "the patient sleeps well"}]


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_openai(service: Service, library: str) -> None:
    """Chat completions of the openai package, whole and streamed, under the path of a model's version."""
    base = f"{service.url}/predictions/chat/1.0/v1"
    with service.sync_http(library) as http:
        sdk = openai.OpenAI(base_url=base, api_key="sk-any", http_client=http, max_retries=0)
        whole = sdk.chat.completions.create(model="chat", messages=MESSAGES)
        assert whole.choices[0].message.content == "you said: the patient sleeps well"
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 6
        stream = sdk.chat.completions.create(model="chat", messages=MESSAGES, stream=True)
        parts = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert parts[:2] == ["you", " said:"]
        assert "".join(parts) == "you said: the patient sleeps well"
        assert [model.id for model in sdk.models.list()] == ["chat"]
        with pytest.raises(openai.NotFoundError, match="no such path: v1/embeddings"):
            sdk.embeddings.create(model="chat", input="x")


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_openai_in_an_event_loop(service: Service, library: str) -> None:
    """The same with AsyncOpenAI, several at once."""

    async def story() -> None:
        async with service.async_http(library) as http:
            sdk = openai.AsyncOpenAI(
                base_url=f"{service.url}/predictions/chat/1.0/v1",
                api_key="sk-any",
                http_client=http,
                max_retries=0,
            )

            async def ask(number: int) -> None:
                messages: Any = [{"role": "user", "content": str(number)}]
                stream = await sdk.chat.completions.create(model="chat", messages=messages, stream=True)
                text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
                assert text == f"you said: {number}"

            async with anyio.create_task_group() as group:
                for number in range(8):
                    group.start_soon(ask, number)

    anyio.run(story)


def test_openai_through_the_proxy(proxy: str) -> None:
    """An SDK that takes no transport needs its address changed, and nothing else."""
    with openai.OpenAI(base_url=f"{proxy}/predictions/chat/1.0/v1", api_key="sk-any") as sdk:
        stream = sdk.chat.completions.create(model="chat", messages=MESSAGES, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" for chunk in stream]).endswith("sleeps well")


@pytest.mark.parametrize("binary", [False, True])
def test_tritonclient_through_the_proxy(proxy: str, binary: bool) -> None:
    """NVIDIA's client, which brings its own HTTP: tensors as JSON and as bytes, metadata, errors."""
    numbers = np.arange(12, dtype=np.float32).reshape(3, 4)
    wanted = triton.InferInput("numbers", [3, 4], "FP32")
    wanted.set_data_from_numpy(numbers, binary_data=binary)
    output = triton.InferRequestedOutput("doubled", binary_data=binary)
    with triton.InferenceServerClient(proxy.removeprefix("http://")) as sdk:
        assert sdk.is_server_live()
        assert sdk.is_model_ready("tensors")
        answer = sdk.infer("tensors", [wanted], outputs=[output])
        np.testing.assert_array_equal(answer.as_numpy("doubled"), numbers * 2)
        with pytest.raises(triton.InferenceServerException, match="unknown"):
            sdk.infer("unknown", [wanted])


def test_arrays_in_arrays_out(service: Service) -> None:
    """This package's own client does the same in one call, under seal."""
    numbers = np.arange(6, dtype=np.float64).reshape(2, 3)
    with cloister.Client(service.url, reference_values=service.references, roots=service.roots) as client:
        np.testing.assert_array_equal(client.infer("tensors", {"numbers": numbers})["doubled"], numbers * 2)
        assert client.metadata("tensors")["name"] == "tensors"


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_bodies_in_parts(service: Service, library: str) -> None:
    """A body that comes in parts is sealed as it comes, with either library."""
    question = {"messages": [{"role": "user", "content": "parts"}]}
    raw = json.dumps(question).encode()
    url = f"{service.url}/predictions/chat/1.0/v1/chat/completions"
    headers = {"content-type": "application/json"}
    with service.sync_http(library) as http:
        answer = http.post(url, content=iter([raw[:5], raw[5:]]), headers=headers).json()
    assert answer["choices"][0]["message"]["content"] == "you said: parts"

    async def story() -> None:
        async def parts() -> Any:
            yield raw[:5]
            yield raw[5:]

        async with service.async_http(library) as http:
            found = (await http.post(url, content=parts(), headers=headers)).json()
            assert found["choices"][0]["message"]["content"] == "you said: parts"

    anyio.run(story)


def kserve_request(numbers: Any) -> dict[str, Any]:
    """What KServe's client sends."""
    data = numbers.ravel().tolist()
    return {"inputs": [{"name": "numbers", "shape": list(numbers.shape), "datatype": "FP32", "data": data}]}


@pytest.mark.parametrize("way", ["transport", "proxy"])
def test_kserve_protocol(service: Service, proxy: str, way: str) -> None:
    """KServe's REST protocol by plain httpx, sealed or through the proxy: health, metadata, inference."""
    numbers = np.arange(4, dtype=np.float32).reshape(2, 2)

    async def story() -> None:
        transport = service.async_transport() if way == "transport" else None
        base = service.url if way == "transport" else proxy
        async with httpx.AsyncClient(transport=transport, base_url=base, timeout=30) as http:
            assert (await http.get("/v2/health/ready")).status_code == 200
            assert (await http.get("/v2/models/tensors")).json()["name"] == "tensors"
            answer = await http.post("/v2/models/tensors/infer", json=kserve_request(numbers))
            (tensor,) = answer.json()["outputs"]
            assert (tensor["name"], tensor["data"]) == ("doubled", (numbers * 2).ravel().tolist())

    anyio.run(story)


@pytest.mark.parametrize("way", ["transport", "proxy"])
def test_kserve_client(service: Service, proxy: str, way: str) -> None:
    """KServe's own client (a heavy package: skipped where it is not installed), by HTTP and without gRPC."""
    kserve = pytest.importorskip("kserve")
    numbers = np.arange(4, dtype=np.float32).reshape(2, 2)

    async def story() -> None:
        transport = service.async_transport() if way == "transport" else None
        base = service.url if way == "transport" else proxy
        config = kserve.RESTConfig(transport=transport, protocol="v2", retries=1)
        client = kserve.InferenceRESTClient(config)
        wanted = kserve.InferInput("numbers", list(numbers.shape), "FP32")
        wanted.set_data_from_numpy(numbers, binary_data=False)
        request = kserve.InferRequest(model_name="tensors", infer_inputs=[wanted])
        assert await client.is_server_ready(base)
        assert await client.is_model_ready(base, model_name="tensors")
        answer = await client.infer(base, request, model_name="tensors")
        found = answer.outputs[0]
        assert found.name == "doubled"
        assert json.dumps(found.as_numpy().tolist()) == json.dumps((numbers * 2).tolist())
        await client.close()

    anyio.run(story)
