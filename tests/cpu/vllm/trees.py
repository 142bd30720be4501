"""Small folders with what tells the releases of vLLM apart: generator scripts in their places."""

from __future__ import annotations

from pathlib import Path

_MARLIN = '''\
"""Stands for a release's own generator: its table, and a file that shows it ran."""

import sys
from pathlib import Path

ARCHS = []
SUPPORT_FP8 = any({fp8} for arch in ARCHS)
THREAD_CONFIGS = [(128, 128, 256), (64, 256, 256), (64, 128, 128), (128, 64, 128)]

QUANT_CONFIGS = [
    {{
        "b_type": "kFE4M3fn",
        "thread_configs": THREAD_CONFIGS,
        "group_blocks": [-1, 8],
    }},
    {{
        "a_type": ["kBFloat16"],
        "b_type": "kFE2M1f",
        "s_type": "kFE8M0fnu",
        "group_blocks": [2],
    }},
{mxfp8}
    {{
        "a_type": ["kS8"],
        "b_type": "kU4B8",
        "group_blocks": [-1, 2, 4, 8],
    }},
    {{
        "a_type": ["kFE4M3fn"],
        "b_type": "kFE2M1f",
        "s_type": "kFE8M0fnu",
        "group_blocks": [2],
    }},
]

ERROR = '{check}(false, "marlin kernel with fp8 activation is not built.");'

if __name__ == "__main__":
    Path(__file__).with_name("original-ran").write_text(" ".join(sys.argv[1:]))
'''
_MXFP8 = """\
    {
        "a_type": ["kBFloat16"],
        "b_type": "kFE4M3fn",
        "s_type": "kFE8M0fnu",
        "group_blocks": [2],
    },"""
_MACHETE = '''\
DISPATCH_TEMPLATE = """
namespace machete {{
{tensor} mm_dispatch(MMArgs args);
}}; // namespace machete
"""
'''

SCRIPTS = {
    "0.16": {
        "moe/marlin_moe_wna16/generate_kernels.py",
        "quantization/marlin/generate_kernels.py",
        "quantization/machete/generate.py",
    },
    "0.33": {"quantization/marlin/generate_kernels.py", "quantization/machete/generate.py"},
}
SCRIPTS["0.20"] = SCRIPTS["0.16"]


def write_tree(root: Path, release: str, csrc: str | None = None) -> Path:
    """Write a tree of `release` into the new folder `root` and return it."""
    stable = release == "0.33"
    base = root / (csrc or ("csrc/libtorch_stable" if stable else "csrc"))
    marlin = _MARLIN.format(
        mxfp8="" if release == "0.16" else _MXFP8,
        fp8="arch == 89 or arch // 10 == 12" if stable else "arch in [89, 120]",
        check="STD_TORCH_CHECK" if stable else "TORCH_CHECK",
    )
    machete = _MACHETE.format(tensor="torch::stable::Tensor" if stable else "torch::Tensor")
    for folder in ("moe/marlin_moe_wna16", "quantization/marlin", "quantization/machete"):
        (base / folder).mkdir(parents=True)
        (base / folder / "kernel.h").write_text("// the tree's own\n")
    for name in SCRIPTS[release]:
        script = base / name
        script.write_text(machete if "machete" in name else marlin)
        script.chmod(0o755 if "marlin" in name else 0o640)
    return root
