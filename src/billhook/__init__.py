"""Billhook: generates, compiles, tunes and runs mixed-precision GEMM kernels for NVIDIA GPUs."""

__version__ = "0.1.0"
