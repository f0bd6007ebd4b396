"""What a call may ask for that torch.nn's signature does not have."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["PLAIN", "Lengths", "Options", "chosen"]

Lengths = Tensor | Sequence[int] | None


class Options(NamedTuple):
    """The keyword-only arguments of a module's call, and what of its attributes they join."""

    lengths: Lengths = None
    resets: Tensor | None = None
    reset_hx: Any = None
    output_hidden_states: bool = False
    recompute: bool = False

    @property
    def is_ragged(self) -> bool:
        """Whether sequences end or begin anew inside of the padded input."""
        return not (self.lengths is None and self.resets is None and self.reset_hx is None)


PLAIN = Options()


def chosen(
    lengths: Lengths,
    resets: Tensor | None,
    reset_hx: Any,
    output_hidden_states: bool,
    recompute: bool,
) -> Options:
    """PLAIN itself where nothing is asked for: that is the short way through a call."""
    plain = lengths is None and resets is None and reset_hx is None
    if plain and not output_hidden_states and not recompute:
        return PLAIN
    return Options(lengths, resets, reset_hx, output_hidden_states, recompute)
