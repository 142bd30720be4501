"""How a module's weights are stored, told from the names, dtypes and shapes of its tensors.

Sources: the tensors that AutoGPTQ, GPTQModel, AutoAWQ, compressed-tensors and ModelOpt write; the checkpoints
of DeepSeek-V3 (FP8 in blocks) and gpt-oss (MXFP4 experts). Codes are stored in 32-bit words or bytes; n and k
follow from their number and the shapes of scales and zero points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import WeightError
from .header import Tensor

UNQUANTIZED = "unquantized"
_FLOATS = ("F16", "BF16", "F32")
_BYTE_SCALES = ("U8", "F8_E8M0")  # e8m0, also where a library's dtypes lack it
_WORD = 32


@dataclass(frozen=True)
class Stored:
    """A linear module's weights, or those of the experts that one tensor holds.

    Args:
        format: gptq, awq, pack-quantized, int-quantized, fp8, mxfp8, nvfp4, mxfp4 or unquantized.
        bits: Bits of a weight.
        n: Output features.
        k: Input features.
        block: Weights that share a scale, along n and along k; None if there are no scales.
        zero_points: Whether a tensor holds zero points; GPTQ's are there for symmetric weights too.
        bias: Whether there is a bias.
        num_experts: Experts of a fused tensor; 0 if it is one matrix.
    """

    format: str
    bits: int
    n: int
    k: int
    block: tuple[int, int] | None = None
    zero_points: bool = False
    bias: bool = False
    num_experts: int = 0

    @property
    def scales(self) -> str:
        """What shares a scale, in words: a group size, `channel`, `tensor`, `NxK`, or `-`."""
        if self.block is None:
            return "-"
        rows, columns = self.block
        if self.block == (self.n, self.k):
            return "tensor"
        if rows == 1:
            return "channel" if columns == self.k else str(columns)
        return f"{rows}x{columns}"

    def __str__(self) -> str:
        if self.format == UNQUANTIZED:
            return f"{self.bits}-bit float"
        return f"{self.format} {self.bits}-bit"


Parts = Mapping[str, Tensor]  # a module's tensors, by the last part of their names
Packing = tuple[int, int]  # bits; group size, -1: channel

# Beside the weights: what quantized activations, the key-value cache or a bias need.
_BESIDE = {
    "bias",
    "input_scale",
    "input_global_scale",
    "input_zero_point",
    "k_scale",
    "v_scale",
    "output_scale",
}


# What makes no sense without codes.
_NEED_CODES = {
    "qzeros",
    "g_idx",
    "scales",
    "weight_scale",
    "weight_scale_inv",
    "weight_scale_2",
    "weight_shape",
}


def read_stored(module: str, parts: Parts, packings: Sequence[Packing]) -> Stored | None:
    """Tell how a module is stored; None if it is no linear layer.

    Args:
        module: Its full name.
        parts: Its tensors.
        packings: How compressed-tensors' packed weights may be stored, as the config says; the tensors alone
            do not tell their bits.

    Raises:
        WeightError: A tensor is missing, extra, or of a wrong dtype or shape; names file, tensor and value.
    """
    if "qweight" in parts:
        return _read_words(parts, module)
    if "weight_packed" in parts:
        return _read_packed(parts, module, packings)
    if "weight" in parts:
        return _read_weight(parts, module)
    for name in parts:
        if name in _NEED_CODES:
            raise WeightError(
                f"{parts[name].file}: {module}.{name} has no codes beside it (weight, qweight, weight_packed)"
            )
    return None


def read_fused_experts(blocks: Tensor, scales: Tensor, bias: Tensor | None) -> Stored:
    """Tell how gpt-oss experts are stored, whose tensors are named NAME_blocks, NAME_scales and NAME_bias.

    Args:
        blocks: U8 [experts, n, k / 32, 16].
        scales: U8 [experts, n, k / 32], e8m0.
        bias: [experts, n].

    Raises:
        WeightError: A tensor has a wrong dtype or shape.
    """
    _expect(blocks, ("U8",), (-1, -1, -1, 16))
    experts, n, groups, _ = blocks.shape
    _expect(scales, _BYTE_SCALES, (experts, n, groups))
    if bias is not None:
        _expect(bias, _FLOATS, (experts, n))
    return Stored("mxfp4", 4, n, 32 * groups, (1, 32), bias=bias is not None, num_experts=experts)


def _read_words(parts: Parts, module: str) -> Stored:
    """Read GPTQ (words of consecutive k) or AutoAWQ (words of consecutive n)."""
    qweight = parts["qweight"]
    _refuse_others(parts, module, {"qweight", "qzeros", "scales", "g_idx"})
    scales, zeros = _need(parts, module, "scales"), _need(parts, module, "qzeros")
    _expect(qweight, ("I32",), (-1, -1))
    _expect(scales, _FLOATS, (-1, -1))
    groups, n = scales.shape
    _expect(zeros, ("I32",), (groups, -1))
    bits, rest = divmod(zeros.shape[1] * _WORD, n)
    if rest or bits not in (2, 3, 4, 8):
        raise _wrong(zeros, f"must hold n = {n} zero points of 2, 3, 4 or 8 bits a group, by {scales.name}")
    if qweight.shape[1] == n:
        k, rest = divmod(qweight.shape[0] * _WORD, bits)
        name = "gptq"
    elif qweight.shape[1] * _WORD == n * bits and "g_idx" not in parts:
        k, rest = qweight.shape[0], 0
        name = "awq"
    else:
        raise _wrong(qweight, f"must have {n} columns (GPTQ) or {n * bits // _WORD} (AWQ), by {scales.name}")
    if rest:
        raise _wrong(qweight, f"must hold whole rows of {bits}-bit codes")
    if "g_idx" in parts:
        _expect(parts["g_idx"], ("I32", "I64"), (k,))
    return Stored(name, bits, n, k, (1, _group(scales, k, groups)), True, _bias(parts, n))


def _read_packed(parts: Parts, module: str, packings: Sequence[Packing]) -> Stored:
    """Read compressed-tensors' packed weights: integers in 32-bit words, or FP4 in bytes."""
    packed = parts["weight_packed"]
    scale = _need(parts, module, "weight_scale")
    _expect(packed, ("I32", "U8"), (-1, -1))
    n, columns = packed.shape
    if packed.dtype == "U8":
        if scale.dtype == "F8_E4M3":
            return _read_nvfp4(parts, module, packed, "weight_global_scale")
        _refuse_others(parts, module, {"weight_packed", "weight_scale"})
        _expect(scale, _BYTE_SCALES, (n, _whole_groups(packed, 2 * columns, 32)))
        return Stored("mxfp4", 4, n, 2 * columns, (1, 32), bias=_bias(parts, n))
    known = {"weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"}
    _refuse_others(parts, module, known)
    _expect(_need(parts, module, "weight_shape"), ("I32", "I64"), (2,))
    _expect(scale, _FLOATS, (n, -1))
    groups = scale.shape[1]
    fitting = {
        bits
        for bits, size in packings
        if groups == (1 if size == -1 else -(-columns * _WORD // (bits * size)))
    }
    if len(fitting) != 1:
        said = ", ".join(f"{bits} bits in groups of {size}" for bits, size in packings) or "nothing"
        raise _wrong(
            scale, f"must fit the {columns} words a row of {packed.name} by the config, which says {said}"
        )
    (bits,) = fitting
    k = columns * _WORD // bits
    if "weight_zero_point" in parts:
        _expect(parts["weight_zero_point"], ("I32",), (-(-n * bits // _WORD), groups))
    if "weight_g_idx" in parts:
        _expect(parts["weight_g_idx"], ("I32", "I64"), (k,))
    zero_points = "weight_zero_point" in parts
    return Stored(
        "pack-quantized", bits, n, k, (1, _group(scale, k, groups, axis=1)), zero_points, _bias(parts, n)
    )


def _read_weight(parts: Parts, module: str) -> Stored | None:
    """Read weights that are a matrix of numbers of their own, or ModelOpt's FP4 in bytes."""
    weight = parts["weight"]
    scaled = any(name.startswith("weight_") for name in parts)
    if not scaled and weight.dtype in _FLOATS:
        if len(weight.shape) != 2:
            return None
        for name in parts.keys() & _NEED_CODES:
            raise WeightError(
                f"{parts[name].file}: tensor {module}.{name} is extra beside {weight}, which is not quantized"
            )
        n, k = weight.shape
        bits = 32 if weight.dtype == "F32" else 16
        return Stored(UNQUANTIZED, bits, n, k, bias=_bias(parts, n))
    if weight.dtype == "U8":
        return _read_nvfp4(parts, module, weight, "weight_scale_2")
    if weight.dtype not in ("F8_E4M3", "I8"):
        raise _wrong(weight, "must be F8_E4M3, I8 or U8 with scales beside it, or a float without")
    integers = weight.dtype == "I8"
    zeros = {"weight_zero_point"} if integers else set()
    _refuse_others(parts, module, {"weight", "weight_scale", "weight_scale_inv"} | zeros)
    _expect(weight, (weight.dtype,), (-1, -1))
    n, k = weight.shape
    if "weight_scale" in parts and "weight_scale_inv" in parts:
        raise WeightError(f"{weight.file}: {module} has both weight_scale and weight_scale_inv")
    scale = parts.get("weight_scale_inv") or _need(parts, module, "weight_scale")
    powers = weight.dtype == "F8_E4M3" and scale.dtype in _BYTE_SCALES
    if powers and (scale.dtype == "U8" or scale.shape == (n, -(-k // 32))):
        _expect(scale, _BYTE_SCALES, (n, _whole_groups(weight, k, 32)))
        return Stored("mxfp8", 8, n, k, (1, 32), bias=_bias(parts, n))
    if not powers:
        _expect(scale, _FLOATS, None)
    block = _block(scale, n, k, blocks=not integers)
    if "weight_zero_point" in parts:
        _expect(parts["weight_zero_point"], ("I8",), scale.shape)
    name = "int-quantized" if integers else "fp8"
    return Stored(name, 8, n, k, block, "weight_zero_point" in parts, _bias(parts, n))


def _read_nvfp4(parts: Parts, module: str, codes: Tensor, global_scale: str) -> Stored:
    """Read e2m1 in bytes with an e4m3 scale for 16 weights and a float for all."""
    _refuse_others(parts, module, {codes.name.rpartition(".")[2], "weight_scale", global_scale})
    _expect(codes, ("U8",), (-1, -1))
    n, half = codes.shape
    scale = _need(parts, module, "weight_scale")
    _expect(scale, ("F8_E4M3",), (n, _whole_groups(codes, 2 * half, 16)))
    whole = _need(parts, module, global_scale)
    if whole.dtype != "F32" or whole.shape not in ((), (1,)):
        raise _wrong(whole, "must be one F32")
    return Stored("nvfp4", 4, n, 2 * half, (1, 16), bias=_bias(parts, n))


def _block(scale: Tensor, n: int, k: int, blocks: bool) -> tuple[int, int]:
    """Return the weights that share a scale, along n and k; with `blocks`, also those of a square block."""
    if scale.shape in ((), (1,), (1, 1)):
        return n, k
    if scale.shape in ((n,), (n, 1)):
        return 1, k
    if len(scale.shape) == 2 and 0 not in scale.shape:
        along_n, along_k = scale.shape
        if along_n == n:
            return 1, _group(scale, k, along_k, axis=1)
        if blocks and (along_n, along_k) == (-(-n // _BLOCK), -(-k // _BLOCK)):
            return _BLOCK, _BLOCK
    others = f"channel, group or {_BLOCK} x {_BLOCK} block" if blocks else "channel or group"
    raise _wrong(scale, f"must be one scale, or one per {others} of {n} x {k}")


_BLOCK = 128


def _group(scales: Tensor, k: int, groups: int, axis: int = 0) -> int:
    """Return the weights along k of one group; the last may be shorter."""
    if 0 < groups <= k:
        size = -(-k // groups)
        if k % groups:  # only the last group is shorter, and sizes are powers of two
            size = 1 << (size - 1).bit_length()
        if -(-k // size) == groups:
            return size
    raise _wrong(scales, f"must split k = {k} into groups along dimension {axis}")


def _whole_groups(codes: Tensor, k: int, size: int) -> int:
    """Return the groups along k of a format that has no shorter ones."""
    if k % size:
        raise WeightError(
            f"{codes.file}: tensor {codes.name} has k = {k}, which is no multiple of its groups of {size}"
        )
    return k // size


def _need(parts: Parts, module: str, name: str) -> Tensor:
    if name not in parts:
        other = next(iter(parts.values()))
        raise WeightError(f"{other.file}: tensor {module}.{name} is missing beside {other.name}")
    return parts[name]


def _refuse_others(parts: Parts, module: str, known: set[str]) -> None:
    for name, tensor in parts.items():
        if name not in known and name not in _BESIDE:
            raise WeightError(
                f"{tensor.file}: tensor {module}.{name} is extra beside {', '.join(sorted(known))}"
            )
    scale = parts.get("input_scale")
    if scale is not None and (scale.dtype not in _FLOATS or math.prod(scale.shape) != 1):
        raise _wrong(scale, "must be one float")


def _bias(parts: Parts, n: int) -> bool:
    if "bias" in parts:
        _expect(parts["bias"], _FLOATS, (n,))
    return "bias" in parts


def _expect(tensor: Tensor, dtypes: tuple[str, ...], shape: tuple[int, ...] | None) -> None:
    """Refuse a tensor of another dtype or shape; -1 stands for any length but 0, None for any shape."""
    if tensor.dtype not in dtypes:
        raise _wrong(tensor, f"must be {' or '.join(dtypes)}")
    if shape is None:
        return
    fits = len(tensor.shape) == len(shape) and all(
        got == want or (want == -1 and got > 0) for got, want in zip(tensor.shape, shape, strict=False)
    )
    if not fits:
        wanted = ", ".join("any" if want == -1 else str(want) for want in shape)
        raise _wrong(tensor, f"must have shape [{wanted}]")


def _wrong(tensor: Tensor, wanted: str) -> WeightError:
    return WeightError(f"{tensor.file}: tensor {tensor.name} {wanted} (got {tensor})")
