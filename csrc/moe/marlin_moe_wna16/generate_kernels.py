"""Write the Marlin MoE kernel instantiations and `kernel_selector.h`: generate_kernels.py ARCHS [OUT_DIR]."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "src"))

try:
    from billhook.vllm.documented import run_script
except ImportError as error:
    sys.exit(f"{__file__}: {error}; install Billhook first: {sys.executable} -m pip install {ROOT}")

if __name__ == "__main__":
    sys.exit(run_script("marlin-moe", sys.argv[1:], Path(__file__)))
