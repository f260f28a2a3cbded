"""Noise of optimizers: numbers from N(0, 1) that are functions of seed, step, parameter and position; needs no torch.

Compiled code draws them within its pass over the weights, PyTorch as arrays; both draw the same.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import literal_unroll, types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from continual_metaopt.optim.compiling import compiled

# 2 Φ(−z) = 2⁻ˡ for z = l P(√l) / Q(√l), to 5e-9, and log₂(1 + f) = f R(f), to 2e-9 between √½ and √2: least-squares
# fits to SciPy's ndtri and log1p. Highest powers come first.
P = 0.1188766429, 0.9643681186, 2.0100821536, 2.4425456857, 1.9036016504, 0.8687400983
Q = 0.1009113361, 0.8226043727, 1.9614596647, 3.0855350425, 3.1557683586, 2.1914983275, 1.0
R = (
    *(-0.1102015942, 0.1863120948, -0.191024981, 0.2045752925, -0.2396190444),
    *(0.2885688961, -0.3606966287, 0.4808982127, -0.7213473516, 1.4426950409),
)

HASH = (17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB), (14, 1)  # shifts and factors of ``triple32``

FORM = {  # of floating-point numbers: their bits, those of the mantissa, and √½ as a whole number
    types.float32: (32, 23, int(np.float32(0.5**0.5).view(np.int32))),
    types.float64: (64, 52, int(np.float64(0.5**0.5).view(np.int64))),
}


@compiled
def _mixed(x: Any) -> Any:
    """Mix 64 bits, as SplitMix64 does at each step (Steele, Lea, Flood, OOPSLA 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled
def stream(seed: float, step: float, parameter: float) -> Any:
    """Give the stream of noise of a parameter's step: 64 bits."""
    return _mixed(_mixed(_mixed(np.uint64(seed)) + np.uint64(step)) + np.uint64(parameter))


@compiled
def fill(numbers: NDArray[Any], seed: float, step: float, parameter: float) -> None:
    """Fill an array with the noise of a parameter's step."""
    stream_of_step = stream(seed, step, parameter)
    for i in range(len(numbers)):
        numbers[i] = normal(i, stream_of_step, numbers[i])


def normal(position: int, stream: int, kind: Any) -> Any:
    """Give the noise at a position of a stream, a number of the type of ``kind``; to be called in compiled code."""
    raise NotImplementedError


@overload(normal, jit_options={"error_model": "numpy", "fastmath": {"contract"}})
def _normal(position: Any, stream: Any, kind: Any) -> Any:
    number = np.float32 if kind == types.float32 else np.float64
    p, q, r = (tuple(map(number, terms)) for terms in (P, Q, R))
    half, one, most = number(0.5), number(1), number(31)

    def normal(position: Any, stream: Any, kind: Any) -> Any:
        bits = _hashed(position, stream)
        tail = number(bits if bits >= 0 else np.int32(~bits)) + half  # the smaller one of N(0, 1), times 2³²
        power, rest = _split(tail)
        halvings = (most - power) - (rest - one) * _polynomial(r, rest - one)  # l
        root = np.sqrt(halvings)
        z = halvings * _polynomial(p, root) / _polynomial(q, root)
        return z if bits >= 0 else -z

    return normal


def _polynomial(terms: Any, x: Any) -> Any:
    raise NotImplementedError


@overload(_polynomial, jit_options={"error_model": "numpy", "fastmath": {"contract"}})
def _horner(terms: Any, x: Any) -> Any:
    def polynomial(terms: Any, x: Any) -> Any:
        total = terms[0]
        for term in literal_unroll(terms[1:]):
            total = total * x + term
        return total

    return polynomial


@intrinsic
def _hashed(context: Any, position: Any, stream: Any) -> Any:
    """Give 32 random bits: ``triple32`` of Wellons's Hash Prospector, which adds the stream's halves on its way."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.IntType(32)
        x, stream = builder.trunc(arguments[0], kind), arguments[1]
        for i, (shift, factor) in enumerate(HASH):
            x = builder.mul(builder.xor(x, builder.lshr(x, ir.Constant(kind, shift))), ir.Constant(kind, factor))
            if i < 2:
                half = builder.lshr(stream, ir.Constant(stream.type, 32 * i))
                x = builder.add(x, builder.trunc(half, kind))
        return x

    return types.int32(types.int64, types.uint64), make


@intrinsic
def _split(context: Any, x: Any) -> Any:
    """Split x > 0 into n and r, both of the type of x, where x = 2ⁿ r and r lies between √½ and √2."""
    bits, mantissa, least = FORM[x]

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, number = ir.IntType(bits), arguments[0].type
        x, shift = builder.bitcast(arguments[0], kind), ir.Constant(kind, mantissa)
        power = builder.ashr(builder.sub(x, ir.Constant(kind, least)), shift)
        rest = builder.bitcast(builder.sub(x, builder.shl(power, shift)), number)
        return context.make_tuple(builder, signature.return_type, (builder.sitofp(power, number), rest))

    return types.UniTuple(x, 2)(x), make
