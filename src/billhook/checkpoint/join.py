"""Join weights along n, stack them as experts, and take experts from a stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats.stored import Words, join_words, stack_words
from .read import Weight


def join(weights: Sequence[Weight]) -> Weight:
    """Return the weights of modules that read the same input as one, their output features in a row.

    Args:
        weights: Alike in format, k, group size, order of input features and NVFP4's global scale, with or
            without biases; [k, n] each.
    """
    if len(weights) == 1:
        return weights[0]
    parts = [one.parts for one in weights]
    joined = parts[0]._replace(
        codes=_join_codes([one.codes for one in parts]),
        scales=np.concatenate(_of_one_type([one.scales for one in parts]), axis=-1),
        zeros=_join_optional([one.zeros for one in parts]),
    )
    bias = _join_optional([one.bias for one in weights])
    scales = _join_optional([one.input_scales for one in weights])
    return Weight(joined, bias, weights[0].input_order, scales)


def stack(experts: Sequence[Weight]) -> Weight:
    """Return the weights of experts as one, [experts, k, n].

    Args:
        experts: Alike in all but values; [k, n] each.
    """
    parts = [one.parts for one in experts]
    whole = [one.global_scales for one in parts if one.global_scales is not None]
    rest = [(one.bias, one.input_scales) for one in experts]
    stacked = parts[0]._replace(
        codes=_stack_codes([one.codes for one in parts]),
        scales=np.stack(_of_one_type([one.scales for one in parts])),
        zeros=_stack_optional([one.zeros for one in parts]),
        global_scales=np.concatenate(whole) if whole else None,
        channel_scales=_stack_optional([one.channel_scales for one in parts]),
    )
    bias, scales = (_stack_optional(list(arrays)) for arrays in zip(*rest, strict=True))
    return Weight(stacked, bias, experts[0].input_order, scales)


def take_experts(weight: Weight) -> Iterator[Weight]:
    """Yield each expert's weight [k, n] of a weight [experts, k, n]."""
    parts = weight.parts
    whole = parts.global_scales
    for expert in range(len(parts.codes)):
        one = parts._replace(
            codes=parts.codes[expert],
            scales=parts.scales[expert],
            zeros=None if parts.zeros is None else parts.zeros[expert],
            global_scales=None if whole is None else whole[expert : expert + 1],
        )
        bias = None if weight.bias is None else weight.bias[expert]
        yield Weight(one, bias, weight.input_order)


def _join_codes(codes: Sequence[npt.NDArray[np.uint8] | Words]) -> npt.NDArray[np.uint8] | Words:
    words = [one for one in codes if isinstance(one, Words)]
    if words:
        return join_words(words)
    # Codes of checkpoints that are one byte each lie by output features, [n, k].
    joined: npt.NDArray[np.uint8] = np.concatenate([np.asarray(one).T for one in codes]).T
    return joined


def _stack_codes(codes: Sequence[npt.NDArray[np.uint8] | Words]) -> npt.NDArray[np.uint8] | Words:
    words = [one for one in codes if isinstance(one, Words)]
    if words:
        return stack_words(words)
    stacked: npt.NDArray[np.uint8] = np.stack([np.asarray(one) for one in codes])
    return stacked


def _join_optional(arrays: Sequence[npt.NDArray[Any] | None]) -> npt.NDArray[Any] | None:
    there = [one for one in arrays if one is not None]
    return np.concatenate(_of_one_type(there), axis=-1) if there else None


def _stack_optional(arrays: Sequence[npt.NDArray[Any] | None]) -> npt.NDArray[Any] | None:
    there = [one for one in arrays if one is not None]
    return np.stack(_of_one_type(there)) if there else None


def _of_one_type(arrays: Sequence[npt.NDArray[Any]]) -> Sequence[npt.NDArray[Any]]:
    """Return arrays of one type: float32 where f16 and bf16 meet, which holds the numbers of both."""
    alike = len({one.dtype for one in arrays}) == 1
    return arrays if alike else [one.astype(np.float32) for one in arrays]
