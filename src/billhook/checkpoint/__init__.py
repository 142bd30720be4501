"""A checkpoint folder -> its linear layers as stored, and the kernels that serve them; from headers alone."""

from .declared import Declared, read_declared
from .folder import Checkpoint, read_checkpoint
from .header import Tensor, read_header
from .modules import Linear, Row, fold, read_linears
from .serve import Answer, Serving, Use, check_sizes, serve
from .stored import UNQUANTIZED, Stored

__all__ = [
    "UNQUANTIZED",
    "Answer",
    "Checkpoint",
    "Declared",
    "Linear",
    "Row",
    "Serving",
    "Stored",
    "Tensor",
    "Use",
    "check_sizes",
    "fold",
    "read_checkpoint",
    "read_declared",
    "read_header",
    "read_linears",
    "serve",
]
