"""Every exception Billhook raises on purpose, in one tree.

The command line turns each into one message on stderr and an exit code: 2 when
the input was wrong, 1 when something failed while running.
"""

from __future__ import annotations


class BillhookError(Exception):
    """Base of all errors raised by Billhook; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(BillhookError, ValueError):
    """The caller gave something wrong; the message names the value and the remedy."""

    exit_code = 2


class ArchError(InputError):
    """A GPU target that does not exist or that Billhook does not support."""


class ConfigError(InputError):
    """A model config, catalog, rule or plan file that cannot be read or makes no sense."""


class UnsupportedError(InputError):
    """A well-formed request that no kernel serves; the message says why."""


class BundleError(InputError):
    """A bundle that is damaged, incomplete, or not one of ours."""


class WeightError(InputError):
    """A tensor whose dtype, shape, layout or packing does not fit the operation."""


class ToolchainError(BillhookError):
    """A compiler, driver or library that the command needs is missing or too old."""


class CompileError(BillhookError):
    """A kernel that did not compile; carries the compiler's own words."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class CudaError(BillhookError):
    """The CUDA driver refused a call."""


class StorageError(BillhookError):
    """A file or folder that could not be read or written (full, read-only, not ours)."""
