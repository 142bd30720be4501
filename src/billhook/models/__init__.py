"""A Hugging Face config.json -> the quantized GEMMs that an inference engine issues for the model."""

from .activations import (
    Chosen,
    NarrowActivations,
    agree,
    check_folded,
    choose_activations,
    fold_format,
    read_narrow,
)
from .fields import Fields, read_object
from .gemm import Gemm, check_gemm, gemms
from .layer import Found, Layer, activations_type, choose_types, find_layers, gemm_types, layers
from .methods import MODELOPT_FILE, PACKED_METHOD, read_quantization
from .model import KNOWN, Model, load_model, read_dtype
from .quantization import KEPT_WIDE, Quantization, WeightFormat

__all__ = [
    "KEPT_WIDE",
    "KNOWN",
    "MODELOPT_FILE",
    "PACKED_METHOD",
    "Chosen",
    "Fields",
    "Found",
    "Gemm",
    "Layer",
    "Model",
    "NarrowActivations",
    "Quantization",
    "WeightFormat",
    "activations_type",
    "agree",
    "check_folded",
    "check_gemm",
    "choose_activations",
    "choose_types",
    "find_layers",
    "fold_format",
    "gemm_types",
    "gemms",
    "layers",
    "load_model",
    "read_dtype",
    "read_narrow",
    "read_object",
    "read_quantization",
]
