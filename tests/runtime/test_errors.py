"""Base classes of the errors, and the messages that commands print for them."""

from __future__ import annotations

import pytest

from dod_runtime.console import run_command
from dod_runtime.errors import (
    BackendError,
    BundleError,
    BundleNotFoundError,
    DODRuntimeError,
    ImageError,
    UsageError,
    unknown,
)


@pytest.mark.parametrize("error", [BackendError, BundleError, BundleNotFoundError, ImageError, UsageError])
def test_all_errors_are_one_family(error: type[Exception]) -> None:
    assert issubclass(error, DODRuntimeError)


def test_builtin_base_classes() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        raise UsageError("batch_size must be at least 1, not 0")
    with pytest.raises(FileNotFoundError, match="no such bundle"):
        raise BundleNotFoundError("no such bundle: x")
    assert issubclass(BundleNotFoundError, BundleError)


@pytest.mark.parametrize("error", [BundleNotFoundError("no such bundle: x"), UsageError("no such bundle: x")])
def test_a_command_prints_the_message_alone(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: object) -> int:
        raise error

    assert run_command(main, []) == 2
    assert capsys.readouterr().err == "error: no such bundle: x\n"


def test_unknown_suggests_the_nearest_name() -> None:
    error = unknown("condition", "hazy", ["auto", "haze", "rain"])
    assert isinstance(error, UsageError) and "did you mean 'haze'?" in str(error)
    assert "did you mean" not in str(unknown("condition", "zzz", ["auto", "haze"]))
    assert "(none)" in str(unknown("condition", "haze", []))
