"""Weights as torch tensors: quantize, import, pack, move, store.

Packing is a reordering by torch operations on the device where the weights lie; the
order itself is `formats/pack.py`'s. Quantizing and reading checkpoints is done on the
host by `formats/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..config import STRIP
from ..dtypes import BF16, F16, DType
from ..errors import WeightError
from ..formats import compressed_tensors, gptq, pack, u4b8
from ..formats.elements import numpy_dtype

FORMAT = "billhook-u4b8-1"  # the layout of docs/layout.md; another layout gets another name
_FORMAT_NUMBER = 1
ELEMENTS = {torch.float16: F16, torch.bfloat16: BF16}


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A quantized weight in the layout that kernels read.

    Args:
        codes: int32 [n64, k64, 4, 32, 4], with a leading axis of experts for MoE, contiguous.
        scales: float16 or bfloat16 [n64, groups, 64], likewise.
        n: Output features.
        k: Input features.
        group_size: Weights along k that share one scale; -1 for one scale per output channel.
        num_experts: 0 for a dense layer.
        format: Must be `FORMAT`.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    n: int
    k: int
    group_size: int
    num_experts: int = 0
    format: str = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise WeightError(f"weight has format {self.format!r}; kernels read {FORMAT!r}: pack it again")
        if self.scales.dtype not in ELEMENTS:
            raise WeightError(f"scales must be float16 or bfloat16 (got {self.scales.dtype})")
        experts = (self.num_experts,) if self.num_experts else ()
        strips, blocks = pack.count_strips(self.n), pack.count_strips(self.k)
        groups = pack.count_packed_groups(self.k, self.group_size)
        _check("codes", self.codes, torch.int32, (*experts, strips, blocks, *pack.CODE_BLOCK))
        _check("scales", self.scales, self.scales.dtype, (*experts, strips, groups, STRIP))
        if self.codes.device != self.scales.device:
            raise WeightError(f"codes are on {self.codes.device}, scales on {self.scales.device}")

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.codes.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its scales, of the activations it multiplies, and of the output."""
        return self.scales.dtype

    def to(self, device: torch.device | str) -> PackedWeight:
        """Return this weight on another device, or itself if it is there."""
        if self.device == torch.device(device):
            return self
        return self._with(self.codes.to(device), self.scales.to(device))

    def clone(self) -> PackedWeight:
        """Return a copy with memory of its own."""
        return self._with(self.codes.clone(), self.scales.clone())

    def state_dict(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Return the weight as tensors alone, for `torch.save` or safetensors.

        Args:
            prefix: Put before each name, such as `model.layers.0.mlp.down_proj.`.
        """
        meta = (_FORMAT_NUMBER, self.n, self.k, self.group_size, self.num_experts)
        return {
            f"{prefix}codes": self.codes,
            f"{prefix}scales": self.scales,
            f"{prefix}meta": torch.tensor(meta, dtype=torch.int64),
        }

    @classmethod
    def from_state_dict(cls, tensors: Mapping[str, torch.Tensor], prefix: str = "") -> PackedWeight:
        """Read back what `state_dict` gave.

        Raises:
            WeightError: A tensor is missing, or the weight was packed in another format.
        """
        missing = [name for name in ("codes", "scales", "meta") if f"{prefix}{name}" not in tensors]
        if missing:
            raise WeightError(f"packed weight {prefix!r} lacks {', '.join(missing)}")
        meta = [int(value) for value in tensors[f"{prefix}meta"].tolist()]
        if len(meta) != 5 or meta[0] != _FORMAT_NUMBER:
            raise WeightError(
                f"weight {prefix!r} has format {meta[:1]}; kernels read {_FORMAT_NUMBER}: pack it again"
            )
        _, n, k, group_size, num_experts = meta
        return cls(tensors[f"{prefix}codes"], tensors[f"{prefix}scales"], n, k, group_size, num_experts)

    def _with(self, codes: torch.Tensor, scales: torch.Tensor) -> PackedWeight:
        return PackedWeight(codes, scales, self.n, self.k, self.group_size, self.num_experts)


def _check(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous():
        raise WeightError(
            f"{name} must be a contiguous {dtype} tensor of shape {shape} "
            f"(got {tensor.dtype} {tuple(tensor.shape)}, strides {tensor.stride()})"
        )


def pack_weight(codes: torch.Tensor, scales: torch.Tensor, group_size: int) -> PackedWeight:
    """Pack quantized weights; the result lies where `codes` does.

    Kernels request weights before the kernel ahead of them in the stream has ended, so
    packing on a GPU waits until the packed weight is there.

    Args:
        codes: uint8 [k, n] or [experts, k, n], 0 to 15, standing for (code - 8) * scale.
        scales: float16 or bfloat16 [groups, n] or [experts, groups, n].
        group_size: Weights along k that share one scale; -1 for one scale per output channel.

    Raises:
        WeightError: A wrong dtype or shape, a code above 15, n or k not a multiple of 16, or NaN scales.
    """
    if codes.dtype != torch.uint8 or codes.dim() not in (2, 3) or codes.numel() == 0:
        raise WeightError(
            f"codes must be uint8 [k, n] or [experts, k, n] (got {codes.dtype} {tuple(codes.shape)})"
        )
    *experts, k, n = codes.shape
    if n % 16 or k % 16:
        raise WeightError(f"n and k must be multiples of 16 (got n={n}, k={k})")
    if int(codes.max()) > 15:
        raise WeightError(f"4-bit codes must be 0 to 15 (got {int(codes.max())})")
    groups = u4b8.count_groups(k, group_size)
    want = (*experts, groups, n)
    if scales.dtype not in ELEMENTS or tuple(scales.shape) != want:
        raise WeightError(
            f"scales must be float16 or bfloat16 {want} for group_size {group_size} "
            f"(got {scales.dtype} {tuple(scales.shape)})"
        )
    if not bool(torch.isfinite(scales).all()):
        raise WeightError("scales must be finite; found NaN or infinity")
    strips, blocks = pack.count_strips(n), pack.count_strips(k)
    packed_groups = pack.count_packed_groups(k, group_size)
    words = codes.new_empty((*experts, strips, blocks, *pack.CODE_BLOCK), dtype=torch.int32)
    factors = scales.new_empty((*experts, strips, packed_groups, STRIP), device=codes.device)
    for expert in range(experts[0]) if experts else (...,):
        words[expert] = _pack_codes(codes[expert])
        factors[expert] = _pack_scales(scales[expert].to(codes.device), packed_groups)
    if codes.is_cuda:
        torch.cuda.current_stream(codes.device).synchronize()
    return PackedWeight(words, factors, n, k, group_size, experts[0] if experts else 0)


def _pack_codes(codes: torch.Tensor) -> torch.Tensor:
    """As `formats.pack.pack_codes`, on any device."""
    k, n = codes.shape
    strips, blocks = pack.count_strips(n), pack.count_strips(k)
    padded = codes.new_full((strips * STRIP, blocks * STRIP), u4b8.ZERO_CODE)
    padded[:n, :k] = codes.t()
    nibbles = padded.reshape(pack.code_split(n, k)).permute(pack.CODE_AXES)
    joined = nibbles[..., 0] | nibbles[..., 1] << 4
    return joined.reshape(-1).view(torch.int32).reshape(strips, blocks, *pack.CODE_BLOCK)


def _pack_scales(scales: torch.Tensor, packed_groups: int) -> torch.Tensor:
    """As `formats.pack.pack_scales`, on any device."""
    groups, n = scales.shape
    strips = pack.count_strips(n)
    padded = scales.new_zeros((strips * STRIP, packed_groups))
    padded[:n, :groups] = scales.t()
    ordered = padded.reshape(pack.scale_split(n, packed_groups)).permute(pack.SCALE_AXES)
    return ordered.reshape(strips, packed_groups, STRIP)


def quantize_weight(weight: torch.Tensor, group_size: int, dtype: torch.dtype | None = None) -> PackedWeight:
    """Quantize to u4b8, rounding to nearest, and pack; on the host, the result where `weight` is.

    Args:
        weight: Floating point [k, n] or [experts, k, n]: the transpose of `torch.nn.Linear.weight`.
        group_size: Weights along k that share one scale; -1 for one scale per output channel.
        dtype: Type of scales and activations, float16 or bfloat16; the weight's own by default.

    Raises:
        WeightError: A wrong dtype or shape, or weights that are not finite or beyond the scales' range.
    """
    values = weight.detach().to("cpu", torch.float32).numpy()
    return pack_quantized(u4b8.quantize(values, group_size, _element(dtype or weight.dtype)), weight.device)


def import_gptq(
    qweight: torch.Tensor,
    scales: torch.Tensor,
    qzeros: torch.Tensor | None = None,
    g_idx: torch.Tensor | None = None,
    *,
    group_size: int,
    version: int = 1,
    dtype: torch.dtype | None = None,
) -> PackedWeight:
    """Pack a GPTQ checkpoint's tensors of one layer; the result lies where `qweight` does.

    Args:
        qweight: int32 [k / 8, n].
        scales: float16 or bfloat16 [groups, n].
        qzeros: int32 [groups, n / 8]; checked to be symmetric.
        g_idx: int32 [k], the group of each input feature; only the trivial order is served.
        group_size: Weights along k that share one scale; -1 for one scale per output channel.
        version: 1 (`gptq`: zero points stored less one) or 2 (`gptq_v2`).
        dtype: Type of scales and activations; the scales' own by default.

    Raises:
        WeightError: A wrong dtype or shape, an asymmetric zero point, or act-order.
    """
    quantized = gptq.read(
        to_numpy(qweight),
        to_numpy(scales.to(dtype or scales.dtype)),
        None if qzeros is None else to_numpy(qzeros),
        None if g_idx is None else to_numpy(g_idx),
        group_size=group_size,
        version=version,
    )
    return pack_quantized(quantized, qweight.device)


def import_compressed_tensors(
    weight_packed: torch.Tensor,
    weight_scale: torch.Tensor,
    *,
    k: int,
    group_size: int,
    dtype: torch.dtype | None = None,
) -> PackedWeight:
    """Pack a compressed-tensors (`pack-quantized`, 4 bits, symmetric) layer where `weight_packed` lies.

    Args:
        weight_packed: int32 [n, ceil(k / 8)].
        weight_scale: float16 or bfloat16 [n, groups].
        k: Input features (the checkpoint's `weight_shape[1]`).
        group_size: Weights along k that share one scale; -1 for one scale per output channel.
        dtype: Type of scales and activations; the scales' own by default.

    Raises:
        WeightError: A wrong dtype or shape.
    """
    quantized = compressed_tensors.read(
        to_numpy(weight_packed),
        to_numpy(weight_scale.to(dtype or weight_scale.dtype)),
        k=k,
        group_size=group_size,
    )
    return pack_quantized(quantized, weight_packed.device)


def pack_quantized(quantized: u4b8.Quantized, device: torch.device | str = "cpu") -> PackedWeight:
    """Pack what `formats` quantized or read, on a device.

    Raises: As `pack_weight`.
    """
    codes, scales = from_numpy(quantized.codes), from_numpy(quantized.scales)
    return pack_weight(codes.to(device), scales.to(device), quantized.group_size)


def unpack_weight(weight: PackedWeight) -> u4b8.Quantized:
    """Return a packed weight's codes and scales in the order of the GEMM, on the host."""
    codes = to_numpy(weight.codes).view(np.uint32)
    return u4b8.Quantized(
        pack.unpack_codes(codes, weight.k, weight.n),
        pack.unpack_scales(to_numpy(weight.scales), weight.k, weight.n, weight.group_size),
        weight.group_size,
    )


def to_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return a tensor as a numpy array; a contiguous CPU tensor's memory is shared, bfloat16 included."""
    host = tensor.detach().cpu().contiguous()
    if host.dtype != torch.bfloat16:
        array: npt.NDArray[Any] = host.numpy()
        return array
    shared: npt.NDArray[Any] = host.view(torch.int16).numpy().view(numpy_dtype(BF16))
    return shared


def from_numpy(array: npt.NDArray[Any]) -> torch.Tensor:
    """Return a numpy array as a CPU tensor; a contiguous array's memory is shared, bfloat16 included."""
    contiguous = np.ascontiguousarray(array)
    if contiguous.dtype != numpy_dtype(BF16):
        return torch.from_numpy(contiguous)
    return torch.from_numpy(contiguous.view(np.int16)).view(torch.bfloat16)


def _element(dtype: torch.dtype) -> DType:
    try:
        return ELEMENTS[dtype]
    except KeyError:
        raise WeightError(
            f"scales must be float16 or bfloat16 (got {dtype}); name one with dtype=torch.bfloat16"
        ) from None
