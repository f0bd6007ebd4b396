"""What a call may ask for that torch.nn's signature does not have."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["PLAIN", "Options"]


class Options(NamedTuple):
    """The keyword-only arguments of a module's call, and what of its attributes they join."""

    lengths: Tensor | Sequence[int] | None = None
    resets: Tensor | None = None
    reset_hx: Any = None
    output_hidden_states: bool = False
    recompute: bool = False

    @property
    def is_ragged(self) -> bool:
        """Whether sequences end or begin anew inside of the padded input."""
        return not (self.lengths is None and self.resets is None and self.reset_hx is None)


PLAIN = Options()
