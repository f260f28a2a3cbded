"""Passes over memory that make an optimizer's whole update, compiled from text; needs no torch.

``elementwise`` writes the text from an optimizer's functions. It is compiled once per machine, as the kernels are.
"""

import hashlib
import linecache
import math
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import literal_unroll, types
from numba.core import cgutils
from numba.core.ccallback import CFunc
from numba.extending import intrinsic
from numpy.typing import NDArray

from continual_metaopt.engines.compiled import kernels as k
from continual_metaopt.optim import noise
from continual_metaopt.optim.compiling import compiled, keep_code_of

# Rows of the table of tables: numbers, and addresses of arrays
N_PARAMETERS, N_GROUPS, PLACES, STEPS, NUMBERS, BLOCKS, MEASURED, PARTIAL, CONSTANTS = range(9)

# Columns of the table of places; those of what is kept follow. Rows and columns are those of weights in memory, and
# restarts the steps at which the last were made of as many rows, which come again, and of the columns.
SIZE, GROUP, NUMBER, N_ROWS, N_COLUMNS, RESTARTS, WEIGHTS, GRADIENT, KEPT = range(9)


@dataclass(frozen=True)
class Pass:
    """An update of all parameters as text, and what its tables hold.

    Attributes:
        text: of its functions, of which ``run(tables, task, loss)`` is called by its address.
        keeps: names of the arrays of numbers that are kept for each weight.
        numbers: names of the numbers of a group, in the order of their columns.
        decides: names of those of them that the update changes.
        n_measured: numbers that are measured in each group.
        predicts_with: name of the array among ``keeps`` that holds the weights to predict with; empty for none.
    """

    text: str
    keeps: tuple[str, ...]
    numbers: tuple[str, ...]
    decides: tuple[str, ...]
    n_measured: int
    predicts_with: str = ""


class Tables:
    """The tables that a pass works from, and their room; to be kept as long as the pass is called.

    Args:
        of: the pass.
        dtype: of weights.
        places: of each parameter its size, its group, its number among the optimizer's parameters, and addresses,
            int64 [parameters, KEPT + kept arrays].
        steps: updates of each parameter so far, float64 [parameters]; the pass counts on.
        numbers: of each group, float64 [groups, numbers].
        blocks: whose first column receives the step sizes, float64 [groups, columns of ``kernels.Learned.blocks``].

    Attributes:
        address: of the table of tables.
    """

    def __init__(
        self,
        of: Pass,
        dtype: np.dtype[Any],
        places: NDArray[Any],
        steps: NDArray[Any],
        numbers: NDArray[Any],
        blocks: NDArray[Any],
    ) -> None:
        n = max(of.n_measured, 1)
        rooms = np.zeros((len(numbers), n)), np.zeros((n, k.PIECE), dtype), np.zeros(k.N_CONSTANTS, dtype)
        self._arrays = [places, steps, numbers, blocks, *rooms]
        addresses = [array.ctypes.data for array in self._arrays]
        self._table = np.array([len(places), len(numbers), *addresses], np.int64)
        self.address = int(self._table.ctypes.data)


@cache
def _made(of: Pass, dtype: np.dtype[Any]) -> Any:
    own = f"{hashlib.sha256(of.text.encode()).hexdigest()[:16]}_{dtype}"
    name = f"pass_{own}"
    # code that was kept must not be taken for that of another pass, so functions of two passes never have one name
    text = of.text
    for function in re.findall(r"^def (\w+_[0-9]+)\(", text, re.M):
        text = re.sub(rf"\b{function}\b", f"{function}_{own}", text)
    text = text.replace("def run(", f"def {name}(")
    file = f"<{name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)  # where Numba looks for the source
    names: dict[str, Any] = {
        "__name__": __name__,  # of the module that is imported where code that was kept is loaded
        **{"k": k, "np": np, "math": math, "number": np.dtype(dtype).type, "carray": numba.carray},
        **{"exp": EXPONENTIALS[dtype], "sqrt": np.sqrt, "log": np.log, "sign": _sign},
        **{"noise": noise, "maximum": _maximum, "minimum": _minimum, "where": _where, "largest": _largest},
        "learns": _learns,
        "compiled": numba.njit(error_model="numpy", nogil=True),
    }
    exec(compile(text, file, "exec"), names)  # the text is that of ``elementwise``
    signature = (types.int64, types.int64, types.float64), types.void
    made = CFunc(names[name], signature, {}, {"error_model": "numpy"})
    keep_code_of(made, names[name])
    made.compile()
    return made


def address_of(of: Pass, dtype: np.dtype[Any]) -> int:
    """Give the address of a pass for weights of a type; its code is compiled, or loaded, at the first call."""
    return int(_made(of, np.dtype(dtype)).address)


def set_step(state: MutableMapping[str, Any], step: float) -> None:
    """Set the number of updates in a parameter's state, a tensor or a number, if it is counted there."""
    if hasattr(state.get("step"), "fill_"):
        state["step"].fill_(step)
    elif "step" in state:
        state["step"] = int(step)


@compiled
def run_pass(address: int, tables: int, task: int, loss: float) -> None:
    """Call a pass by its address."""
    k.call_pass(address, tables, task, loss)


# What the functions of an optimizer may call


@compiled
def _where(condition: Any, a: Any, b: Any) -> Any:
    return a if condition else b


@compiled
def _sign(x: Any) -> Any:
    number = type(x)
    return number(x > 0) - number(x < 0)


@compiled
def _maximum(a: Any, b: Any) -> Any:
    return a if (a > b) | (a != a) else b


@compiled
def _minimum(a: Any, b: Any) -> Any:
    return a if (a < b) | (a != a) else b


@compiled
def _largest(a: Any) -> float:
    best = a[0]
    for i in range(1, len(a)):
        best = _maximum(a[i], best)
    return float(best)


@compiled
def _learns(places: Any, group: int) -> Any:
    return ((places[:, SIZE] > 0) & (places[:, GROUP] == group)).any()


@intrinsic
def _whole(context: Any, x: Any) -> Any:
    """The nearest whole number below."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        name = f"llvm.floor.f{signature.args[0].bitwidth}"
        floor = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), name)
        return builder.call(floor, arguments)

    return x(x), make


@intrinsic
def _power_of_two(context: Any, n: Any) -> Any:
    """2 to the power of a whole number, by writing the exponent of a floating-point number."""
    integer, mantissa, bias = (types.int32, 23, 127) if n == types.float32 else (types.int64, 52, 1023)

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.get_value_type(integer)
        exponent = builder.add(builder.fptosi(arguments[0], kind), ir.Constant(kind, bias))
        shifted = builder.shl(exponent, ir.Constant(kind, mantissa))
        return builder.bitcast(shifted, context.get_value_type(n))

    return n(n), make


LN2, LN2_BEYOND = math.log(2), 2.3190468138462996e-17  # what double precision leaves out of it


def _exponential(number: Any, bits: int, degree: int, lowest: float, highest: float) -> Any:
    """An exponential that LLVM can make of many numbers at once, which it cannot of the C library's.

    exp(x) = 2ⁿ exp(r) with a whole n and |r| ≤ ½ log 2, by Taylor's series. n log 2 is taken off in two parts, of which
    the first has so few ``bits`` that its product is exact.
    """
    high = math.floor(LN2 * 2**bits) / 2**bits
    low, per_ln2, high = number(LN2 - high + LN2_BEYOND), number(1 / LN2), number(high)
    terms = tuple(number(1 / math.factorial(power)) for power in range(degree, -1, -1))
    first, rest = terms[0], terms[1:]
    half, zero, infinite, lowest, highest = map(number, (0.5, 0, math.inf, lowest, highest))

    @numba.njit(error_model="numpy", nogil=True)
    def exponential(x: Any) -> Any:
        x = number(x)
        within = min(max(x, lowest), highest)
        n = _whole(within * per_ln2 + half)
        r = (within - n * high) - n * low
        total = first
        for term in literal_unroll(rest):
            total = total * r + term
        n_first = _whole(n * half)
        total = total * _power_of_two(n_first) * _power_of_two(n - n_first)
        total = zero if x < lowest else total
        total = infinite if x > highest else total
        return x if x != x else total

    return exponential


EXPONENTIALS = {
    np.dtype(np.float32): _exponential(np.float32, 9, 7, -87.3, 88.7),
    np.dtype(np.float64): _exponential(np.float64, 32, 13, -708.3, 709.7),
}
