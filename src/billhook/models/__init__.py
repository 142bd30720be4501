"""A Hugging Face config.json -> the quantized GEMMs that an inference engine issues for the model."""

from .fields import Fields, read_object
from .layer import Gemm, Layer, activations_type, check_gemm, choose_types, gemm_types, gemms, layers
from .methods import MODELOPT_FILE, read_quantization
from .model import KNOWN, Model, load_model, read_dtype
from .quantization import Quantization, WeightFormat

__all__ = [
    "KNOWN",
    "MODELOPT_FILE",
    "Fields",
    "Gemm",
    "Layer",
    "Model",
    "Quantization",
    "WeightFormat",
    "activations_type",
    "check_gemm",
    "choose_types",
    "gemm_types",
    "gemms",
    "layers",
    "load_model",
    "read_dtype",
    "read_object",
    "read_quantization",
]
