"""Write the Marlin MoE kernel instantiations and `kernel_selector.h`: generate_kernels.py ARCHS [OUT_DIR]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "src"))

from billhook.vllm.documented import run_script

if __name__ == "__main__":
    sys.exit(run_script("marlin-moe", sys.argv[1:], Path(__file__)))
