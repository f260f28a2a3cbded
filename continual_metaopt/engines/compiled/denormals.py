"""Flushing denormal numbers: the processor takes them for 0, since it takes long to compute with them.

This is a matter of the processor's control register, which belongs to the thread; PyTorch's ``set_flush_denormal``
changes the same bits.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from continual_metaopt.optim.compiling import compiled

MACHINE = platform.machine().lower()
X86, ARM = MACHINE in ("x86_64", "amd64"), MACHINE in ("arm64", "aarch64")  # others are left as they are
FLUSH = 1 << 24 if ARM else 0x8040  # FZ; "flush to zero" and "denormals are zero"
INT32, INT64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def _control_register(context: Any) -> Any:
    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if X86:
            place = cgutils.alloca_once(builder, INT32)
            _call(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), builder.bitcast(place, cgutils.voidptr_t))
            return builder.zext(builder.load(place), INT64)
        return _call(builder, "llvm.aarch64.get.fpcr", INT64) if ARM else INT64(0)

    return types.int64(), make


@intrinsic
def _set_control_register(context: Any, value: Any) -> Any:
    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if X86:
            place = cgutils.alloca_once_value(builder, builder.trunc(arguments[0], INT32))
            _call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), builder.bitcast(place, cgutils.voidptr_t))
        elif ARM:
            _call(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), arguments[0])
        return context.get_dummy_value()

    return types.none(types.int64), make


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(builder.module.declare_intrinsic(name, fnty=kind), arguments)


@compiled
def _set_bits(bits: int) -> int:
    """Set the bits of ``FLUSH`` in this thread's control register to ``bits``; returns what they were."""
    before = _control_register()
    _set_control_register((before & ~FLUSH) | bits)
    return before & FLUSH


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Within it, this thread computes with 0 in place of denormal numbers, which traces decay to and which are slow."""
    before = _set_bits(FLUSH)
    try:
        yield
    finally:
        _set_bits(before)
