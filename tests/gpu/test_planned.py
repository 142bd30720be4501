"""A bundle planned as a model will be loaded has the kernels that the loaded model runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5", reason="needs transformers 5")

from cpu.nn.planned import DENSE, EXPERTS, W4A8, write  # noqa: E402

import billhook  # noqa: E402
from billhook.cli import main  # noqa: E402


@pytest.mark.filterwarnings("error:activations of:UserWarning")
@pytest.mark.parametrize("config", [DENSE, EXPERTS], ids=lambda one: one["model_type"])
@pytest.mark.parametrize(
    ("narrow", "options"),
    [(False, []), (True, ["--narrow-activations"]), ("folded", ["--fold"])],
    ids=["wide", "narrow", "folded"],
)
def test_a_loaded_model_runs_from_its_bundle(
    narrow: Any, options: list[str], config: dict[str, Any], tmp_path: Path
) -> None:
    capability = torch.cuda.get_device_capability()
    if narrow and capability < (8, 9):
        pytest.skip("e4m3 activations need compute capability 8.9 or later")
    if narrow == "folded" and capability != (9, 0):
        pytest.skip("scales are folded for 9.0a alone")
    folder, out = write(tmp_path / "in", config, *W4A8), tmp_path / "bundle"
    request = [str(folder), "--arch", "native", "--unfused", "--max-tokens", "64", *options]
    assert main(["build", *request, "--out", str(out)]) == 0
    ids = torch.arange(24, device="cuda")[None]
    billhook.use_bundle(out)
    try:
        model = billhook.load(folder, narrow_activations=narrow)
        with torch.no_grad():
            got = model(ids).logits.double()
    finally:
        billhook.use_bundle(None)
    with torch.no_grad():
        want = model(ids).logits.double()  # by kernels compiled on first use
    assert got.isfinite().all()
    assert (got - want).norm() <= 0.01 * want.norm()
