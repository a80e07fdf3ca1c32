"""Which cores each worker runs on: NUMA nodes from ``/sys``, layouts such as ``12x4``, explicit core lists.

A worker whose cores are all of one node also finds its memory there, because the kernel gives a page from the
node of the core that first touches it.

=============== =======================================================================================
layout          meaning
=============== =======================================================================================
(empty)         spread: with several NUMA nodes each worker gets one node's cores, in turn; else no pinning
``none``        no pinning, whatever the machine is
``12x4``        12 places of 4 cores each, none across two nodes
``0-3;4-7``     one place for each list of cores
=============== =======================================================================================
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import ConfigError

SYSTEM = Path("/sys/devices/system/node")
GPUS = Path("/proc/driver/nvidia/gpus")
_LIST = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*")
_GRID = re.compile(r"(\d{1,4})x(\d{1,4})")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker runs."""

    cores: tuple[int, ...] = ()
    """Empty: anywhere."""
    threads: int = 0
    """For numerical libraries; 0 leaves the choice to them."""


def parse_cores(text: str) -> tuple[int, ...]:
    """Core numbers of a list such as ``0-3,8``, in its order.

    Raises:
        ConfigError: not such a list, or a core named twice.
    """
    if not _LIST.fullmatch(text.strip()):
        raise ConfigError(f"{text!r} is not a list of cores such as 0-3,8")
    cores: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cores.extend(range(int(first), int(last or first) + 1))
    if not cores or len(set(cores)) != len(cores):
        raise ConfigError(f"core list {text!r} is empty or names a core twice")
    return tuple(cores)


def read_nodes(system: Path = SYSTEM, allowed: Sequence[int] | None = None) -> list[tuple[int, ...]]:
    """The cores of each NUMA node that this process may use; one node where the kernel names none."""
    usable = set(os.sched_getaffinity(0) if allowed is None else allowed)
    nodes: list[tuple[int, ...]] = []
    for path in sorted(system.glob("node[0-9]*"), key=lambda item: int(item.name[4:])):
        try:
            text = (path / "cpulist").read_text(encoding="ascii").strip()
        except OSError:
            continue
        cores = tuple(core for core in parse_cores(text) if core in usable) if text else ()
        if cores:
            nodes.append(cores)
    return nodes or [tuple(sorted(usable))]


def plan(layout: str, nodes: Sequence[Sequence[int]]) -> list[Place]:
    """The places of a layout; empty where workers are not pinned.

    Raises:
        ConfigError: not a layout, a core that may not be used, or not enough cores.
    """
    layout = layout.strip()
    if layout == "none" or (not layout and len(nodes) < 2):
        return []
    if not layout:
        return [Place(tuple(node), len(node)) for node in nodes]
    grid = _GRID.fullmatch(layout)
    if grid is not None:
        return _fill_grid(int(grid[1]), int(grid[2]), nodes)
    usable = {core for node in nodes for core in node}
    places = []
    for text in layout.split(";"):
        cores = parse_cores(text)
        foreign = sorted(set(cores) - usable)
        if foreign:
            raise ConfigError(f"cores {foreign} of {text!r} may not be used here; there are {sorted(usable)}")
        places.append(Place(cores, len(cores)))
    return places


def _fill_grid(count: int, size: int, nodes: Sequence[Sequence[int]]) -> list[Place]:
    if count < 1 or size < 1:
        raise ConfigError(f"layout {count}x{size} has no places")
    by_node = [
        [tuple(node[start : start + size]) for start in range(0, len(node) - size + 1, size)]
        for node in nodes
    ]
    # In turn from each node, so that few workers use the memory channels of all nodes.
    taken = [
        groups[turn] for turn in range(max(map(len, by_node))) for groups in by_node if turn < len(groups)
    ]
    if len(taken) < count:
        whole = [len(node) for node in nodes]
        raise ConfigError(
            f"layout {count}x{size} does not fit: nodes of {whole} cores hold {len(taken)} places"
        )
    return [Place(cores, size) for cores in taken[:count]]


class Placement:
    """Hands out a server's places: the least used first, so that models share what they must share."""

    def __init__(
        self, layout: str = "", *, nodes: Sequence[Sequence[int]] | None = None, threads: int = 0
    ) -> None:
        self._nodes = read_nodes() if nodes is None else nodes
        self._places = plan(layout, self._nodes)
        self._threads = threads
        self._used: Counter[tuple[int, ...]] = Counter()
        self._gpus: Counter[int] = Counter()

    @property
    def capacity(self) -> int:
        """How many workers a layout has places for; 0 if it does not say."""
        return len(self._places)

    def take(self, *, own: Sequence[str] = (), index: int = 0, workers: int = 1) -> Place:
        """A place for one worker.

        Args:
            own: the model's own core lists, one for each worker; they go before the server's layout.
            index: which of the model's workers this is.
            workers: how many the model has; without pinning they share the machine's threads.
        Raises:
            ConfigError: the model's own list names cores that may not be used.
        """
        if own:
            place = plan(";".join(own), self._nodes)[index % len(own)]
        elif self._places:
            place = min(self._places, key=lambda item: self._used[item.cores])
        else:
            total = sum(map(len, self._nodes))
            place = Place((), max(1, total // workers) if workers > 1 else 0)
        self._used[place.cores] += 1
        return Place(place.cores, self._threads or place.threads)

    def give_back(self, place: Place) -> None:
        """The worker that had it is gone."""
        self._used[place.cores] -= 1

    def take_gpu(self, count: int, *, own: Sequence[int] = (), index: int = 0) -> int | None:
        """A GPU for one worker: the model's own in turn, or the one with the fewest workers.

        Args:
            count: how many there are; without any there is none to be had.
            own: the model's ``deviceIds``; those that are not there do not count, as in TorchServe.
            index: which of the model's workers this is.
        """
        if not count:
            return None
        there = [gpu for gpu in own if 0 <= gpu < count]
        taken = there[index % len(there)] if there else min(range(count), key=lambda gpu: self._gpus[gpu])
        self._gpus[taken] += 1
        return taken

    def give_gpu_back(self, gpu: int | None) -> None:
        """The worker that had it is gone."""
        if gpu is not None:
            self._gpus[gpu] -= 1


def count_gpus(folder: Path = GPUS, visible: str | None = None) -> int:
    """How many GPUs a worker will see, without loading a library that knows."""
    if visible is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([item for item in visible.split(",") if item.strip() and item.strip() != "-1"])
    try:
        return len(list(folder.iterdir()))
    except OSError:
        return 0
