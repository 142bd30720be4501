"""Which activations multiply a weight, and which scales are folded: what loading does and planning foresees.

`billhook.load` and the planner ask the same functions, so that a plan holds the kernels that a loaded model
asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from ..dtypes import U4B8, DType
from ..errors import InputError, UnsupportedError
from ..weights import FORMATS
from .methods import PACKED_METHOD
from .quantization import WeightFormat

NarrowActivations = bool | Literal["folded"]

_FOLDED = FORMATS["w4a8"]


class Chosen(NamedTuple):
    """The activations that multiply a weight.

    Args:
        narrow: Type of 8-bit ones, to which inputs are quantized; None: they stay in 16 bits.
        why_wide: Why they stay although 8 bits are asked for; "" otherwise.
    """

    narrow: DType | None
    why_wide: str = ""


def read_narrow(asked: NarrowActivations) -> tuple[bool, bool]:
    """Return whether inputs are quantized where a checkpoint says so, and whether scales are folded.

    Args:
        asked: `narrow_activations` of `billhook.load`.

    Raises:
        InputError: Another word.
    """
    if asked != "folded" and not isinstance(asked, bool):
        raise InputError(f"narrow_activations must be True, False or 'folded' (got {asked!r})")
    return bool(asked), asked == "folded"


def choose_activations(
    stored: WeightFormat, narrow: bool, why_unserved: Callable[[DType], str | None]
) -> Chosen:
    """Choose the activations that multiply a weight.

    Args:
        stored: How it is stored, its scales folded if they shall be.
        narrow: Whether inputs are quantized where the checkpoint says so; those of folded weights always are.
        why_unserved: Tells why no kernel multiplies it by 8-bit activations; None if one does.

    Raises:
        UnsupportedError: No kernel serves a weight that is multiplied by 8-bit activations alone.
    """
    folded = stored.packed.folded
    asked = _FOLDED.narrow_activations[0] if folded else stored.activations
    if asked is None or not (narrow or folded):
        return Chosen(None)
    why = why_unserved(asked)
    if why is None:
        return Chosen(asked)
    if folded:
        raise UnsupportedError(why)
    return Chosen(None, why)


def agree(formats: Sequence[WeightFormat], chosen: Sequence[Chosen]) -> list[Chosen]:
    """Return what multiplies the two weights of a layer's experts: 8-bit activations of one type, or 16 bits.

    Args:
        formats: How they are stored.
        chosen: What `choose_activations` chose for each.

    Raises:
        UnsupportedError: The scales of one alone are folded.
    """
    if len({one.packed.folded for one in formats}) > 1:
        names = " and ".join(one.packed.name for one in formats)
        raise UnsupportedError(
            "the scales of both weights of a layer's experts are folded, or of none (got w13 and w2 as "
            f"{names}); take this checkpoint as it is"
        )
    if len({one.narrow for one in chosen}) == 1:
        return list(chosen)
    apart = Chosen(None, "w13 and w2 of a layer's experts take activations of one type")
    return [apart if one.narrow else one for one in chosen]


def fold_format(name: str, stored: WeightFormat) -> WeightFormat:
    """Return how a weight is stored once scales are folded: w4a8 if e4m3 inputs multiply integers in groups.

    Args:
        name: Of the module, for messages.
        stored: How it is stored by the checkpoint.

    Raises:
        UnsupportedError: Such a weight has zero points, 8 bits or groups of another size.
    """
    in_groups = stored.weight.kind == "int" and stored.group_size != -1
    if not in_groups or stored.activations not in _FOLDED.narrow_activations:
        return stored
    if stored.weight != U4B8 or stored.group_size not in _FOLDED.group_sizes:
        sizes = " or ".join(map(str, _FOLDED.group_sizes))
        raise UnsupportedError(
            f"{name}: scales are folded of {U4B8} weights (4 bits, symmetric) in groups of {sizes} "
            f"(got {stored.weight} in groups of {stored.group_size}); take this checkpoint as it is"
        )
    return replace(stored, scale=_FOLDED.scale)


def check_folded(file: Path, method: str, formats: Iterable[WeightFormat]) -> None:
    """Refuse a model that is to run with folded scales and has none.

    Args:
        file: Its config, for messages.
        method: `quant_method` of the config.
        formats: How its weights are stored then.

    Raises:
        UnsupportedError: No scales are folded.
    """
    if any(one.packed.folded for one in formats):
        return
    if method == PACKED_METHOD:
        raise UnsupportedError(
            f"{file.parent} was packed without --fold; pack the checkpoint again to fold its scales"
        )
    raise UnsupportedError(
        f"{file}: there are no scales to fold: by its quantization_config no layer has integer weights "
        "in groups and e4m3 activations; take it as it is"
    )
