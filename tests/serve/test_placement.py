"""Where workers run: layouts, core lists, NUMA nodes, and what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ConfigError
from cloister.serve.placement import Place, Placement, count_gpus, parse_cores, plan, read_nodes

TWO_NODES = [tuple(range(24)), tuple(range(24, 48))]


def test_the_articles_layout() -> None:
    """12x4 on two nodes of 24 cores: twelve places, none across the nodes, in turn from each."""
    places = plan("12x4", TWO_NODES)
    assert len(places) == 12
    assert all(place.threads == 4 for place in places)
    assert [place.cores[0] // 24 for place in places] == [0, 1] * 6
    assert sorted(core for place in places for core in place.cores) == list(range(48))


@given(st.integers(1, 12), st.integers(1, 12), st.lists(st.integers(1, 16), min_size=1, max_size=4))
def test_grids_never_cross_nodes(count: int, size: int, widths: list[int]) -> None:
    """A layout either gives disjoint places, each within one node, or is refused because it does not fit."""
    nodes, first = [], 0
    for width in widths:
        nodes.append(tuple(range(first, first + width)))
        first += width
    fits = sum(width // size for width in widths) >= count
    if not fits:
        with pytest.raises(ConfigError, match="does not fit"):
            plan(f"{count}x{size}", nodes)
        return
    places = plan(f"{count}x{size}", nodes)
    cores = [core for place in places for core in place.cores]
    assert len(cores) == len(set(cores)) == count * size
    assert all(any(set(place.cores) <= set(node) for node in nodes) for place in places)


def test_explicit_lists() -> None:
    """Lists of cores are places as they are written."""
    assert plan("0-3;8,10", TWO_NODES) == [Place((0, 1, 2, 3), 4), Place((8, 10), 2)]


@pytest.mark.parametrize("layout", ["0-99", "x", "4x", "0x4", "3-1", "0,0", "0;", "-1", "1-2-3"])
def test_bad_layouts(layout: str) -> None:
    """What is no layout, or names cores that are not there, is refused."""
    with pytest.raises(ConfigError):
        plan(layout, TWO_NODES)


def test_spread() -> None:
    """Without a layout workers take NUMA nodes in turn; on one node they share the threads, not pinned."""
    placement = Placement("", nodes=TWO_NODES)
    taken = [placement.take() for _ in range(4)]
    assert [place.cores[0] for place in taken] == [0, 24, 0, 24]
    single = Placement("", nodes=[(0, 1, 2, 3)])
    assert single.take(workers=2) == Place((), 2)
    assert single.take(workers=1) == Place((), 0)
    assert Placement("none", nodes=TWO_NODES).take() == Place((), 0)
    assert Placement("", nodes=[(0, 1)], threads=5).take(workers=2).threads == 5


def test_places_are_given_back() -> None:
    """A new worker takes the place of one that is gone before it shares another's."""
    placement = Placement("2x2", nodes=[(0, 1, 2, 3)])
    first, second = placement.take(), placement.take()
    assert {first.cores, second.cores} == {(0, 1), (2, 3)}
    placement.give_back(first)
    assert placement.take() == first
    assert placement.capacity == 2


def test_a_models_own_lists() -> None:
    """A model's own core lists go before the server's layout, one for each worker in turn."""
    placement = Placement("2x2", nodes=[(0, 1, 2, 3)])
    assert [placement.take(own=("1", "2-3"), index=index).cores for index in range(3)] == [(1,), (2, 3), (1,)]
    with pytest.raises(ConfigError, match="may not be used"):
        placement.take(own=("9",))


def test_nodes_from_the_kernel(tmp_path: Path) -> None:
    """Nodes are read in their numbers' order, and only the cores that this process may use count."""
    for name, text in (("node10", "6-7"), ("node2", "2-5\n"), ("node0", "0-1"), ("node3", "\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpulist").write_text(text)
    assert read_nodes(tmp_path, allowed=range(1, 7)) == [(1,), (2, 3, 4, 5), (6,)]
    assert read_nodes(tmp_path / "none", allowed=[3, 1]) == [(1, 3)]
    assert read_nodes()


def test_core_lists() -> None:
    """Core lists are read as the kernel writes them."""
    assert parse_cores(" 0-2,7 ") == (0, 1, 2, 7)


def test_gpus(tmp_path: Path) -> None:
    """GPUs are counted by what the worker will be let see."""
    (tmp_path / "0000:01:00.0").mkdir()
    assert count_gpus(tmp_path, visible="0,2") == 2
    assert count_gpus(tmp_path, visible="-1") == count_gpus(tmp_path, visible="") == 0
    assert count_gpus(tmp_path / "no", visible=None) in (0, count_gpus())


def test_gpus_are_shared_out() -> None:
    """Models without GPUs of their own share all evenly; one with its own goes through these in turn."""
    placement = Placement(nodes=[(0,)])
    assert placement.take_gpu(0) is None
    assert placement.take_gpu(0, own=(1,)) is None
    first_model = [placement.take_gpu(4, index=0)]
    second_model = [placement.take_gpu(4, index=0), placement.take_gpu(4, index=1)]
    assert sorted([*first_model, *second_model]) == [0, 1, 2]  # type: ignore[type-var]
    assert [placement.take_gpu(4, own=(3, 1, 9), index=index) for index in range(4)] == [3, 1, 3, 1]
    placement.give_gpu_back(0)
    placement.give_gpu_back(None)
    assert placement.take_gpu(4) == 0
    assert placement.take_gpu(4, own=(8, 9)) in range(4)
