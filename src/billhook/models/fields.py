"""Read typed fields of a JSON object, with errors that name the file, the field and the value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ConfigError


@dataclass(frozen=True)
class Fields:
    """A JSON object and where it was read from.

    Args:
        file: The file.
        data: The object.
        path: The object's place in the file, such as `quantization_config.`; "" for the whole file.
    """

    file: Path
    data: Mapping[str, Any]
    path: str = ""

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.data.get(name) is not None

    def integer(self, name: str, default: int | None = None, least: int = 1, most: int = 2**31 - 1) -> int:
        """Return a whole number.

        Args:
            name: The field.
            default: What stands for a missing field; none may be missing if None.
            least: The smallest allowed.
            most: The largest allowed: kernels count in 32 bits.

        Raises:
            ConfigError: Missing without a default, of another type, too small, or too large.
        """
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(name, f"a whole number from {least} to {most}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false.

        Raises:
            ConfigError: Of another type.
        """
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text.

        Raises:
            ConfigError: Missing without a default, or of another type.
        """
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def table(self, name: str) -> Fields:
        """Return a nested object; an empty one if it is missing.

        Raises:
            ConfigError: Of another type.
        """
        value = self._value(name, {})
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(self.file, value, f"{self.path}{name}.")

    def texts(self, name: str) -> list[str]:
        """Return a list of texts; an empty one if it is missing.

        Raises:
            ConfigError: Of another type.
        """
        value = self._value(name, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.wrong(name, "a list of texts")
        return value

    def integers(self, name: str) -> list[int]:
        """Return a list of whole numbers; an empty one if it is missing.

        Raises:
            ConfigError: Of another type.
        """
        value = self._value(name, [])
        if not isinstance(value, list) or not all(type(one) is int for one in value):
            raise self.wrong(name, "a list of whole numbers")
        return value

    def wrong(self, name: str, wanted: str) -> ConfigError:
        """Return the error that says what the field must be and what it is."""
        if name not in self.data:
            return ConfigError(f"{self.file}: field {self.path}{name} is missing; it must be {wanted}")
        return ConfigError(
            f"{self.file}: field {self.path}{name} must be {wanted} (got {self.data[name]!r:.200})"
        )

    def _value(self, name: str, default: Any) -> Any:
        value = self.data.get(name)
        return default if value is None else value


def read_object(file: Path) -> Fields:
    """Read a JSON file that holds an object.

    Raises:
        ConfigError: Unreadable, not JSON, or not an object.
    """
    try:
        found = msgspec.json.decode(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: must hold a JSON object (got {type(found).__name__})")
    return Fields(file, found)
