"""Where elements of wgmma's operands lie: our packed weights, descriptors and model of SM90 against CuTe."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from cpu.cutlass.referee import Compiled, compile_source
from cpu.sm90 import model

from billhook.arch import parse
from billhook.build.headers import CUDA_ROOT
from billhook.dtypes import U4B8, U8B128, DType
from billhook.formats.pack import pack_codes

_TOKENS = 32
_ADDRESSES = (0, 16, 1024, 8192 + 64, 227 * 1024, 0x3FFF0)
_SOURCE = f"""
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>
#include "billhook/mma/wgmma.cuh"
namespace gmma = cute::SM90::GMMA;
template <class Layout>
struct Table {{
  unsigned at[cute::size(Layout{{}})];
  constexpr Table() : at{{}} {{
    for (int i = 0; i < cute::size(Layout{{}}); ++i) at[i] = Layout{{}}(i);
  }}
}};
#define TABLE(name, ...) extern "C" __device__ __attribute__((used)) const Table<__VA_ARGS__> name = {{}};
TABLE(a_16_bits, gmma::ALayout_64x16)
TABLE(a_8_bits, gmma::ALayout_64x32)
TABLE(sums, gmma::CLayout_64xN<{_TOKENS}>)
template <class T>
using Tile = decltype(cute::tile_to_shape(gmma::Layout_K_SW128_Atom<T>{{}},
                                          cute::Shape<cute::Int<{_TOKENS}>, cute::Int<128 / sizeof(T)>>{{}}));
template <class T>  // the swizzle of addresses as one of elements
using Places = decltype(cute::as_position_independent_swizzle_layout(Tile<T>{{}}));
TABLE(shared_16_bits, Places<cutlass::bfloat16_t>)
TABLE(shared_8_bits, Places<int8_t>)

template <class T>
__device__ unsigned long long descriptor(unsigned address) {{
  auto* const at = static_cast<T*>(__cvta_shared_to_generic(address));
  const auto tile = cute::make_tensor(cute::make_smem_ptr(at), Tile<T>{{}});
  const auto step = cute::Shape<cute::Int<{_TOKENS}>, cute::Int<32 / sizeof(T)>>{{}};
  return gmma::make_gmma_desc<gmma::Major::K>(cute::local_tile(tile, step, cute::make_coord(0, 0)));
}}
#define DESCRIPTORS(name, function) \\
  extern "C" __global__ void name(unsigned long long* out) {{ \\
    for (unsigned address : {{{", ".join(f"{one}u" for one in _ADDRESSES)}}}) *out++ = function(address); \\
  }}
DESCRIPTORS(ours, billhook::wgmma_descriptor)
DESCRIPTORS(theirs_16_bits, descriptor<cutlass::bfloat16_t>)
DESCRIPTORS(theirs_8_bits, descriptor<int8_t>)
"""


@pytest.fixture(scope="module")
def cute() -> Compiled:
    return compile_source(_SOURCE)


def operand_places(cute: Compiled, bits: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return row and column of A's elements [thread, element], in the order in which they fill registers."""
    at = cute.table(f"a_{bits}_bits").reshape(-1, 128).T
    return at % 64, at // 64


def shared_places(cute: Compiled, bits: int) -> npt.NDArray[Any]:
    """Return where in shared memory the elements [token, feature] lie, in elements."""
    return cute.table(f"shared_{bits}_bits").reshape(-1, _TOKENS).T


@pytest.mark.parametrize("bits", [16, 8])
def test_the_descriptor_is_that_of_cute(cute: Compiled, bits: int) -> None:
    assert cute.machine_code("ours") == cute.machine_code(f"theirs_{bits}_bits")


@pytest.mark.parametrize("element", [U4B8, U8B128], ids=str)
def test_packed_codes_are_where_the_row_operand_wants_them(cute: Compiled, element: DType) -> None:
    rows, columns = operand_places(cute, 16)
    found = np.zeros((64 * 64,), np.int64)  # [step, thread, element] -> index of the code that lies there
    for bit in range(12):  # of the index: a code has too few bits for all of it
        index = np.arange(64 * 64).reshape(64, 64)  # [k, n]
        packed = pack_codes((index >> bit & 1).astype(np.uint8), element)[0, 0]
        found += codes_in_fragments(packed, element.bits).ravel().astype(np.int64) << bit
    features = np.arange(4)[:, None, None] * 16 + columns
    np.testing.assert_array_equal(found.reshape(4, 128, 8), features * 64 + rows)


def codes_in_fragments(packed: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint8]:
    """Return the codes of a block [step of 16 features, thread, element], as dequantized fragments have them.

    Element 2 r + h, half h of register r, is nibble r + 4 h of a step's word, or byte r // 2 + 2 h of
    word r % 2.
    """
    if bits == 4:
        words = packed.reshape(4, 32, 4).transpose(2, 0, 1)  # warp, lane, step -> step, warp, lane
        codes = [words >> np.uint32(4 * (r + 4 * h)) & np.uint32(15) for r in range(4) for h in range(2)]
    else:
        pairs = packed.reshape(4, 2, 32, 2, 2).transpose(1, 3, 0, 2, 4)  # half, step of it, warp, lane, word
        words = pairs.reshape(4, 4, 32, 2)
        codes = [
            words[..., r % 2] >> np.uint32(8 * (r // 2) + 16 * h) & np.uint32(255)
            for r in range(4)
            for h in range(2)
        ]
    return np.stack(codes, axis=-1).reshape(4, 128, 8).astype(np.uint8)


# Element type -> of numpy, what its sums are.
KINDS: dict[str, tuple[Any, Any]] = {
    "f16": (np.float16, np.float32),
    "bf16": (ml_dtypes.bfloat16, np.float32),
    "e4m3fn": (ml_dtypes.float8_e4m3fn, np.float32),
    "s8": (np.int8, np.int32),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Compile the kernel of multiply.cuh for the CPU, for each type."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the model of the GPU needs g++")
    kernel = Path(__file__).with_name("multiply.cuh").read_text(encoding="utf-8")
    source = [kernel]
    for kind in KINDS:
        source += [
            f"namespace of_{kind} {{ MULTIPLY({kind}, {_TOKENS}) }}",
            model.entry(f"multiply_{kind}", f"of_{kind}"),
        ]
    return model.compile_library(
        compiler, "\n".join(source), CUDA_ROOT, tmp_path_factory.mktemp("model"), parse("9.0a")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_multiplies_what_cute_says_lies_there(cute: Compiled, library: Any, kind: str) -> None:
    element, total = KINDS[kind]
    bits = np.dtype(element).itemsize * 8
    rng = np.random.default_rng(5)
    depth = 128 * 8 // bits
    a, b = (rng.integers(-4, 5, (extent, depth)) for extent in (64, _TOKENS))
    rows, columns = operand_places(cute, bits)
    step = depth // 4
    registers = np.stack([a[rows, columns + i * step] for i in range(4)]).astype(element, order="C")
    image = np.empty(_TOKENS * depth, element)
    image[shared_places(cute, bits)] = b.astype(element)
    places = cute.table("sums").reshape(-1, 128).T
    d = np.zeros((128, _TOKENS // 2), total)
    values = [ctypes.c_void_p(array.ctypes.data) for array in (registers, image, d)]
    error = model.launch(
        library,
        f"multiply_{kind}",
        (ctypes.c_void_p * 3)(*map(ctypes.addressof, values)),
        [registers, image],
        grid=(1, 1),
        cluster=(1, 1),
        threads=128,
        shared_bytes=_TOKENS * 128,
        seed=1,
    )
    assert error == ""
    np.testing.assert_array_equal(d, (a @ b.T)[places % 64, places // 64])
