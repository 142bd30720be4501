"""vLLM releases as data: what their kernel generators write, and where.

One TOML file per release under `catalog/vllm/`; a new release is a new file. Types
carry vLLM's own names (`kFloat16`, `kU4B8`), for this is a foreign tree's vocabulary.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec

from ..errors import ConfigError, InputError

CATALOG = Path(__file__).parents[1] / "catalog" / "vllm"
ACTIVATIONS = {"f16": "kFloat16", "bf16": "kBFloat16", "int8": "kS8", "fp8": "kFE4M3fn"}


class MarlinTile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tile of the Marlin kernel.

    Args:
        thread_k: Input features of one pipeline stage.
        thread_n: Output features of one CTA.
        threads: Threads of one CTA.
        m_blocks: Token blocks it is instantiated for; the release prunes the others.
    """

    thread_k: int
    thread_n: int
    threads: int
    m_blocks: tuple[float, ...]


class MarlinSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The kernels of one hardware generation.

    Args:
        prefix: File names are `PREFIX_kernel_A_B_C.cu`.
        archs: Patterns; the set exists if any target matches one.
        stages: Depth of the shared-memory pipeline.
        activations: The only activations it has; None for all.
        outputs: The only outputs it has; None for all.
    """

    prefix: str
    archs: tuple[str, ...]
    stages: int
    activations: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None

    def has(self, a: str, c: str) -> bool:
        """Whether the set has kernels for activation `a` and output `c`."""
        return (self.activations is None or a in self.activations) and (
            self.outputs is None or c in self.outputs
        )


class Fp8Activations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rule for FP8 activations, which have files of their own.

    Args:
        activation: The activation type it is about.
        prefix: Takes the place of the set's prefix in file names.
        archs: Patterns; these activations are built if any target matches one.
        message: What the selector says where they are asked for but not built.
    """

    activation: str
    prefix: str
    archs: tuple[str, ...]
    message: str


class MarlinFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A weight format with the activations it is multiplied by.

    Args:
        name: The format, as `--formats` takes it.
        weight: Type of the stored weights.
        types: Pairs of activation and output.
        m_blocks: Token blocks of 16; 0.5 is one block of 8 tokens.
        group_blocks: Blocks of 16 weights along k that share a scale; -1: a whole channel, 0: act-order.
        scale: Type of the scales; None for the output's.
    """

    name: str
    weight: str
    types: tuple[tuple[str, str], ...]
    m_blocks: tuple[float, ...]
    group_blocks: tuple[int, ...]
    scale: str | None = None


class MarlinRelease(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The Marlin half of a release.

    Args:
        folders: Family -> folder of the tree where its generated files go.
        scripts: Family -> the generator script of the tree.
        marker: Text in the head of every file that the original generator writes.
        check: Macro that raises an error in the selector.
        tiles: In the generator's order.
        sets: In the selector's order.
        fp8: The rule for FP8 activations.
        formats: In the generator's order.
    """

    folders: dict[str, str]
    scripts: dict[str, str]
    marker: str
    check: str
    tiles: tuple[MarlinTile, ...]
    sets: tuple[MarlinSet, ...]
    fp8: Fp8Activations
    formats: tuple[MarlinFormat, ...]


class MacheteRelease(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a release's Machete sources spell what changes between releases.

    Args:
        folder: Folder of the tree; its `generated/` receives the files.
        script: The generator script of the tree.
        marker: Text in every file that the original generator writes.
        tensor: C++ type of a tensor.
        scalar_type: C++ scope of the scalar types (`SCOPE::Half`).
        not_implemented: Macro that raises a not-implemented error.
        print_scalar_type: How a scalar type is streamed; `{}` stands for the expression.
    """

    folder: str
    script: str
    marker: str
    tensor: str
    scalar_type: str
    not_implemented: str
    print_scalar_type: str


class Sign(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something a tree of a release shows, by which it is told from others.

    Args:
        file: A file of the tree, relative to the root that holds it.
        exists: Whether it is there; if not, it must be under no root.
        holds: Regular expressions that its text matches somewhere.
        lacks: Regular expressions that its text matches nowhere.
    """

    file: str
    exists: bool = True
    holds: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One release of vLLM.

    Args:
        release: Its number, such as "0.33".
        roots: Folders of a tree that may hold the families' folders; the first that exists counts.
        marlin: The Marlin half, dense and MoE.
        machete: The Machete half.
        signs: What tells a tree of this release from one of another; all must be there.
    """

    release: str
    roots: tuple[str, ...]
    marlin: MarlinRelease
    machete: MacheteRelease
    signs: tuple[Sign, ...]

    @property
    def data_file(self) -> Path:
        """The file it was read from."""
        return CATALOG / f"{self.release}.toml"


def releases() -> list[str]:
    """Return the releases that have a data file, oldest first."""
    numbers = (path.stem for path in CATALOG.glob("[0-9]*.toml"))
    return sorted(numbers, key=lambda number: [int(part) for part in number.split(".")])


@cache
def load_release(number: str) -> Release:
    """Read the data of one release.

    Args:
        number: Such as "0.33".

    Raises:
        InputError: No such release; the message lists those that exist.
        ConfigError: The data file makes no sense; the message says where.
    """
    if number not in releases():
        raise InputError(f"vLLM release {number!r} is not known; known releases: {', '.join(releases())}")
    path = CATALOG / f"{number}.toml"
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Release)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: {error}") from error


def matches(capability: tuple[int, int], patterns: tuple[str, ...]) -> bool:
    """Tell whether a compute capability is meant by one of `patterns`.

    Args:
        capability: (major, minor).
        patterns: `8.9` (that very one), `12.x` (any minor) or `>=8.0` (that one and later).
    """
    for pattern in patterns:
        major, minor = pattern.removeprefix(">=").split(".")
        if pattern.startswith(">="):
            if capability >= (int(major), int(minor)):
                return True
        elif capability[0] == int(major) and minor in ("x", str(capability[1])):
            return True
    return False
