"""TorchServe's HTTP surface, asked of a real server: each route with its status, body and headers."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes.server import pack
from tests.serve.torchserve.launch import NOOP, TorchServe

SHOW = """
import json

class Handler:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        if data is None:
            return None
        answers = []
        for index, row in enumerate(data):
            names = ("explain", "url_path", "x-mine")
            found = {name: context.get_request_header(index, name) for name in names}
            found["fields"] = sorted(row)
            answers.append(json.dumps(found))
        return answers
"""
MIXED = """
import time

def kind(context, index):
    if context.get_request_header(index, "describe") == "True":
        return "describe"
    return "explain" if context.get_request_header(index, "explain") == "True" else "predict"

def handle(data, context):
    if data is None:
        return None
    time.sleep(0.05)
    kinds = [kind(context, index) for index in range(len(data))]
    if len(set(kinds)) > 1:
        raise RuntimeError("explanations among predictions")
    return [{"kind": "describe"}] if kinds == ["describe"] else [kinds] * len(data)
"""
DESCRIBED = """
def handle(data, context):
    if data is None:
        return None
    if context.get_request_header(0, "describe") == "True":
        return [{"data1": "1", "data2": "2"}]
    return ["OK"] * len(data)
"""
SLOW = """
import time

def handle(data, context):
    if data is None:
        return None
    time.sleep(float(data[0].get("body") or 0))
    return ["slept"] * len(data)
"""
MEASURING = """
from ts.torch_handler.base_handler import BaseHandler

class Measuring(BaseHandler):
    def initialize(self, context):
        self.context = context
        self.initialized = True
        self.manifest = context.manifest

    def preprocess(self, data):
        self.context.metrics.add_counter("Seen", len(data))
        self.context.metrics.add_size("Size", 2, unit="B")
        return data

    def inference(self, data):
        return data

    def postprocess(self, data):
        return ["OK"] * len(data)
"""
NO_MODEL = "ModelNotFoundException"
NO_VERSION = "ModelVersionNotFoundException"
NO_RESOURCE = "Requested resource is not found, please refer to API document."
NO_WORKFLOWS = (501, "NotImplementedException", "workflows are not supported")
NO_METHOD = "Requested method is not allowed, please refer to API document."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """A server with the model API on, without tokens, and with one model from its start."""
    folder = tmp_path_factory.mktemp("torchserve")
    (folder / "store").mkdir()
    for name, version, source in (
        ("noop", "1.11", NOOP),
        ("noop", "1.2.1", NOOP),
        ("show", "1.0", SHOW),
        ("described", "1.0", DESCRIBED),
        ("slow", "1.0", SLOW),
        ("mixed", "1.0", MIXED),
        ("measuring", "1.0", MEASURING),
        ("broken", "1.0", "import no_such_module\n"),
    ):
        made = pack(folder, name, source, version=version)
        shutil.move(made, folder / "store" / (f"{name}.mar" if version != "1.2.1" else "noop_v2.mar"))
    properties = {
        "load_models": "noop.mar,show=show.mar",
        "default_workers_per_model": 1,
        "max_request_size": 100_000,
        "unregister_model_timeout": 1,
        "models": '{"noop": {"1.11": {"batchSize": 4, "maxBatchDelay": 50, "minWorkers": 1}}}',
    }
    flags = ("--disable-token-auth", "--enable-model-api")
    with TorchServe(folder, properties, flags) as running:
        yield running


def error_of(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, type and message of an error; all three members have to be there."""
    document = answer.json()
    assert set(document) == {"code", "type", "message"}
    assert document["code"] == answer.status_code
    return answer.status_code, document["type"], document["message"]


def register(server: TorchServe, query: str) -> Any:
    """Register a model; its answer's ``status``."""
    answer = server.manage("POST", f"/models?{query}")
    assert answer.status_code == 200, answer.text
    return answer.json()["status"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predictions/noop"),
        ("PUT", "/predictions/noop"),
        ("GET", "/predictions/noop"),
        ("POST", "/predictions/noop/1.11"),
        ("POST", "/predictions/noop/1.11/a/b"),
        ("POST", "/predictions/noop/"),
        ("POST", "/explanations/noop"),
        ("POST", "/explanations/noop/1.11"),
        ("POST", "/invocations?model_name=noop"),
        ("POST", "/models/noop/invoke"),
        ("GET", "/noop/predict?data=test"),
        ("POST", "/noop/1.11/predict"),
        ("POST", "/v1/models/noop:predict"),
        ("POST", "/v1/models/noop:explain"),
    ],
)
def test_routes_of_predictions(server: TorchServe, method: str, path: str) -> None:
    """Every way to ask for a prediction or an explanation gives the model's answer."""
    answer = server.ask("inference", method, path, content=b"test")
    assert (answer.status_code, answer.text) == (200, "OK")
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-.*", answer.headers["x-request-id"])
    assert answer.headers["cache-control"] == "no-cache; no-store, must-revalidate, private"
    assert answer.headers["pragma"] == "no-cache"
    assert answer.headers["expires"] == "Thu, 01 Jan 1970 00:00:00 UTC"


def test_what_a_handler_is_told(server: TorchServe) -> None:
    """A handler sees that it is to explain, and what follows the version; a caller cannot pretend either."""
    plain = server.predict("/predictions/show", content=b"x", headers={"x-mine": "1"}).json()
    assert plain == {"explain": "False", "url_path": "", "x-mine": "1", "fields": ["body"]}
    assert server.predict("/explanations/show", content=b"x").json()["explain"] == "True"
    assert server.predict("/predictions/show/1.0/a/b", content=b"x").json()["url_path"] == "a/b"
    assert server.predict("/predictions/show/1.0/", content=b"x").json()["url_path"] == ""
    for path in ("/predictions/show/1.0/a", "/predictions/show", "/v1/models/show:predict"):
        pretended = server.predict(path, content=b"x", headers={"explain": "True", "describe": "True"})
        assert pretended.json()["explain"] == "False"
    fields = server.ask("inference", "GET", "/show/predict?data=test&other=1").json()["fields"]
    assert {"data", "other"} <= set(fields)


def test_a_head_is_a_prediction_without_its_answer(server: TorchServe) -> None:
    """HEAD asks the model, as GET does, and gets the headers of the answer."""
    answer = server.ask("inference", "HEAD", "/predictions/noop")
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "2", b"")
    assert server.ask("inference", "HEAD", "/predictions/Nothing").status_code == 404


def test_an_explanation_is_alone(server: TorchServe) -> None:
    """Explanations and descriptions are in no batch with predictions, whose handler would mix them up."""
    register = "/models?url=mixed.mar&initial_workers=1&batch_size=8&max_batch_delay=50"
    assert server.manage("POST", register).status_code == 200
    try:
        asked = [
            *[("inference", "POST", "/predictions/mixed")] * 4,
            ("inference", "POST", "/explanations/mixed"),
            ("inference", "POST", "/v1/models/mixed:explain"),
            ("inference", "POST", "/v2/models/mixed/explain"),
            ("management", "GET", "/models/mixed?customized=true"),
        ] * 4
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = list(pool.map(lambda item: server.ask(*item, content=b"x"), asked))
        sizes = set()
        for (_, _, path), answer in zip(asked, answers, strict=True):
            assert answer.status_code == 200, answer.text
            if "customized" in path:
                assert answer.json()[0]["customizedMetadata"] == {"kind": "describe"}
                continue
            kinds = answer.json()
            assert set(kinds) == {"explain" if "explain" in path or "explanations" in path else "predict"}
            sizes.add(len(kinds))
            assert len(kinds) == 1 or "predictions" in path
        assert max(sizes) > 1  # predictions did share batches meanwhile
    finally:
        server.manage("DELETE", "/models/mixed")


def test_invocations_by_form(server: TorchServe) -> None:
    """The model's name may stand in a form; without any name, and two models, it is missing."""
    answer = server.predict("/invocations", data={"model_name": "noop"}, files={"data": b"test"})
    assert answer.text == "OK"
    missing = error_of(server.predict("/invocations", content=b"x"))
    assert missing == (400, "BadRequestException", "Parameter model_name is required.")


@pytest.mark.parametrize(
    ("api", "method", "path", "expected"),
    [
        ("inference", "GET", "/", (405, "MethodNotAllowedException", NO_METHOD)),
        ("inference", "GET", "/InvalidUrl", (404, "ResourceNotFoundException", NO_RESOURCE)),
        ("inference", "GET", "/predictions", (404, "ResourceNotFoundException", NO_RESOURCE)),
        ("inference", "GET", "/models", (404, "ResourceNotFoundException", NO_RESOURCE)),
        ("inference", "GET", "/metrics", (404, "ResourceNotFoundException", NO_RESOURCE)),
        ("inference", "GET", "/predictions/Nothing", (404, NO_MODEL, "Model not found: Nothing")),
        ("inference", "OPTIONS", "/predictions/Nothing", (404, NO_MODEL, "Model not found: Nothing")),
        (
            "inference", "GET", "/predictions/noop/1.3.1",
            (404, NO_VERSION, "Model version: 1.3.1 does not exist for model: noop"),
        ),
        ("inference", "POST", "/wfpredict/flow", NO_WORKFLOWS),
        ("management", "GET", "/InvalidUrl", (404, "ResourceNotFoundException", NO_RESOURCE)),
        ("management", "GET", "/predictions/noop", (404, "ResourceNotFoundException", NO_RESOURCE)),
        ("management", "PUT", "/models", (405, "MethodNotAllowedException", NO_METHOD)),
        ("management", "POST", "/models/noop", (405, "MethodNotAllowedException", NO_METHOD)),
        ("management", "GET", "/models/Nothing", (404, NO_MODEL, "Model not found: Nothing")),
        ("management", "GET", "/models/Nothing/all", (404, NO_MODEL, "Model not found: Nothing")),
        (
            "management", "GET", "/models/noop/1.3.1",
            (404, NO_VERSION, "Model version: 1.3.1 does not exist for model: noop"),
        ),
        ("management", "PUT", "/models/fake", (404, NO_MODEL, "Model not found: fake")),
        ("management", "DELETE", "/models/fake", (404, NO_MODEL, "Model not found: fake")),
        (
            "management", "DELETE", "/models/noop/1.3.1",
            (404, NO_VERSION, "Model version: 1.3.1 does not exist for model: noop"),
        ),
        (
            "management", "PUT", "/models/noop/1.3.1?min_worker=2",
            (404, NO_VERSION, "Model version: 1.3.1 does not exist for model: noop"),
        ),
        (
            "management", "PUT", "/models/noop/9/set-default",
            (404, NO_VERSION, "Model version 9 does not exist for model noop"),
        ),
        ("management", "PUT", "/models/fake/1.0/set-default", (404, NO_MODEL, "Model not found: fake")),
        (
            "management", "PUT", "/models/noop?min_worker=2&max_worker=1",
            (400, "BadRequestException", "max_worker cannot be less than min_worker."),
        ),
        ("management", "POST", "/models", (400, "BadRequestException", "Parameter url is required.")),
        ("management", "POST", "/models?url=", (404, NO_MODEL, "empty url")),
        (
            "management", "POST", "/models?url=..%2Ffake.mar",
            (404, NO_MODEL, "Relative path is not allowed in url: ../fake.mar"),
        ),
        ("management", "POST", "/models?url=absent.mar", (404, NO_MODEL, "Model not found at: absent.mar")),
        (
            "management", "POST", "/models?url=noop.mar&runtime=python4",
            (400, "BadRequestException", "Invalid RuntimeType value: python4"),
        ),
        (
            "management", "POST", "/models?url=http%3A%2F%2Flocalhost%3A18888%2Ffake.mar",
            (404, NO_MODEL, "Given URL http://localhost:18888/fake.mar does not match any allowed URL(s)"),
        ),
        (
            "management", "POST", "/models?url=noop.mar",
            (409, "ConflictStatusException", "Model version 1.11 is already registered for model noop"),
        ),
        ("management", "POST", "/workflows?url=a.war", NO_WORKFLOWS),
        ("management", "GET", "/token?type=inference", (404, "ResourceNotFoundException", NO_RESOURCE)),
        ("metrics", "GET", "/models", (404, "ResourceNotFoundException", NO_RESOURCE)),
    ],
)  # fmt: skip
def test_errors(server: TorchServe, api: str, method: str, path: str, expected: tuple[int, str, str]) -> None:
    """Each refusal has TorchServe's status, type and words."""
    assert error_of(server.ask(api, method, path)) == expected


def test_local_files_cannot_be_named(server: TorchServe, tmp_path: Path) -> None:
    """A path or a file URL outside of the store is as good as nothing (CVE-2023-43654)."""
    outside = shutil.copy(server.store / "noop.mar", tmp_path / "outside.mar")
    for url in (str(outside), f"file://{outside}", "sub/noop.mar"):
        answer = server.manage("POST", f"/models?url={url}&model_name=stolen")
        assert (answer.status_code, answer.json()["type"]) == (404, NO_MODEL), url


def test_body_over_the_limit(server: TorchServe) -> None:
    """A body over max_request_size is 413."""
    assert server.predict("/predictions/noop", content=b"x" * 100_000).status_code == 200
    assert server.predict("/predictions/noop", content=b"x" * 100_001).status_code == 413


def test_ping(server: TorchServe) -> None:
    """Health is as TorchServe writes it, indentation included."""
    assert server.ask("inference", "GET", "/ping").text == '{\n  "status": "Healthy"\n}\n'


def test_descriptions(server: TorchServe) -> None:
    """OPTIONS gives an OpenAPI document of the API, and of one model."""
    inference = server.ask("inference", "OPTIONS", "/").json()
    assert inference["openapi"] == "3.0.1"
    assert {"/ping", "/predictions/{model_name}", "/api-description"} <= set(inference["paths"])
    assert server.ask("inference", "GET", "/api-description").json() == inference
    management = server.manage("OPTIONS", "/").json()
    assert {"get", "put", "delete"} <= set(management["paths"]["/models/{model_name}"])
    assert list(server.ask("metrics", "OPTIONS", "/").json()["paths"]) == ["/metrics"]
    assert "noop" in server.ask("inference", "OPTIONS", "/predictions/noop").json()["info"]["title"]
    assert "noop" in server.manage("OPTIONS", "/models/noop").json()["info"]["title"]


def test_life_of_a_model(server: TorchServe) -> None:
    """Registered without workers, scaled, asked, chosen as default, and removed: each with its words."""
    said = register(server, "url=noop.mar&model_name=life&initial_workers=0")
    assert said == (
        'Model "life" Version: 1.11 registered with 0 initial workers.'
        " Use scale workers API to add workers for the model."
    )
    status, kind, message = error_of(server.predict("/predictions/life", content=b"x"))
    assert (status, kind) == (503, "ServiceUnavailableException")
    assert message.startswith('Model "life" has no worker to serve inference request.')
    status, kind, message = error_of(server.manage("GET", "/models/life?customized=true"))
    assert (status, message.split(".")[0]) == (503, 'Model "life" has no worker to serve describe request')
    scaled = server.manage("PUT", "/models/life?min_worker=2&synchronous=true")
    assert (scaled.status_code, scaled.json()["status"]) == (200, "Workers scaled to 2 for model: life")
    assert server.predict("/predictions/life", content=b"x").text == "OK"
    scaled = server.manage("PUT", "/models/life/1.11?min_worker=1&synchronous=true")
    assert scaled.json()["status"] == "Workers scaled to 1 for model: life, version: 1.11"
    later = server.manage("PUT", "/models/life?min_worker=1")
    assert (later.status_code, later.json()) == (202, {"status": "Processing worker updates..."})
    said = register(server, "url=noop_v2.mar&model_name=life&initial_workers=1&synchronous=true")
    assert said == 'Model "life" Version: 1.2.1 registered with 1 initial workers'
    refused = error_of(server.manage("DELETE", "/models/life"))
    assert refused == (403, "InvalidModelVersionException", "Cannot remove default version for model life")
    chosen = server.manage("PUT", "/models/life/1.2.1/set-default")
    assert chosen.json()["status"] == 'Default version successfully updated for model "life" to "1.2.1"'
    assert server.manage("GET", "/models/life").json()[0]["modelVersion"] == "1.2.1"
    versions = {facts["modelVersion"] for facts in server.manage("GET", "/models/life/all").json()}
    assert versions == {"1.11", "1.2.1"}
    for path in ("/models/life/1.11", "/models/life/?synchronous=true"):
        gone = server.manage("DELETE", path)
        assert (gone.status_code, gone.json()) == (200, {"status": 'Model "life" unregistered'})
    assert error_of(server.predict("/predictions/life", content=b"x"))[0] == 404


def test_a_model_that_is_busy_stays(server: TorchServe) -> None:
    """A model whose requests do not end in time is not unregistered, 408, and answers them."""
    register(server, "url=slow.mar&initial_workers=1")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            server.predict, "/predictions/slow", content=b"3", headers={"content-type": "text/plain"}
        )
        time.sleep(0.5)
        refused = error_of(server.manage("DELETE", "/models/slow"))
        assert refused == (408, "RequestTimeoutException", "Timed out while cleaning resources: slow")
        assert running.result().text == "slept"
    assert server.predict("/predictions/slow", content=b"0").text == "slept"
    assert server.manage("DELETE", "/models/slow").status_code == 200


def test_registered_in_the_background(server: TorchServe) -> None:
    """With synchronous=false the answer is 202 at once, and the workers come later."""
    answer = server.manage(
        "POST", "/models?url=noop.mar&model_name=later&initial_workers=1&synchronous=false"
    )
    assert (answer.status_code, answer.json()) == (202, {"status": "Processing worker updates..."})
    assert server.manage("PUT", "/models/later?min_worker=1&synchronous=true").status_code == 200
    assert server.predict("/predictions/later", content=b"x").text == "OK"
    server.manage("DELETE", "/models/later")


def test_registered_by_json(server: TorchServe) -> None:
    """A JSON body is taken for the query, single quotes included, as TorchServe's guide writes it."""
    body = "{'url':'noop.mar', 'model_name':'quoted', 'initial_workers':'1', 'synchronous':'true'}"
    answer = server.manage("POST", "/models", content=body, headers={"content-type": "application/json"})
    assert answer.json()["status"] == 'Model "quoted" Version: 1.11 registered with 1 initial workers'
    server.manage("DELETE", "/models/quoted")
    bad = server.manage("POST", "/models", content="[1", headers={"content-type": "application/json"})
    assert error_of(bad)[:2] == (400, "BadRequestException")


def test_workers_that_cannot_start(server: TorchServe) -> None:
    """A model whose workers fail is 500 and not registered; one that was there is 500 when it is scaled."""
    failed = error_of(server.manage("POST", "/models?url=broken.mar&initial_workers=1"))
    message = "Failed to start workers for model broken version: 1.0"
    assert failed == (500, "InternalServerException", message)
    assert server.manage("GET", "/models/broken").status_code == 404
    register(server, "url=broken.mar&initial_workers=0")
    failed = error_of(server.manage("PUT", "/models/broken?min_worker=1&synchronous=true"))
    assert failed[2] == "Failed to start workers for model broken version: null"
    assert server.ask("inference", "GET", "/ping").json() == {"status": "Unhealthy"}
    assert server.manage("DELETE", "/models/broken").status_code == 200
    assert server.ask("inference", "GET", "/ping").status_code == 200


def test_facts_of_a_model(server: TorchServe) -> None:
    """Describe gives TorchServe's members, with what config.properties says of the version."""
    (facts,) = server.manage("GET", "/models/noop").json()
    expected = {"modelName": "noop", "modelVersion": "1.11", "modelUrl": "noop.mar", "runtime": "python",
                "batchSize": 4, "maxBatchDelay": 50, "minWorkers": 1, "maxWorkers": 1, "responseTimeout": 120,
                "loadedAtStartup": True, "deviceType": "cpu", "stateful": False, "maxNumSequence": 0,
                "maxSequenceJobQueueSize": 0}  # fmt: skip
    assert expected.items() <= facts.items()
    (worker,) = facts["workers"]
    assert worker.keys() == {"id", "startTime", "status", "memoryUsage", "pid", "gpu", "gpuUsage"}
    assert (worker["status"], worker["gpu"]) == ("READY", False)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", worker["startTime"])
    assert facts["jobQueueStatus"] == {"remainingCapacity": 100, "pendingRequests": 0}


def test_what_a_handler_says_of_itself(server: TorchServe) -> None:
    """customized=true adds the handler's own description."""
    register(server, "url=described.mar&initial_workers=1")
    (facts,) = server.manage("GET", "/models/described/1.0?customized=true").json()
    assert facts["customizedMetadata"] == {"data1": "1", "data2": "2"}
    assert "customizedMetadata" not in server.manage("GET", "/models/described").json()[0]
    server.manage("DELETE", "/models/described")


def test_list_and_pages(server: TorchServe) -> None:
    """Names are sorted and come in pages; numbers that cannot be mean the default."""
    whole = {"models": [{"modelName": name, "modelUrl": f"{name}.mar"} for name in ("noop", "show")]}
    first = {"nextPageToken": "1", "models": whole["models"][:1]}
    for query, expected in (
        ("", whole),
        ("?limit=1", first),
        ("?limit=1&next_page_token=-1", first),
        ("?limit=-1", whole),
        ("?limit=&next_page_token=", whole),
        ("?next_page_token=12", {"models": []}),
    ):
        assert server.manage("GET", f"/models{query}").json() == expected, query
    assert server.manage("GET", "/v1/models/noop").json() == {"name": "noop", "ready": True}


@pytest.mark.parametrize(
    ("query", "field", "value"),
    [
        ("batch_size=8&max_batch_delay=7", "batchSize", 8),
        ("batch_size=dd&max_batch_delay=junk", "batchSize", 1),
        ("response_timeout=9&startup_timeout=30", "responseTimeout", 9),
        ("initial_workers=-1", "minWorkers", 0),
    ],
)
def test_parameters_of_a_registration(server: TorchServe, query: str, field: str, value: int) -> None:
    """What the call says reaches the model; what is no number is passed over."""
    register(server, f"url=noop.mar&model_name=given&initial_workers=0&{query}")
    assert server.manage("GET", "/models/given").json()[0][field] == value
    server.manage("DELETE", "/models/given")


def test_metrics(server: TorchServe) -> None:
    """TorchServe's metrics are there, in the form of its Java library, and can be picked by name."""
    server.predict("/predictions/noop", content=b"x")
    page = server.metrics()
    assert re.search(r'Requests2XX\{Level="Host",Hostname=".*",\} \d+\.\d+', page)
    host = r'hostname="[^"]+",\} \d+\.\d+'
    assert re.search(rf'ts_inference_requests_total\{{model_name="noop",model_version="default",{host}', page)
    for name in (
        "Requests4XX", "Requests5XX", "ts_inference_latency_microseconds", "ts_queue_latency_microseconds",
        "QueueTime", "WorkerLoadTime", "WorkerThreadTime", "CPUUtilization", "MemoryUsed", "MemoryAvailable",
        "MemoryUtilization", "DiskUsage", "DiskUtilization", "DiskAvailable",
    ):  # fmt: skip
        assert re.search(rf"^{name}\{{", page, re.MULTILINE), name
    for stage in ("request", "queue", "batch", "inference", "crypto"):
        assert f"cloister_{stage}_seconds_bucket{{" in page
    picked = server.metrics("?name[]=Requests2XX&name[]=QueueTime")
    assert set(re.findall(r"^(\w+)\{", picked, re.MULTILINE)) == {"Requests2XX", "QueueTime"}


def test_metrics_of_a_handler(server: TorchServe) -> None:
    """What a handler measures, and BaseHandler's own times, are on the page."""
    register(server, "url=measuring.mar&initial_workers=1")
    for _ in range(2):
        assert server.predict("/predictions/measuring", content=b"x").text == "OK"
    page = server.metrics()
    assert re.search(
        r'^Seen\{ModelName="measuring",Level="Model",Hostname="[^"]+",\} 2\.0$', page, re.MULTILINE
    ), page
    for name in ("HandlerTime", "PredictionTime", "Size"):
        assert re.search(rf'^{name}\{{ModelName="measuring",Level="Model",', page, re.MULTILINE), name
    server.manage("DELETE", "/models/measuring")


def test_responses_are_counted(server: TorchServe) -> None:
    """Each answer is counted once, by its class, whichever port and path it had."""

    def counts() -> list[float]:
        return [float(x) for x in re.findall(r"^Requests.XX\{.*\} (\S+)$", server.metrics(), re.MULTILINE)]

    before = counts()
    server.predict("/predictions/noop", content=b"x")
    server.predict("/explanations/noop", content=b"x")
    server.predict("/predictions/Nothing", content=b"x")
    server.predict("/wfpredict/x", content=b"x")
    after = counts()
    # The page itself is an answer too, counted when the next one is asked for.
    assert [b - a for a, b in zip(before, after, strict=True)] == [3, 1, 1]


def test_unsupported_key(server: TorchServe) -> None:
    """s3_sse_kms is refused in words."""
    status, _, message = error_of(server.manage("POST", "/models?url=noop.mar&s3_sse_kms=true"))
    assert status == 400
    assert "s3_sse_kms is not supported" in message


def test_the_log_has_no_content(server: TorchServe) -> None:
    """Each line of the log is JSON, and nothing that was asked is in it."""
    server.predict("/predictions/noop?canary=1", content=b"canary", headers={"x-canary": "canary"})
    lines = [line for line in server.stderr.splitlines() if line.startswith("{")]
    assert all(json.loads(line)["event"] for line in lines)
    assert "canary" not in server.stderr
