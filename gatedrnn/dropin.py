"""What the four modules need to stand where torch.nn's stood, beside their numbers."""

import warnings
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import nn

# Size checks are plain Python, which torch.jit.trace warns about. torch silences these warnings
# for its own modules, and this is the same for ours.
_TRACER_WARNING = torch.jit.TracerWarning  # type: ignore[attr-defined]
warnings.filterwarnings("ignore", category=_TRACER_WARNING, module=r"gatedrnn\.")


def tensors_by_name(module: nn.Module, names: Iterable[str]) -> list[Any]:
    """Look parameters up by name, at call time, and each of them once.

    A name may lead to a parameter, to a plain tensor that a hook has set in its place, or to a
    property that computes it (torch.nn.utils.parametrize).
    """
    parameters = module._parameters
    try:
        return [parameters[n] for n in names]
    except KeyError:
        return [parameters[n] if n in parameters else getattr(module, n) for n in names]


def fx_call(module: nn.Module, input: torch.fx.Proxy, hx: Any, **options: Any) -> torch.fx.Proxy:
    """One call_module node for torch.fx.symbolic_trace, as torch.nn's own modules get.

    A tracer takes only modules of the package torch.nn for leaves and would otherwise trace into
    the checks.
    """
    given = {k: v for k, v in options.items() if v is not None and v is not False}
    target = input.tracer.path_of_module(module)  # type: ignore[attr-defined]
    return input.tracer.create_proxy("call_module", target, (input, hx), given)


def refuse_script(module: nn.Module) -> NoReturn:
    """torch.jit.script asks every module for a scriptable stand-in; this is the answer."""
    raise RuntimeError(
        f"torch.jit.script cannot compile gatedrnn.{_name(module)}: call gatedrnn.revert(model) "
        "first, which puts torch.nn's module in its place"
    )


def refuse_qconfig(module: nn.Module, qconfig: Any) -> None:
    """torch.ao.quantization sets `qconfig` on every module, None on those it leaves alone.

    It finds recurrent modules by exact type, so that ours would stay in floating point in silence.
    """
    if qconfig is not None:
        raise RuntimeError(
            f"torch.ao.quantization cannot quantize gatedrnn.{_name(module)}: call "
            "gatedrnn.revert(model) first, which puts torch.nn's module in its place"
        )
    warnings.warn(
        f"torch.ao.quantization leaves gatedrnn.{_name(module)} in floating point: call "
        "gatedrnn.revert(model) first if it should be quantized",
        stacklevel=3,
    )


def _name(module: nn.Module) -> str:
    ours = (c.__name__ for c in type(module).__mro__ if c.__module__.startswith("gatedrnn."))
    return next(ours)
