"""Which kernel a request gets, from the catalog and from a bundle; no GPU and no compiler is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cpu.build.stand_in import artifacts, small_plan

from billhook.arch import parse
from billhook.build import Bundle, write_bundle
from billhook.catalog import load
from billhook.config import GemmTypes, Problem
from billhook.dispatch import cuda, loader, provider
from billhook.dispatch.loader import GemmKernel
from billhook.dispatch.provider import Kernels, Request
from billhook.dispatch.source import BundleSource, Compiler
from billhook.dtypes import BF16, S8, U4B8
from billhook.errors import ArchError, BundleError, UnsupportedError
from billhook.plan import plan_problems
from billhook.select import select

PLAN = small_plan()
H100, A100 = (9, 0), (8, 0)
MOE = Problem(4, 512, 512, GemmTypes(BF16, U4B8, BF16, BF16), 128, 8, 2)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", PLAN, artifacts(PLAN))


def test_the_catalog_chooses_for_the_gpu_at_hand() -> None:
    for capability, name in ((H100, "sm90a"), (A100, "sm80")):
        config = Compiler().choose(MOE, capability, 0)
        assert config.arch.sm == name
        assert config == select(MOE, config.arch).config


@pytest.mark.parametrize("block_m", [8, 16, 32, 64])
def test_a_routing_already_made_binds_the_rows_of_the_tile(block_m: int) -> None:
    for m in (1, 100, 4000):
        config = Compiler().choose(replace(MOE, m=m), H100, block_m)
        assert config.tile.tile_m == block_m
        assert config.indexed


def test_a_routing_that_no_tile_fits_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"blocks of 7 rows.*route with block_m="):
        Compiler().choose(MOE, H100, 7)


def test_a_kernel_that_cannot_exist_is_refused() -> None:
    config = select(MOE, PLAN.kernels[0].config.arch).config
    with pytest.raises(UnsupportedError, match="tile_m must be"):
        Compiler().cubin(replace(config, tile=replace(config.tile, tile_m=9)))


def test_a_bundle_chooses_by_its_dispatch_table(bundle: Bundle) -> None:
    source = BundleSource(bundle)
    for entry in PLAN.dispatch:
        for span in entry.ranges:
            problem = Problem(
                span.last, entry.n, entry.k, MOE.types, entry.group_size, entry.num_experts, entry.top_k
            )
            config = source.choose(problem, H100, 0)
            assert config.name == span.kernel
            assert source.cubin(config) == f"machine code of {span.kernel}".encode()


def test_a_bundle_serves_a_routing_with_any_kernel_it_holds(bundle: Bundle) -> None:
    source = BundleSource(bundle)
    for block_m in {config.tile.tile_m for config in source.configs.values() if config.indexed}:
        config = source.choose(MOE, H100, block_m)
        assert (config.tile.tile_m, config.indexed) == (block_m, True)
    with pytest.raises(UnsupportedError, match="blocks of 7 rows"):
        source.choose(MOE, H100, 7)


def test_what_a_bundle_does_not_hold_is_named(bundle: Bundle) -> None:
    source = BundleSource(bundle)
    with pytest.raises(UnsupportedError, match=r"n=1024 k=512.*use_bundle\(None\)"):
        source.choose(replace(MOE, n=1024), H100, 0)
    with pytest.raises(UnsupportedError, match=r"a GPU of 8\.0"):
        source.choose(MOE, A100, 0)
    with pytest.raises(BundleError, match=r"no MoE routing kernel for a GPU of 8\.0"):
        source.support("route", A100)
    with pytest.raises(BundleError, match="holds no kernel"):
        source.cubin(replace(source.choose(MOE, H100, 0), group_size=32))


@pytest.mark.parametrize("part", ["route", "pack"])
def test_a_bundle_holds_the_kernels_that_route_and_pack(bundle: Bundle, part: str) -> None:
    arch, cubin = BundleSource(bundle).support(part, H100)
    assert (arch.sm, cubin) == ("sm90a", f"machine code of {part}_sm90a".encode())


def test_a_bundle_holds_what_groups_rows_if_a_kernel_wants_them_grouped(
    bundle: Bundle, tmp_path: Path
) -> None:
    planned = small_plan(max_tokens=2000)
    large = BundleSource(write_bundle(tmp_path / "large", planned, artifacts(planned)))
    assert large.choose(replace(MOE, m=2000), H100, 0).grouped
    assert large.support("group", H100)[1] == b"machine code of group_sm90a"
    with pytest.raises(BundleError, match="no MoE grouping kernel"):
        BundleSource(bundle).support("group", H100)


def test_a_bundle_holds_what_quantizes_if_a_kernel_takes_8_bit_activations(
    bundle: Bundle, tmp_path: Path
) -> None:
    narrow = plan_problems([Problem(1, 512, 512, GemmTypes(S8, U4B8, BF16, BF16), -1)], [parse("9.0a")], 40)
    arch, cubin = BundleSource(write_bundle(tmp_path / "narrow", narrow, artifacts(narrow))).support(
        "quantize", H100
    )
    assert (arch.sm, cubin) == ("sm90a", b"machine code of quantize_sm90a")
    with pytest.raises(BundleError, match="no quantizing kernel"):
        BundleSource(bundle).support("quantize", H100)


def test_the_environment_names_the_bundle(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider, "_current", None)
    monkeypatch.setenv("BILLHOOK_BUNDLE", str(bundle.folder))
    source = provider.kernels().source
    assert isinstance(source, BundleSource) and source.bundle.folder == bundle.folder
    provider.use_bundle(None)
    assert isinstance(provider.kernels().source, Compiler)
    monkeypatch.setattr(provider, "_current", None)
    monkeypatch.setenv("BILLHOOK_BUNDLE", str(bundle.folder / "absent"))
    with pytest.raises(BundleError, match="does not exist"):
        provider.kernels()


def test_a_kernel_is_chosen_and_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []

    class Fake(Compiler):
        def cubin(self, config: object) -> bytes:
            return b""

    def load(cubin: bytes, config: object, device: int) -> GemmKernel:
        loads.append((config, device))
        return GemmKernel(config, None)  # type: ignore[arg-type]

    monkeypatch.setattr(provider, "load_gemm", load)
    monkeypatch.setattr(cuda, "capability", lambda device: H100)
    monkeypatch.setattr(cuda, "multiprocessors", lambda device: 132)
    kernels = Kernels(Fake())
    request = Request(0, 4, 512, 512, "bf16", "u4b8", "bf16", "bf16", 128, 8, 2)
    first = kernels.gemm(request)
    assert kernels.gemm(request) is first
    assert kernels.gemm(request._replace(m=5)) is first  # another problem, the same kernel
    assert len(loads) == 1
    kernels.gemm(request._replace(device=1))
    assert [device for _, device in loads] == [0, 1]


def test_kernels_are_chosen_for_the_multiprocessors_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "capability", lambda device: H100)
    monkeypatch.setattr(cuda, "multiprocessors", lambda device: (132, 114)[device])
    kernels = Kernels(Compiler())
    asked = [Request(device, 300, 4096, 4096, "bf16", "u4b8", "bf16", "bf16", 128) for device in (0, 1, 0)]
    sxm, pcie, again = (kernels.choose(one) for one in asked)
    assert sxm == again == select(asked[0].problem, sxm.arch).config
    assert pcie == select(asked[1].problem, sxm.arch, load().on(114)).config
    assert pcie != sxm


def test_code_for_another_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "capability", lambda device: A100)
    with pytest.raises(ArchError, match=r"compiled for 9\.0a, and GPU 0 is 8\.0"):
        loader.load_kernel(b"", "k", PLAN.kernels[0].config.arch, 0, threads=32)
