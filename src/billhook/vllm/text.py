"""Render the templates of foreign-tree targets, `emit/templates/vllm/`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..emit.environment import templates
from ..emit.manifest import GENERATED

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parents[1] / "emit" / "templates" / "vllm"


@cache
def _environment() -> Environment:
    # Lines that hold nothing but a template statement leave no line behind.
    return templates().overlay(trim_blocks=True, lstrip_blocks=True)


def render(template: str, **values: object) -> str:
    """Render a template.

    Args:
        template: Its file name.
        values: What it refers to; `generated`, for the first line, is there already.
    """
    return _environment().get_template(f"vllm/{template}").render(generated=GENERATED, **values)
