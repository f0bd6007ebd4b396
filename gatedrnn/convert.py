"""convert(model) and revert(model): exchange torch.nn's recurrent modules and ours in place.

A module is exchanged by assigning its __class__. Both sides keep the same attributes, so that
everything stays as it was: the parameters, hooks, flags, extra attributes, and every reference to
the module itself, wherever it is held.
"""

from typing import TypeVar

# Taken from where they are defined, at import: a program may have put ours in torch.nn's place.
from torch import nn
from torch.nn.modules import rnn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from .cells import GRUCell, LSTMCell
from .modules import GRU, LSTM

__all__ = ["convert", "revert"]

_Model = TypeVar("_Model", bound=nn.Module)

_OURS: dict[type[nn.Module], type[nn.Module]] = {
    rnn.GRU: GRU,
    rnn.LSTM: LSTM,
    rnn.GRUCell: GRUCell,
    rnn.LSTMCell: LSTMCell,
}
_TORCHS = {ours: theirs for theirs, ours in _OURS.items()}


def convert(model: _Model) -> _Model:
    """Turn every torch.nn GRU, LSTM, GRUCell and LSTMCell in a model into gatedrnn's, in place.

    The modules stay the same objects, with the same parameters, hooks and attributes, so that an
    optimizer made before goes on working. Parametrized modules are converted too. Instances of
    subclasses of torch.nn's modules are left alone: what they override is not known here.

    Args:
        model: any module, also one of the four itself.

    Returns:
        The same model.

    Raises:
        TypeError: model is not a torch.nn.Module.

    Example::

        >>> model = torch.nn.Sequential(torch.nn.LSTM(5, 64, batch_first=True))
        >>> gatedrnn.convert(model)[0]
        LSTM(5, 64, batch_first=True)
        >>> type(model[0]).__module__
        'gatedrnn.modules'
    """
    return _exchange(model, _OURS, "convert")


def revert(model: _Model) -> _Model:
    """Turn every gatedrnn GRU, LSTM, GRUCell and LSTMCell in a model into torch.nn's, in place.

    The inverse of :func:`convert`, with the same argument, result and error; also for modules that
    were made as gatedrnn's, for instance before torch.jit.script.

    Example::

        >>> model = torch.nn.Sequential(gatedrnn.GRU(5, 64))
        >>> type(gatedrnn.revert(model)[0]).__module__
        'torch.nn.modules.rnn'
    """
    return _exchange(model, _TORCHS, "revert")


def _target(
    module: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]
) -> type[nn.Module] | None:
    return classes.get(type_before_parametrizations(module))


def _exchange(model: _Model, classes: dict[type[nn.Module], type[nn.Module]], name: str) -> _Model:
    if not isinstance(model, nn.Module):
        raise TypeError(f"gatedrnn.{name}: expected a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if getattr(module, "learn_initial_state", False) is True and _target(module, classes):
            raise RuntimeError(
                f"gatedrnn.{name}: {module} learns its initial state, of which torch.nn's module "
                "would not know: hand it over as hx instead"
            )
    for module in model.modules():
        target = _target(module, classes)
        if target is None:
            continue
        if is_parametrized(module):
            # Parametrization has given the module a class of its own, which deep copies share:
            # the module gets a new one with the same properties over the other base.
            own = type(module)
            body = {k: v for k, v in vars(own).items() if k not in ("__dict__", "__weakref__")}
            target = type(own.__name__, (target,), body)
        module.__class__ = target
    return model
