"""A model's serving settings, and which source wins."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.serve.model_config import ModelConfig, whole_parameter


def test_order_of_sources() -> None:
    """A call wins over the archive, that over config.properties, and that over the server's settings."""
    base = ModelConfig(batch_size=1, max_batch_delay_ms=1, response_timeout_s=1, startup_timeout_s=1)
    properties = {"batchSize": 2, "maxBatchDelay": 2, "responseTimeout": 2}
    archive = {"batchSize": 3, "maxBatchDelay": 3}
    merged = base.merged(properties=properties, archive=archive, parameters={"batch_size": "4"})
    found = (
        merged.batch_size,
        merged.max_batch_delay_ms,
        merged.response_timeout_s,
        merged.startup_timeout_s,
    )
    assert found == (4, 3, 2.0, 1)
    assert ModelConfig.from_yaml(archive).batch_size == 3
    assert ModelConfig.from_properties(properties, base).response_timeout_s == 2.0
    assert base.with_parameters({"handler": "x:y", "runtime": "python3"}).handler == "x:y"


@pytest.mark.parametrize(
    ("archive", "asked", "expected"),
    [
        ({"minWorkers": 2, "maxWorkers": 4}, "1", (2, 4)),
        ({"minWorkers": 2, "maxWorkers": 1}, "1", (1, 1)),
        ({"minWorkers": 2}, "1", (1, 1)),
        ({"maxWorkers": 2}, None, (1, 1)),
        ({}, "0", (0, 0)),
        ({}, "-1", (1, 1)),
        ({}, None, (1, 1)),
    ],
)
def test_workers(archive: dict[str, int], asked: str | None, expected: tuple[int, int]) -> None:
    """An archive's usable pair wins over a call; what is no pair is as good as none."""
    parameters = {} if asked is None else {"initial_workers": asked}
    merged = ModelConfig().merged(archive=archive, parameters=parameters)
    assert (merged.min_workers, merged.max_workers) == expected


def test_properties_may_name_one_of_the_two() -> None:
    """More workers at least than at most become both."""
    merged = ModelConfig().merged(properties={"minWorkers": 3})
    assert (merged.min_workers, merged.max_workers) == (3, 3)


def test_every_yaml_name() -> None:
    """Each name of TorchServe's model configuration has its place."""
    document = {
        "deviceType": "gpu", "deviceIds": [1, 2], "parallelType": "pp", "torchrun": {"nproc-per-node": 4},
        "maxRetryTimeoutInSec": 5, "clientTimeoutInMills": 6, "jobQueueSize": 7, "useJobTicket": True,
        "useVenv": True, "continuousBatching": True, "sequenceBatching": True, "sequenceMaxIdleMSec": 8,
        "sequenceTimeoutMSec": 9, "maxNumSequence": 10, "maxSequenceJobQueueSize": 11, "idempotent": False,
        "cores": ["0-3", 4], "handler": {"mine": 1},
    }  # fmt: skip
    assert ModelConfig.from_yaml(document) == ModelConfig(
        device_type="gpu", device_ids=(1, 2), parallel_type="pp", parallel_level=4, max_retry_timeout_s=5,
        client_timeout_ms=6, max_queue=7, use_job_ticket=True, use_venv=True, continuous_batching=True,
        stateful=True, sequence_max_idle_ms=8, sequence_timeout_ms=9, max_sequences=10, max_sequence_queue=11,
        idempotent=False, cores=("0-3", "4"),
    )  # fmt: skip


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner)
)


@given(
    st.dictionaries(st.sampled_from(["minWorkers", "maxWorkers", "batchSize", "deviceIds", "cores"]), VALUES)
)
def test_values_that_cannot_be(document: dict[str, Any]) -> None:
    """Whatever an archive says, the settings stay usable and nothing is raised."""
    config = ModelConfig.from_yaml(document)
    assert 0 < config.min_workers <= config.max_workers <= 1024
    assert 0 < config.batch_size <= 65_536


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5", 5), ("-5", -5), ("+5", 5), ("", 9), ("x", 9), ("1.5", 9), (" 1", 9), ("2147483648", 9), ("٣", 9)],
)
def test_whole_parameter(text: str, expected: int) -> None:
    """A number as Java reads it; anything else means the default."""
    assert whole_parameter({"n": text}, "n", 9) == expected
