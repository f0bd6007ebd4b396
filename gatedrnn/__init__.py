"""GRU and LSTM for PyTorch with fused kernels: drop-in replacements for torch.nn's.

    import gatedrnn
    rnn = gatedrnn.GRU(5, 256, num_layers=2, batch_first=True)   # where nn.GRU stood
    gatedrnn.convert(model)                                      # or: a whole model, in place
"""

from . import functional
from ._version import __version__
from .cells import GRUCell, LSTMCell
from .convert import convert, revert
from .explain import explain
from .modules import GRU, LSTM
from .streaming import Stream

__all__ = [
    "GRU",
    "LSTM",
    "GRUCell",
    "LSTMCell",
    "Stream",
    "__version__",
    "convert",
    "explain",
    "functional",
    "revert",
]
