"""The error tree keeps its promises to scripts and to people."""

from __future__ import annotations

import inspect

import pytest

from cloister import errors

DECLARED = [item for item in vars(errors).values() if inspect.isclass(item)]


@pytest.mark.parametrize("error", DECLARED, ids=lambda error: error.__name__)
def test_every_error_has_one_root_and_an_exit_code(error: type[errors.CloisterError]) -> None:
    """Each error derives from the root, has a docstring, and ends in a documented exit code."""
    assert issubclass(error, errors.CloisterError)
    assert error.__doc__
    assert 1 <= error.exit_code <= 6
    assert f"\n{error.exit_code} " in (errors.__doc__ or "")


def test_refusals_exit_with_three() -> None:
    """Whatever was refused, a script sees the same exit code."""
    for error in (errors.BadSignature, errors.PolicyDenied, errors.KeyUnavailable, errors.RollbackRefused):
        assert error.exit_code == 3


def test_reasons_and_hint_are_kept() -> None:
    """A refusal carries every reason, and what to do next."""
    error = errors.PolicyDenied("refused", reasons=("a", "b"), hint="ask the owner")
    assert (str(error), error.reasons, error.hint) == ("refused", ("a", "b"), "ask the owner")
