"""The one template environment that every emitter renders with."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def templates() -> Environment:
    """Return the environment over `emit/templates/`; an undefined name in a template is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("billhook.emit"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
