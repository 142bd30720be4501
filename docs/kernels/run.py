"""Check every kernel of the ladder against a reference, and time it.

    python docs/kernels/run.py [--steps 1 6] [--shape M N K] [--shape ...]

Needs a GPU of compute capability 9.0, cuda-bindings and Billhook itself: its compiler
front end, its packing, its driver calls. Weights are random 4-bit codes with a scale per
128 input features; the first three steps get them dequantized, so all steps have the same
product. Timed calls rotate over copies of the weights that together exceed the L2 cache.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from ladder import DEPTH, STEPS, Problem, Step, arguments, compile_step, pointers

from billhook.errors import ArchError, BillhookError, InputError

SHAPES = ((128, 8192, 8192), (4096, 8192, 8192))
CHECKED_SHAPE = (200, 1024, 1024)  # a tile and part of one; for step 6 shares of one stage
COLD_BYTES = 128 << 20  # of weights that calls rotate over: more than twice the L2 cache
CALLS, ROUNDS = 24, 5


class Gpu:
    """The GPU of this process's primary context: memory, tensor maps, launches, times.

    Raises:
        ToolchainError: cuda-bindings or the driver is missing.
        ArchError: The GPU is not of compute capability 9.0.
    """

    def __init__(self) -> None:
        from billhook.dispatch import cuda

        self.call, self.driver = cuda.call, cuda.driver()
        self.sms = cuda.multiprocessors(0)
        if cuda.capability(0) != (9, 0):
            raise ArchError(f"the ladder needs compute capability 9.0 (GPU 0 has {cuda.capability(0)})")
        self.call("cuCtxSetCurrent", cuda.primary_context(0))

    @contextmanager
    def memory(self, *arrays: npt.NDArray[Any]) -> Iterator[list[int]]:
        """Copy arrays to the GPU for as long as the context lasts; gives their addresses."""
        addresses = []
        try:
            for array in arrays:
                addresses.append(int(self.call("cuMemAlloc", array.nbytes)))
                self.call("cuMemcpyHtoD", addresses[-1], array.ctypes.data, array.nbytes)
            yield addresses
        finally:
            for address in addresses:
                self.call("cuMemFree", address)

    def tensor_map(self, address: int, rows: int, columns: int, box_rows: int) -> Any:
        """Return the tensor map of a bf16 matrix: boxes of 64 columns, 128-byte swizzle, zeros outside.

        Not through cuda-bindings: its CUtensorMap is not aligned as the driver wants it.
        """
        buffer = ctypes.create_string_buffer(256)  # 128 bytes of it begin at a multiple of 128
        value = (ctypes.c_char * 128).from_buffer(buffer, -ctypes.addressof(buffer) % 128)
        names = self.driver
        (status,) = (
            ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled(
                value,
                int(names.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16),
                2,
                ctypes.c_void_p(address),
                (ctypes.c_uint64 * 2)(columns, rows),
                (ctypes.c_uint64 * 1)(columns * 2),  # bytes between rows
                (ctypes.c_uint32 * 2)(DEPTH, box_rows),
                (ctypes.c_uint32 * 2)(1, 1),  # elements between those that are copied
                int(names.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE),
                int(names.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B),
                int(names.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B),
                int(names.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
            ),
        )
        if status != 0:
            raise InputError(f"cuTensorMapEncodeTiled refused a {rows} x {columns} matrix: error {status}")
        return value

    def load(self, step: Step) -> Any:
        """Compile a step and return its function."""
        function = self.call(
            "cuModuleGetFunction",
            self.call("cuModuleLoadData", compile_step(step).cubin),
            step.symbol.encode(),
        )
        limit = self.driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self.call("cuFuncSetAttribute", function, limit, step.shared_bytes)
        return function

    def time_us(self, launch: Callable[[int], None], calls: int) -> float:
        """Return the microseconds of one of `calls` launches in a row."""
        start, end = self.call("cuEventCreate", 0), self.call("cuEventCreate", 0)
        launch(0)  # the GPU is busy while the host catches up
        self.call("cuEventRecord", start, 0)
        for index in range(calls):
            launch(index)
        self.call("cuEventRecord", end, 0)
        self.call("cuEventSynchronize", end)
        return float(self.call("cuEventElapsedTime", start, end)) * 1000 / calls


def run(gpu: Gpu, step: Step, problem: Problem, timed: bool) -> str:
    """Run a step and return a line about it.

    Raises:
        BillhookError: The product is wrong, or the driver refused something.
    """
    function = gpu.load(step)
    grid = step.grid(problem.m, problem.n, problem.k, gpu.sms)
    forms = problem.weights(step.weights)
    weight_bytes = sum(array.nbytes for array in forms)
    copies = -(-COLD_BYTES // weight_bytes) if timed else 1
    d = np.full((problem.m, problem.n), np.nan, ml_dtypes.bfloat16)
    ones = np.full(max(16, grid[0] * grid[1] * step.slot_bytes), 0xFF, np.uint8)
    with gpu.memory(problem.x, d, ones, *forms * copies) as (x, out, partials, *weights):
        sets = [weights[i : i + len(forms)] for i in range(0, len(weights), len(forms))]
        values = [
            arguments(step, problem, x=x, weights=one, d=out, partials=partials, tensor_map=gpu.tensor_map)
            for one in sets
        ]
        blocks = [pointers(one) for one in values]

        def launch(index: int) -> None:
            block = ctypes.addressof(blocks[index % copies])
            gpu.call("cuLaunchKernel", function, *grid, 1, step.threads, 1, 1, step.shared_bytes, 0, block, 0)

        us = [gpu.time_us(launch, CALLS) for _ in range(ROUNDS)] if timed else []
        gpu.call("cuMemcpyHtoD", out, d.ctypes.data, d.nbytes)
        launch(0)
        gpu.call("cuMemcpyDtoH", d.ctypes.data, out, d.nbytes)
    if wrong := problem.wrong(d):
        raise BillhookError(f"{step.symbol} is wrong for {problem.m} x {problem.n} x {problem.k}: {wrong}")
    line = f"{step.symbol}_{step.name:<17}"
    if not timed:
        return f"{line} correct"
    median = statistics.median(us)
    flops, moved = 2 * problem.m * problem.n * problem.k, problem.x.nbytes + weight_bytes + d.nbytes
    return f"{line} {median:9.1f} us {flops / median / 1e6:7.1f} TFLOP/s {moved / median / 1e3:8.1f} GB/s"


def main() -> int:
    """Check and time the steps that the command line names."""
    parser = argparse.ArgumentParser(description="Check and time the kernels of the ladder.")
    parser.add_argument("--steps", type=int, nargs="+", default=[step.number for step in STEPS])
    parser.add_argument("--shape", type=int, nargs=3, action="append", metavar=("M", "N", "K"))
    options = parser.parse_args()
    steps = [step for step in STEPS if step.number in options.steps]
    failed = False
    try:
        gpu = Gpu()
        for shape in (CHECKED_SHAPE, *(options.shape or SHAPES)):
            problem = Problem(*shape)
            print(f"m={problem.m} n={problem.n} k={problem.k}", flush=True)
            for step in steps:
                try:
                    print("  " + run(gpu, step, problem, timed=shape is not CHECKED_SHAPE), flush=True)
                except BillhookError as error:
                    failed = True
                    print(f"  {error}", file=sys.stderr, flush=True)
    except BillhookError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
