"""What a process's surroundings may and may not bring in."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.errors import ConfigError
from cloister.serve.hardening import (
    UNMEASURED_INPUTS,
    refuse_unmeasured_inputs,
    swap_areas,
    worker_environment,
)


@pytest.mark.parametrize("name", UNMEASURED_INPUTS)
def test_unmeasured_inputs_are_refused(name: str) -> None:
    """Each variable that changes which code runs stops a protected start; an empty one does not."""
    refuse_unmeasured_inputs({"PATH": "/bin", name: ""})
    with pytest.raises(ConfigError, match=name):
        refuse_unmeasured_inputs({name: "x"})


def test_swap_areas() -> None:
    """Swap on a disk is found, compressed memory is not meant."""
    header = "Filename Type Size Used Priority\n"
    assert swap_areas(header) == []
    assert swap_areas(header + "/dev/zram0 partition 1 0 100\n/dev/sda2 partition 1 0 -2\n") == ["/dev/sda2"]


def test_worker_environment_is_a_list() -> None:
    """A worker gets the listed variables and nothing else of the parent's."""
    parent = {
        "PATH": "/bin",
        "AWS_SECRET_ACCESS_KEY": "x",
        "PYTHONPATH": "/evil",
        "CLOISTER_SERVE_BROKER": "u",
    }
    clean = worker_environment(parent, home=Path("/h"), threads=4)
    assert clean["PATH"] == "/bin"
    assert clean["HOME"] == "/h"
    assert clean["OMP_NUM_THREADS"] == "4"
    assert not set(parent) - {"PATH"} & set(clean)


def test_what_a_worker_may_have_besides() -> None:
    """Variables of the chosen names pass, the home folder among them; Cloister's settings never."""
    parent = {"HF_HOME": "/hub", "HOME": "/root", "OMP_NUM_THREADS": "1", "CLOISTER_X": "u", "AWS_X": "x"}
    chosen = worker_environment(parent, home=Path("/h"), threads=4, passed="HF_.*")
    assert (chosen["HF_HOME"], chosen["HOME"], chosen["OMP_NUM_THREADS"]) == ("/hub", "/h", "4")
    assert "AWS_X" not in chosen
    all_of_it = worker_environment(parent, home=Path("/h"), threads=4, passed=".*")
    assert (all_of_it["HOME"], all_of_it["TMPDIR"], all_of_it["OMP_NUM_THREADS"]) == ("/root", "/h", "1")
    assert all_of_it["MKL_NUM_THREADS"] == "4"
    assert "AWS_X" in all_of_it
    assert "CLOISTER_X" not in all_of_it
