"""Weights on the host: quantize, pack, dequantize, read checkpoints, reference GEMM (numpy, no torch)."""
