"""A few kernels of each kind at odd m, n and k, small enough for compute-sanitizer's tools.

    compute-sanitizer --tool memcheck --error-exitcode 1 python -m pytest tests/gpu/test_sanitized.py

Each CTA fills its stages several times and most tiles are shared by CTAs, so that races would show. Racecheck
needs other kernels: docs/numerics.md, "Racecheck".
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from gpu.problems import compile_all  # noqa: E402

from billhook import families  # noqa: E402
from billhook.config import KernelConfig, Problem, parse_name  # noqa: E402
from billhook.driver import native_arch  # noqa: E402
from billhook.ops.verify import verify_kernel  # noqa: E402

MARLIN = [
    "bf16_u4b8_bf16_bf16_g128_m16n128k128s4_dense",
    "f16_u8b128_f16_f16_g32_m48n64k128s4_dense",
    "s8_u4b8_bf16_bf16_g128_m16n128k256s3_dense",
    "e4m3fn_u4b8_bf16_bf16_gch_m32n64k256s4_dense",
    "bf16_u4b8_bf16_bf16_g128_m8n128k256s3_moe",
    "s8_u4b8_bf16_bf16_g128_m16n128k256s3_moe",
]
MACHETE = [
    "bf16_u4b8_bf16_bf16_g128_m32n128k256s4_dense",
    "bf16_u4b8_bf16_bf16_g128_m64n256k64s4_dense",
    "bf16_u4b8_bf16_bf16_g128_m96n128k128s4_dense",
    "bf16_u4b8_bf16_bf16_g128_m112n192k128s4_dense",
    "bf16_u4b8_bf16_bf16_g128_m176n128k64s7_dense",
    "bf16_u4b8_bf16_bf16_g128_m208n128k128s3_dense",
    "bf16_u4b8_bf16_bf16_g128_m256n128k64s5_dense",
    "bf16_u4b8_bf16_bf16_g128_m144n128k128s4c2_dense",
    "bf16_u4b8_bf16_bf16_g128_m192n128k64s6c2_dense",
    "bf16_u4b8_bf16_bf16_g128_m240n128k64s5c2_dense",
    "bf16_u4b8_bf16_bf16_g128_m256n128k128s2c2_dense",
    "bf16_u4b8_bf16_bf16_g128_m96n128k128s3p_dense",
    "bf16_u4b8_bf16_bf16_g128_m64n128k128s4c2p_dense",
    "f16_u4_f16_f16_g64_m64n192k128s4_dense",
    "f16_u8b128_f16_f16_g32_m80n128k64s4_dense",
    "bf16_e2m1f_e8m0fnu_bf16_g32_m32n128k128s3_dense",
    "bf16_e4m3fn_bf16_bf16_gch_m128n128k128s3_dense",
    "e4m3fn_u4b8_bf16_bf16_gch_m256n128k128s4_dense",
    "e4m3fn_u4b8_bf16_bf16_g128_m96n128k128s5_dense",
    "s8_u4b8_bf16_bf16_gch_m64n128k256s3_dense",
    "s8_u4b8_bf16_bf16_g128_m96n128k128s5_dense",
    "e4m3fn_e4m3fn_bf16_bf16_gch_m176n128k128s4_dense",
    "e4m3fn_e4m3fn_f16_f16_g128_m80n128k256s3_grouped",
    "s8_u8b128_bf16_bf16_gch_m192n128k128s4c2_dense",
    "s8_u8b128_f16_f16_g128_m96n128k128s4_dense",
    "e4m3fn_u4b8_e4m3fn_bf16_g128_m64n128k256s5_dense",
    "e4m3fn_u4b8_e4m3fn_bf16_g128_m128n128k128s4_dense",
    "e4m3fn_u4b8_e4m3fn_bf16_g128_m208n128k128s5c2_dense",
    "bf16_u4b8_bf16_bf16_g128_m32n256k128s4_moe",
    "bf16_u4b8_bf16_bf16_g128_m80n192k128s4_moe",
    "bf16_u4b8_bf16_bf16_g128_m144n128k128s4_moe",
    "bf16_u4b8_bf16_bf16_g128_m256n128k64s5_grouped",
    "bf16_u4b8_bf16_bf16_g128_m96n128k128s3p_grouped",
    "e4m3fn_u4b8_bf16_bf16_gch_m64n128k128s4_grouped",
    "s8_u4b8_bf16_bf16_g128_m80n128k256s4_grouped",
    "e4m3fn_u4b8_e4m3fn_bf16_g128_m256n128k128s4_grouped",
]
# Wide layers, for whose last wave tiles are halved, or of which warpgroups take several in turns.
WIDE = [
    "bf16_u4b8_bf16_bf16_g128_m256n128k64s5_dense",
    "bf16_u4b8_bf16_bf16_g128_m256n128k128s2c2_dense",
    "e4m3fn_u4b8_e4m3fn_bf16_g128_m256n128k128s4_dense",
    "e4m3fn_e4m3fn_bf16_bf16_gch_m256n128k128s3_dense",
    "bf16_u4b8_bf16_bf16_g128_m96n128k128s3p_dense",
]


def for_this_gpu(family: str, name: str) -> KernelConfig:
    return parse_name(f"{family}_{name}_{native_arch(torch.cuda.get_device_capability()).sm}")


def find(family: str, name: str) -> KernelConfig:
    """Return a kernel for this GPU; skip the test, with the reason, if it has none."""
    config = for_this_gpu(family, name)
    if why_not := families.illegal(config):
        pytest.skip(why_not)
    return config


@pytest.fixture(scope="module", autouse=True)
def compile_together(request: pytest.FixtureRequest) -> None:
    """Compile what the selected tests run at once."""
    params = [item.callspec.params for item in request.session.items if item.path == request.path]
    configs = {for_this_gpu(**one) for one in params}
    compile_all(config for config in sorted(configs) if families.illegal(config) is None)


def verify(config: KernelConfig, n: int, k: int, counts: tuple[int, ...]) -> None:
    experts, top_k = (3, 2) if config.indexed else (0, 0)
    problem = Problem(1, n, k, config.types, config.group_size, experts, top_k)
    verdict = verify_kernel(config, problem, counts)
    assert verdict.passed, verdict


@pytest.mark.parametrize(
    ("family", "name"), [*(("marlin", one) for one in MARLIN), *(("machete", one) for one in MACHETE)]
)
def test_shared_tiles_and_stages_that_are_filled_again(family: str, name: str) -> None:
    config = find(family, name)
    if config.indexed:
        verify(config, 848, 2080, (40, 150))
    else:
        verify(config, 848, 8224, (1, config.tile.tile_m + 7))


@pytest.mark.parametrize(("family", "name"), [("machete", one) for one in WIDE])
def test_halves_and_turns(family: str, name: str) -> None:
    verify(find(family, name), 17936, 1056, (300,))
