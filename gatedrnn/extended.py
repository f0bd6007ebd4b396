"""What GRU and LSTM have that torch.nn's modules do not: a learned initial state, recompute, and
further arguments of a call."""

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["Extended"]


class Extended(nn.RNNBase):
    """torch.nn.RNNBase with more arguments; without them, nothing more than it."""

    # Of the class, so that old pickles and converted modules have them.
    learn_initial_state = False
    recompute = False

    def _extend(self, learn_initial_state: bool, recompute: bool) -> None:
        """Add what torch.nn's modules do not have; nothing, by default."""
        if recompute:
            self.recompute = True
        if learn_initial_state:
            self.learn_initial_state = True
            like: Any = self._flat_weights[0]
            rows = self.num_layers * (2 if self.bidirectional else 1)
            self.h_0 = nn.Parameter(like.new_zeros(rows, self.proj_size or self.hidden_size))
            if self.mode == "LSTM":
                self.c_0 = nn.Parameter(like.new_zeros(rows, self.hidden_size))

    def reset_parameters(self) -> None:
        """Draw the weights anew, as torch.nn does; a learned initial state is zero again."""
        super().reset_parameters()
        if self.learn_initial_state:
            for state in self._learned():
                nn.init.zeros_(state)

    def _learned(self) -> list[Tensor]:
        return [self.h_0, self.c_0] if self.mode == "LSTM" else [self.h_0]

    def _learned_states(self, input: Any, hx: Any, resets: Any, reset_hx: Any) -> tuple[Any, Any]:
        """hx and reset_hx: the learned state of each sequence of the input where none is given."""
        states = self._learned()
        if isinstance(input, PackedSequence):
            batch = int(input.batch_sizes[0])
            states = [s.unsqueeze(1).expand(-1, batch, -1) for s in states]
        elif input.dim() == 3:
            batch = input.size(0 if self.batch_first else 1)
            states = [s.unsqueeze(1).expand(-1, batch, -1) for s in states]
        learned = tuple(states) if self.mode == "LSTM" else states[0]
        again = learned if resets is not None and reset_hx is None else reset_hx
        return learned if hx is None else hx, again

    def extra_repr(self) -> str:
        text = super().extra_repr()
        for name in ("learn_initial_state", "recompute"):
            if getattr(self, name):
                text += f", {name}=True"
        return text
