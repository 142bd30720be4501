import pytest

from billhook.config import Problem
from billhook.errors import InputError
from billhook.measure.roofline import Peak, floor_us, moved_bytes, operations, peak_of, rows_out, weight_bytes
from billhook.measure.workload import gemm_types

TYPES = gemm_types("bf16")
H100 = peak_of("NVIDIA H100 80GB HBM3")


def dense(m: int, n: int, k: int, group_size: int = 128) -> Problem:
    return Problem(m, n, k, TYPES, group_size)


# The floors published with the peers' measurements (H100, 3.0 TB/s, 800 TFLOP/s), rounded to 0.1 us there.
@pytest.mark.parametrize(
    ("problem", "hit", "floor"),
    [
        (dense(1, 4096, 4096), 0, 2.9),
        (dense(64, 4096, 4096), 0, 3.2),
        (dense(128, 4096, 4096), 0, 5.4),
        (dense(16, 28672, 4096), 0, 20.5),
        (dense(1024, 8192, 8192), 0, 171.8),
        (Problem(1, 28672, 4096, TYPES, 128, 8, 2), 2, 40.4),
        (Problem(2, 4096, 14336, TYPES, 128, 8, 1), 2, 20.2),
        (Problem(1, 1536, 2048, TYPES, 128, 128, 8), 8, 4.3),
        (Problem(1024, 28672, 4096, TYPES, 128, 8, 2), 8, 601.3),
    ],
)
def test_floor_is_the_published_one(problem: Problem, hit: int, floor: float) -> None:
    assert floor_us(problem, H100, hit) == pytest.approx(floor, abs=0.06)


def test_bytes_are_counted_one_by_one() -> None:
    problem = dense(3, 64, 256, group_size=64)
    assert weight_bytes(problem) == 64 * 256 // 2 + 4 * 64 * 2
    assert moved_bytes(problem) == weight_bytes(problem) + 3 * 256 * 2 + 3 * 64 * 2
    assert weight_bytes(dense(3, 64, 256, group_size=-1)) == 64 * 256 // 2 + 64 * 2


def test_channel_scales_beside_those_of_groups_are_read_too() -> None:
    problem = Problem(3, 64, 256, gemm_types("e4m3fn", "w4a8"), 128)
    assert weight_bytes(problem) == 64 * 256 // 2 + 2 * 64 + 4 * 64


def test_only_experts_that_are_hit_are_read() -> None:
    problem = Problem(4, 64, 256, TYPES, 128, 16, 2)
    assert weight_bytes(problem, 3) * 16 == weight_bytes(problem) * 3
    assert rows_out(problem) == 8
    assert operations(problem) == 2 * 8 * 64 * 256


def test_unknown_gpu_needs_both_numbers() -> None:
    with pytest.raises(InputError, match="RTX 4090"):
        peak_of("NVIDIA GeForce RTX 4090", bandwidth=0.9e12)
    assert peak_of("NVIDIA GeForce RTX 4090", 0.9e12, 160e12) == Peak(0.9e12, 160e12, 160e12)


def test_given_bandwidth_wins_over_the_table() -> None:
    assert peak_of("NVIDIA H200", bandwidth=4.5e12).bandwidth == 4.5e12
