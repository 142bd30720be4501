"""A Hugging Face config.json -> the quantized GEMMs that an inference engine issues for the model."""

from .layer import Layer, layers
from .model import Model, load_model

__all__ = ["Layer", "Model", "layers", "load_model"]
