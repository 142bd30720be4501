"""A Hugging Face config.json -> the quantized GEMMs that an inference engine issues for the model."""

from .fields import Fields
from .layer import Gemm, Layer, activations_type, check_split, gemms, layers
from .model import KNOWN, Model, load_model
from .quantization import Quantization, WeightFormat, read_quantization

__all__ = [
    "KNOWN",
    "Fields",
    "Gemm",
    "Layer",
    "Model",
    "Quantization",
    "WeightFormat",
    "activations_type",
    "check_split",
    "gemms",
    "layers",
    "load_model",
    "read_quantization",
]
