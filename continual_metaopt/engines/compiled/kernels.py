"""Compiled functions of one step of learning: networks forward and backward, base updates, traces and meta updates.

The update passes over memory once: one loop computes the direction of the base update, adds to the meta gradient, and
moves weights and trace. The meta gradient is summed up in as many partial sums as a piece of a parameter has elements.

Images are [height, width, channel] here, weights of convolutions [height, width, channel, output], so that all inner
loops run over consecutive numbers. The gradient of a linear layer is never stored: its pieces are made in the update.

No fast mathematics: every operation is rounded as IEEE 754 says, and the order of each sum is spelled out, so that
results do not depend on how and when the functions were compiled; products of a matrix and a vector are BLAS's, on one
thread. Rules and layers are integers, and everything is a plain function, so that compiled code can be kept on disk.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, literally, types
from numba.core import cgutils
from numba.extending import intrinsic

from continual_metaopt.optim import meta_updates, two_horizons
from continual_metaopt.optim.compiling import compiled

PIECE = 1024  # elements, a power of 2

Array = Any

# Base updates

SGD, SGDM, RMSPROP, ADAMW, LION, SGDM_RELEASED, RMSPROP_RELEASED, ADAMW_RELEASED = range(8)
BY_PASS = 8  # gradients are only stored, for a compiled pass (``passes``) or for the update of a mini-batch
N_CONSTANTS = 5


@compiled
def rule_constants(rule: int, settings: Array, step: float, k: Array) -> float:
    """Fill ``k`` with a base update's constants at a step, counted from 1, and return its direction's divisor."""
    divisor = 1.0
    if rule == SGDM:
        k[0] = settings[0]
    elif rule == RMSPROP:
        k[0], k[1], k[2], k[3] = settings[0], 1 - settings[0], (1 - settings[0] ** step) ** -0.5, settings[1]
    elif rule == ADAMW:
        k[0], k[1], k[2] = 1 - settings[0], settings[1], 1 - settings[1]
        k[3], k[4] = (1 - settings[1] ** step) ** -0.5, settings[2]
        divisor = 1 - settings[0] ** step
    elif rule == LION:
        k[0], k[1], k[2], k[3] = settings[0], 1 - settings[0], settings[1], 1 - settings[1]
    elif rule == SGDM_RELEASED:
        k[0], k[1] = settings[0], 1 - settings[0]
    elif rule == RMSPROP_RELEASED:
        k[0], k[1], k[2] = settings[0], (1 - settings[0]) / (1 - settings[0] ** step), settings[1]
    elif rule == ADAMW_RELEASED:
        k[0], k[1], k[3] = settings[0], settings[1], settings[2]
        k[2] = (1 - settings[1]) / (1 - settings[1] ** step)
    return divisor


CORRECTIONS = {RMSPROP: 2, ADAMW: 3, RMSPROP_RELEASED: 1, ADAMW_RELEASED: 2}  # which constant falls with the step


@compiled
def constants_since(
    rule: int, settings: Array, correction: int, step: float, restarted: Array, step_size: float, k: Array
) -> Array:
    """For each step in ``restarted``, the step size divided by the divisor, and the correction, for a start after it.

    Both fall with time, so that of a weight that was restarted with its output and with its input the largest hold.
    """
    found = np.empty((2, len(restarted)), k.dtype)
    for i in range(len(restarted)):
        if i == 0 or restarted[i] != restarted[i - 1]:
            divisor = rule_constants(rule, settings, step - restarted[i], k)
        found[0, i], found[1, i] = step_size / divisor, k[correction]
    return found


# A rule takes the gradient g, momentum m, second moment v and the constants; it returns the direction, m and v.


@compiled
def sgd_direction(g: Any, m: Any, v: Any, k: Array) -> tuple[Any, Any, Any]:
    """Follow the gradient."""
    return g, m, v


@compiled
def sgdm_direction(g: Any, m: Any, v: Any, k: Array) -> tuple[Any, Any, Any]:
    """Follow the momentum, a sum."""
    m = k[0] * m + g
    return m, m, v


@compiled
def rmsprop_direction(g: Any, m: Any, v: Any, k: Array) -> tuple[Any, Any, Any]:
    """Divide the gradient by its running size."""
    v = k[0] * v + k[1] * g * g
    return g / (np.sqrt(v) * k[2] + k[3]), m, v


@compiled
def adamw_direction(g: Any, m: Any, v: Any, k: Array) -> tuple[Any, Any, Any]:
    """Divide the momentum by the gradient's running size."""
    m = m + k[0] * (g - m)
    v = k[1] * v + k[2] * g * g
    return m / (np.sqrt(v) * k[3] + k[4]), m, v


@compiled
def lion_direction(g: Any, m: Any, v: Any, k: Array) -> tuple[Any, Any, Any]:
    """Take the sign of a mixture of momentum and gradient."""
    return np.sign(k[0] * m + k[1] * g), k[2] * m + k[3] * g, v


@compiled
def sgdm_released_direction(g: Any, m: Any, v: Any, k: Array) -> tuple[Any, Any, Any]:
    """Follow the old momentum, an average."""
    return m, k[0] * m + k[1] * g, v


@compiled
def rmsprop_released_direction(g: Any, m: Any, v: Any, k: Array) -> tuple[Any, Any, Any]:
    """Divide the gradient by its running size, as the released code."""
    v = k[0] * v + g * g
    return g / np.sqrt(k[1] * v + k[2]), m, v


@compiled
def adamw_released_direction(g: Any, m: Any, v: Any, k: Array) -> tuple[Any, Any, Any]:
    """Divide the momentum, a sum, as the released code."""
    m = k[0] * m + g
    v = k[1] * v + g * g
    return m / np.sqrt(k[2] * v + k[3]), m, v


@compiled
def _direction(rule: int, g: Any, m: Any, v: Any, k: Array) -> tuple[Any, Any, Any]:
    literally(rule)  # compiles the function anew for each rule, with nothing to decide inside a loop
    if rule == SGD:
        return sgd_direction(g, m, v, k)
    elif rule == SGDM:
        return sgdm_direction(g, m, v, k)
    elif rule == RMSPROP:
        return rmsprop_direction(g, m, v, k)
    elif rule == ADAMW:
        return adamw_direction(g, m, v, k)
    elif rule == LION:
        return lion_direction(g, m, v, k)
    elif rule == SGDM_RELEASED:
        return sgdm_released_direction(g, m, v, k)
    elif rule == RMSPROP_RELEASED:
        return rmsprop_released_direction(g, m, v, k)
    else:
        return adamw_released_direction(g, m, v, k)


# Weights and traces


@intrinsic
def arrays_do_not_overlap(context: Any) -> Any:
    """Promise LLVM that the array arguments of the calling function have no memory in common.

    It need not check that at run time then, which it does for few arrays only, and can vectorise a loop over many.
    """

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        for argument in builder.function.args:
            if argument.type.is_pointer:
                argument.add_attribute("noalias")
        return context.get_dummy_value()

    return types.none(), make


@compiled
def _learn_weights(rule: int, horizons: int, has: Any, arrays: Any, numbers: Any) -> None:
    """Update weights, with one or two traces, by the outer product of ``delta`` and x.

    It gets whole arrays, since to cut out so many pieces would take longer than to work on them.
    """
    literally(rule)
    literally(horizons)
    arrays_do_not_overlap()
    has_m, has_v, has_h, has_dx = has
    delta, x, p, m, v, h, long, dx, products, long_products, k = arrays
    step, decay, keep, long_keep = numbers
    for output in range(len(delta)):
        scale = delta[output]
        for first in range(0, len(x), PIECE):
            at, n = output * len(x) + first, min(PIECE, len(x) - first)
            m_at, v_at, h_at, dx_at = at * has_m, at * has_v, at * has_h, first * has_dx
            for i in range(n):
                # unsigned, because a negative place would count from the end, which LLVM cannot vectorise
                jx, jp, jm, jv = np.uintp(first + i), np.uintp(at + i), np.uintp(m_at + i), np.uintp(v_at + i)
                jh, jdx = np.uintp(h_at + i), np.uintp(dx_at + i)
                g = scale * x[jx]
                dx[jdx] += scale * p[jp]
                products[i] += h[jh] * g
                u, m[jm], v[jv] = _direction(rule, g, m[jm], v[jv], k)
                change = step * u + decay * p[jp]
                h[jh] = keep * h[jh] - change
                if horizons == 2:
                    long_products[i] += long[jp] * g
                    long[jp] = long_keep * long[jp] - change
                p[jp] -= change


@compiled
def sum_of(a: Array) -> float:
    """Add up ``PIECE`` numbers, which is left in the first; the others are spent."""
    half = PIECE // 2
    while half:
        for i in range(half):
            a[i] += a[half + i]
        half //= 2
    return float(a[0])


class Room(NamedTuple):
    """Room for the update of one parameter: arrays of ``PIECE`` numbers, and the rule's constants.

    Attributes:
        products, long_products: partial sums of the meta gradient, by the trace and by the long one.
        no_momentum, no_second_moment: in place of what a rule does not have.
        no_trace: in place of the trace, for a fixed step size.
        no_backward: in place of the gradient with respect to inputs, where that is not wanted.
        one: the number 1.
        constants: of the rule.
    """

    products: Array
    long_products: Array
    no_momentum: Array
    no_second_moment: Array
    no_trace: Array
    no_backward: Array
    one: Array
    constants: Array


@compiled
def _learn_weights_by(rule: int, horizons: int, has: Any, arrays: Any, numbers: Any) -> None:
    """Update weights by a rule that is known only now."""
    literally(horizons)
    if rule == SGD:
        _learn_weights(SGD, horizons, has, arrays, numbers)
    elif rule == SGDM:
        _learn_weights(SGDM, horizons, has, arrays, numbers)
    elif rule == RMSPROP:
        _learn_weights(RMSPROP, horizons, has, arrays, numbers)
    elif rule == ADAMW:
        _learn_weights(ADAMW, horizons, has, arrays, numbers)
    elif rule == LION:
        _learn_weights(LION, horizons, has, arrays, numbers)
    elif rule == SGDM_RELEASED:
        _learn_weights(SGDM_RELEASED, horizons, has, arrays, numbers)
    elif rule == RMSPROP_RELEASED:
        _learn_weights(RMSPROP_RELEASED, horizons, has, arrays, numbers)
    else:
        _learn_weights(ADAMW_RELEASED, horizons, has, arrays, numbers)


@compiled
def update(
    rule: int,
    p: Array,
    delta: Array,
    x: Array,
    dx: Array,
    m: Array,
    v: Array,
    h: Array,
    long: Array,
    room: Room,
    numbers: Any,
) -> tuple[float, float]:
    """Update one parameter; returns its part of the meta gradient, Σ h·g with the old trace, and with the long trace.

    Its gradient is the outer product of ``delta`` and ``x``: that is how it comes for the weights of a linear layer,
    and any other gradient is the outer product of 1 and itself. All arrays are contiguous, of one dimension and one
    type, as are the numbers, and none overlaps with another.

    Args:
        p: weights, outputs × inputs.
        delta: gradient with respect to the outputs, or 1.
        x: inputs, or the gradient.
        dx: receives the gradient with respect to the inputs, by the old weights; empty if that is not wanted.
        m: momentum; empty for rules without.
        v: second moment; empty for rules without.
        h: trace; empty for a fixed step size.
        long: trace with a longer horizon; empty if there is only one.
        numbers: from ``step_numbers``.
    """
    room.products[:] = 0
    if len(long):
        room.long_products[:] = 0
    dx[:] = 0
    arrays = (
        delta,
        x,
        p,
        m if len(m) else room.no_momentum,
        v if len(v) else room.no_second_moment,
        h if len(h) else room.no_trace,
        long,
        dx if len(dx) else room.no_backward,
        room.products,
        room.long_products,
        room.constants,
    )
    has = (int(len(m) > 0), int(len(v) > 0), int(len(h) > 0), int(len(dx) > 0))
    if len(long):
        _learn_weights_by(rule, 2, has, arrays, numbers)
    else:
        _learn_weights_by(rule, 1, has, arrays, numbers)
    return sum_of(room.products) if len(h) else 0.0, sum_of(room.long_products) if len(long) else 0.0


@compiled
def _add_scaled(scale: Any, a: Array, total: Array) -> None:
    for i in range(len(a)):
        total[i] += scale * a[i]


# Columns of the parameters' settings, and of their addresses in memory
GAMMA, WEIGHT_DECAY, LEARNS_STEP_SIZE, LONG_GAMMA, HAS_LONG_TRACE = range(5)
N_SETTINGS = 5
WEIGHTS, GRADIENT, MOMENTUM, SECOND_MOMENT, TRACE, LONG_TRACE, SIZE = range(7)
N_ADDRESS_COLUMNS = 7


@compiled
def step_numbers(base: int, base_settings: Array, step: float, step_size: float, settings: Array, k: Array) -> Any:
    """Numbers that ``update`` takes for one parameter; ``k`` receives the rule's constants.

    Args:
        step: number of this update of the parameter, from 1.
        settings: the parameter's row in the table of settings.

    Returns:
        Step size divided by the direction's divisor, step size times weight decay, and the factors on both old traces.
    """
    number = k.dtype.type
    divisor = rule_constants(base, base_settings, step, k)
    decay = step_size * settings[WEIGHT_DECAY]
    keep, long_keep = settings[GAMMA] * (1 - decay), settings[LONG_GAMMA] * (1 - decay)
    return number(step_size / divisor), number(decay), number(keep), number(long_keep)


@intrinsic
def pointer_to(context: Any, address: Any) -> Any:
    """What is in memory at an address, for ``carray``."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), make


@compiled
def update_in_place(
    base: int,
    base_settings: Array,
    addresses: Array,
    settings: Array,
    steps: Array,
    step_sizes: Array,
    room: Room,
    meta_gradients: Array,
) -> None:
    """Update parameters where they lie in memory.

    Args:
        addresses: of each parameter's weights, gradient and state, where there is one, and its size: int64
            [n, N_ADDRESS_COLUMNS].
        settings: of each parameter, float64 [n, N_SETTINGS].
        steps: number of this update of each parameter, from 1.
        room: whose type is that of the parameters.
        meta_gradients: receives the parts of each parameter, by its trace and by the long one: [n, 2].
    """
    kind = room.constants.dtype
    for i in range(len(addresses)):
        numbers = step_numbers(base, base_settings, steps[i], step_sizes[i], settings[i], room.constants)
        size = addresses[i, SIZE]
        meta_gradients[i] = update(
            base,
            carray(pointer_to(addresses[i, WEIGHTS]), size, kind),
            room.one,
            carray(pointer_to(addresses[i, GRADIENT]), size, kind),
            room.one[:0],
            carray(pointer_to(addresses[i, MOMENTUM]), size if addresses[i, MOMENTUM] else 0, kind),
            carray(pointer_to(addresses[i, SECOND_MOMENT]), size if addresses[i, SECOND_MOMENT] else 0, kind),
            carray(pointer_to(addresses[i, TRACE]), size if settings[i, LEARNS_STEP_SIZE] else 0, kind),
            carray(pointer_to(addresses[i, LONG_TRACE]), size if settings[i, HAS_LONG_TRACE] else 0, kind),
            room,
            numbers,
        )


# Meta updates

META_SGD, META_ADAM, META_LION, META_ADAM_RELEASED = range(4)
META_COLLECT = 4  # adds up meta gradients in META_MEAN, until META_STEP steps are the rule's first setting
_meta_sgd = compiled(meta_updates.sgd_rule)
_meta_adam = compiled(meta_updates.adam_rule)
_meta_lion = compiled(meta_updates.lion_rule)
_meta_adam_released = compiled(meta_updates.adam_released_rule)

_two_horizons = compiled(two_horizons.two_horizons_rule)

# Columns of the table of blocks
STEP_SIZE, META_GRADIENT, LOG_RATIO, META_STEP, META_MEAN, META_SQUARE = range(6)  # change while learning
HORIZON_STEP, SHORT_SIZE, LONG_SIZE, N_REPLAYED = range(6, 10)  # likewise
PENDING, N_PENDING = range(10, 12)  # likewise
REFERENCE, META_LR, LOWEST, HIGHEST, MAX_CHANGE, HAS_TWO_HORIZONS, META_EVERY, META_DECAY = range(12, 20)
N_BLOCK_COLUMNS = 20


@compiled
def update_step_size(rule: int, settings: Array, block: Array, z: float) -> float:
    """Make the meta update of a block's step size with meta gradient ``z``; returns by how much its logarithm moved.

    Args:
        settings: its three settings.
        block: the block's row in the table of blocks.
    """
    block[META_GRADIENT] = z
    if rule == META_COLLECT:
        block[META_MEAN] += z
        return 0.0
    if block[META_EVERY] > 1:
        z += block[PENDING]
        block[N_PENDING] += 1
        waits = block[N_PENDING] < block[META_EVERY]
        block[PENDING] = z if waits else 0.0
        if waits:
            return 0.0
        block[N_PENDING] = 0
    step, mean, square, meta_lr = block[META_STEP], block[META_MEAN], block[META_SQUARE], block[META_LR]
    a, b, eps = settings[0], settings[1], settings[2]
    if rule == META_SGD:
        change, step, mean, square = _meta_sgd(step, mean, square, z, meta_lr, a, b, eps)
    elif rule == META_ADAM:
        change, step, mean, square = _meta_adam(step, mean, square, z, meta_lr, a, b, eps)
    elif rule == META_LION:
        change, step, mean, square = _meta_lion(step, mean, square, z, meta_lr, a, b, eps)
    else:
        change, step, mean, square = _meta_adam_released(step, mean, square, z, meta_lr, a, b, eps)
    block[META_STEP], block[META_MEAN], block[META_SQUARE] = step, mean, square
    reference, lowest, highest, before = block[REFERENCE], block[LOWEST], block[HIGHEST], block[LOG_RATIO]
    if block[META_DECAY] > 0:
        change -= meta_lr * block[META_DECAY] * (np.log(reference) + before)
    change = min(max(change, -block[MAX_CHANGE]), block[MAX_CHANGE])
    log_ratio = min(max(before + change, np.log(lowest / reference)), np.log(highest / reference))
    block[LOG_RATIO] = log_ratio
    block[STEP_SIZE] = min(max(reference * np.exp(log_ratio), lowest), highest)
    return log_ratio - before


@compiled
def _meta_gradient(block: Array, by_horizon: Array) -> float:
    """A block's surrogate meta gradient, from that of one or two horizons."""
    z = by_horizon[0]
    if block[HAS_TWO_HORIZONS]:
        step, short_size, long_size = block[HORIZON_STEP], block[SHORT_SIZE], block[LONG_SIZE]
        z, step, short_size, long_size = _two_horizons(step, short_size, long_size, by_horizon[0], by_horizon[1])
        block[HORIZON_STEP], block[SHORT_SIZE], block[LONG_SIZE] = step, short_size, long_size
    return z


@compiled
def _revise(h: Array, change: Any, p: Array) -> None:
    """Move weights to about where they would be with the revised past step sizes (``docs/dutch-traces.md``)."""
    arrays_do_not_overlap()
    for i in range(len(p)):
        p[i] += change * h[i]


@compiled
def revise_in_place(addresses: Array, changes: Array, room: Room) -> None:
    """Move weights where they lie in memory, by their traces times the changes of their log step sizes."""
    kind = room.constants.dtype
    for i in range(len(addresses)):
        if addresses[i, TRACE] and changes[i] != 0:
            size = addresses[i, SIZE]
            h = carray(pointer_to(addresses[i, TRACE]), size, kind)
            _revise(h, kind.type(changes[i]), carray(pointer_to(addresses[i, WEIGHTS]), size, kind))


# A whole network

LINEAR, CONV, MAX_POOL, RELU, LEAKY_RELU, TANH, CHANNELS_LAST, CHANNELS_FIRST = range(8)

# Columns of the table of layers
KIND, INPUT, OUTPUT, N_INPUTS, N_OUTPUTS, WEIGHT, BIAS = range(7)
CHANNELS, HEIGHT, WIDTH, OUT_CHANNELS, OUT_HEIGHT, OUT_WIDTH = range(7, 13)
KERNEL_HEIGHT, KERNEL_WIDTH, STRIDE_HEIGHT, STRIDE_WIDTH, PAD_HEIGHT, PAD_WIDTH = range(13, 19)
PADDED, WINNERS = range(19, 21)
BACKWARD = 21  # whether an earlier layer learns, and so needs the gradient of this one's input
ROW = 22  # where a row of ``Memory.rows`` has a linear layer's input and, after it, the gradient of its output
N_LAYER_COLUMNS = 23

# Columns of the table of parameters
START, STOP, BLOCK, GRADIENT_START = range(4)
N_PARAMETER_COLUMNS = 4
FROZEN = -1  # in the column of blocks

CROSS_ENTROPY, SQUARED_ERROR = range(2)
SLACK = 16  # numbers; a multiple of a vector's length
N_ROWS = 16  # samples whose gradients of linear layers are added at once
ALIGNMENT = 16  # numbers; vectors that cross a line of the cache take twice as long


class Network(NamedTuple):
    """The layers of a network and its parameters.

    Attributes:
        layers: int64 [layers, N_LAYER_COLUMNS], in the order in which they are computed.
        slopes: slope of each leaky ReLU for negative inputs, [layers].
        parameters: int64 [parameters, N_PARAMETER_COLUMNS]: where each is in the flat arrays, its block, and where its
            gradient is.
        settings: of each parameter, float64 [parameters, N_SETTINGS].
        loss: number of the loss.
        loss_scale: factor on squared errors.
        averages: whether the loss of a mini-batch is the mean of its samples' losses, and not their sum.
    """

    layers: Array
    slopes: Array
    parameters: Array
    settings: Array
    loss: int
    loss_scale: float
    averages: bool


class Learned(NamedTuple):
    """What learning changes, all parameters one after the other in flat arrays.

    Attributes:
        weights: all weights.
        momentum: of the same length, or empty.
        second_moment: of the same length, or empty.
        trace: of the same length, or empty.
        long_trace: with a longer horizon, of the same length, or empty.
        steps: updates of each parameter so far, float64 [parameters].
        blocks: float64 [blocks, N_BLOCK_COLUMNS].
        kept: what a pass keeps for each weight, one array after the other.
        numbers: of each block, for a pass, float64 [blocks, numbers].
    """

    weights: Array
    momentum: Array
    second_moment: Array
    trace: Array
    long_trace: Array
    steps: Array
    blocks: Array
    kept: Array
    numbers: Array


class Rules(NamedTuple):
    """Base and meta update, by number, with their settings (float64).

    Attributes:
        revises: whether weights move with their traces when the step size changes.
        pass_address, pass_table: of the compiled pass, where ``base`` is ``BY_PASS``.
        adds: whether gradients that are stored are added to those that are there.
        row: of ``Memory.rows`` that the sample is kept in; -1 to store gradients of linear layers at once.
        predicts_with: number of the array in ``Learned.kept`` that holds the weights to predict with; -1 for none.
    """

    base: int
    base_settings: Array
    meta: int
    meta_settings: Array
    revises: bool
    pass_address: int = 0
    pass_table: int = 0
    adds: bool = False
    row: int = -1
    predicts_with: int = -1


# Columns of the table of hidden layers
FIRST_UNIT, N_UNITS, INPUTS, INPUT_ROWS, INPUTS_EACH, OUTGOING, OUTGOING_ROWS, OUTGOING_EACH = range(8)
REPLACEMENT_RATE, MATURITY, DECAY = range(3)  # and of their settings


class Units(NamedTuple):
    """Hidden units, whose use is to be known; of each hidden layer, units come one after the other.

    Attributes:
        layers: int64 [hidden layers, 8]: the first unit and their number; where the next layer's inputs are among the
            activations, and where its weights are; both are matrices with as many rows as said, and as many consecutive
            numbers of each unit in a row.
        settings: float64 [hidden layers, 3].
        budgets: float64 [hidden layers]: how many units are due to be replaced.
        ages: of the units.
        utilities: of the units.
        room: for the largest row.
    """

    layers: Array
    settings: Array
    budgets: Array
    ages: Array
    utilities: Array
    room: Array


class Memory(NamedTuple):
    """Room that a step needs; its content outlives the step only in the padding of images, which stays 0.

    Attributes:
        activations: of all layers.
        deltas: gradient of the loss with respect to each of them.
        images: padded images of all convolutions.
        winners: position of each maximum of the pooling layers, int32.
        scratch: what one convolution needs for a while.
        gradient: of all parameters; without those of linear layers where each sample makes its update at once.
        rows: of some samples of a mini-batch, what the gradients of linear layers are products of, [N_ROWS, …].
        update: room for the update of one parameter.
        meta_gradients: of the blocks, by their traces and by the long ones, float64 [blocks, 2].
    """

    activations: Array
    deltas: Array
    images: Array
    winners: Array
    scratch: Array
    gradient: Array
    rows: Array
    update: Room
    meta_gradients: Array


@compiled
def _store_product(delta: Array, x: Array, gradient: Array, weights: Array, dx: Array) -> None:
    """Write the outer product of ``delta`` and ``x`` to ``gradient``, and the inputs' gradient to ``dx`` if wanted."""
    arrays_do_not_overlap()
    dx[:] = 0
    for output in range(len(delta)):
        first, scale = output * len(x), delta[output]
        for i in range(len(x)):
            gradient[np.uintp(first + i)] = scale * x[np.uintp(i)]
        for i in range(len(dx)):
            dx[np.uintp(i)] += scale * weights[np.uintp(first + i)]


@intrinsic
def call_pass(context: Any, address: Any, table: Any, task: Any, loss: Any) -> Any:
    """Call the compiled pass at an address (``passes.Pass``)."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer, number = ir.IntType(64), ir.DoubleType()
        kind = ir.FunctionType(ir.VoidType(), [integer, integer, number])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64, types.float64), make


@compiled
def _update_parameter(
    number: int,
    delta: Array,
    x: Array,
    dx: Array,
    network: Network,
    learned: Learned,
    rules: Rules,
    memory: Memory,
) -> None:
    """Update a parameter by the outer product of ``delta`` and ``x``."""
    start, stop, block = (
        network.parameters[number, START],
        network.parameters[number, STOP],
        network.parameters[number, BLOCK],
    )
    learned.steps[number] += 1
    numbers = step_numbers(
        rules.base,
        rules.base_settings,
        learned.steps[number],
        learned.blocks[block, STEP_SIZE],
        network.settings[number],
        memory.update.constants,
    )
    p, m, v = learned.weights[start:stop], learned.momentum[start:stop], learned.second_moment[start:stop]
    h = learned.trace[start:stop] if network.settings[number, LEARNS_STEP_SIZE] else learned.trace[:0]
    long = learned.long_trace[start:stop] if network.settings[number, HAS_LONG_TRACE] else learned.long_trace[:0]
    z, long_z = update(rules.base, p, delta, x, dx, m, v, h, long, memory.update, numbers)
    memory.meta_gradients[block, 0] += z
    memory.meta_gradients[block, 1] += long_z


@compiled
def _revise_block(block: int, change: float, network: Network, learned: Learned) -> None:
    """Move the weights of a block with their traces."""
    for number in range(len(network.parameters)):
        if network.parameters[number, BLOCK] == block and network.settings[number, LEARNS_STEP_SIZE]:
            start, stop = network.parameters[number, START], network.parameters[number, STOP]
            _revise(learned.trace[start:stop], learned.weights.dtype.type(change), learned.weights[start:stop])


@compiled
def _copy(source: Array, target: Array) -> None:
    for i in range(len(source)):
        target[i] = source[i]


@compiled
def _transpose(source: Array, rows: int, columns: int, target: Array) -> None:
    """Write the transpose of ``source`` [rows, columns] to ``target``."""
    for row in range(rows):
        for column in range(columns):
            target[column * rows + row] = source[row * columns + column]


@compiled
def _linear_forward(layer: Array, network: Network, weights: Array, x: Array, out: Array) -> None:
    start, stop = network.parameters[layer[WEIGHT], START], network.parameters[layer[WEIGHT], STOP]
    np.dot(weights[start:stop].reshape(len(out), len(x)), x, out)
    if layer[BIAS] >= 0:
        bias = network.parameters[layer[BIAS], START]
        _add_scaled(out.dtype.type(1), weights[bias : bias + len(out)], out)


@compiled
def _linear_backward(
    layer: Array, x: Array, delta: Array, dx: Array, network: Network, learned: Learned, rules: Rules, memory: Memory
) -> None:
    nothing, stores = memory.gradient[:0], rules.base == BY_PASS
    if layer[BIAS] >= 0 and network.parameters[layer[BIAS], BLOCK] != FROZEN:
        if stores:
            first = network.parameters[layer[BIAS], GRADIENT_START]
            bias = memory.gradient[first : first + len(delta)]
            if not rules.adds:
                bias[:] = 0
            _add_scaled(delta.dtype.type(1), delta, bias)
        else:
            _update_parameter(layer[BIAS], memory.update.one, delta, nothing, network, learned, rules, memory)
    start, stop = network.parameters[layer[WEIGHT], START], network.parameters[layer[WEIGHT], STOP]
    weights, frozen = learned.weights[start:stop], network.parameters[layer[WEIGHT], BLOCK] == FROZEN
    if not frozen and not stores:
        _update_parameter(layer[WEIGHT], delta, x, dx, network, learned, rules, memory)
    elif not frozen and rules.row < 0:
        first = network.parameters[layer[WEIGHT], GRADIENT_START]
        _store_product(delta, x, memory.gradient[first : first + len(weights)], weights, dx)
    else:
        if len(dx):
            np.dot(delta, weights.reshape(len(delta), len(x)), dx)
        if not frozen:
            row = rules.row * (len(memory.rows) // N_ROWS) + layer[ROW]
            _copy(x, memory.rows[row:])
            _copy(delta, memory.rows[row + filled(len(x)) :])


# Matrix products

VECTOR_BYTES = 64


def _tile(rows: int, vectors: int) -> Any:
    """A function that adds the product of two matrices to a small part of a third, which stays in registers.

    The sum over the inner dimension is made in its order, each product added with one rounding (fused multiply-add).
    """

    @intrinsic
    def multiply_tile(
        context: Any, x: Any, x_at: Any, x_row: Any, x_inner: Any, b: Any, b_at: Any, b_row: Any,
        out: Any, out_at: Any, out_row: Any, inner: Any,
    ) -> Any:  # fmt: skip
        number = x.dtype
        lanes = VECTOR_BYTES * 8 // number.bitwidth

        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, x_at, x_row, x_inner, b, b_at, b_row, out, out_at, out_row, inner = arguments
            vector, index = ir.VectorType(context.get_value_type(number), lanes), inner.type
            undefined = ir.Constant(vector, ir.Undefined)
            everywhere = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            multiply_add = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}f{number.bitwidth}"
            )
            bytes_per_number = number.bitwidth // 8
            x_data, b_data, out_data = (
                context.make_helper(builder, signature.args[place], value).data
                for place, value in ((0, x), (4, b), (7, out))
            )

            def times(a: Any, n: int) -> Any:
                return builder.mul(a, ir.Constant(index, n))

            def vector_at(data: Any, place: Any, number_of_vector: int) -> Any:
                place = builder.add(place, ir.Constant(index, number_of_vector * lanes))
                return builder.bitcast(builder.gep(data, [place]), vector.as_pointer())

            parts = [(row, column) for row in range(rows) for column in range(vectors)]
            places = {
                (row, column): vector_at(out_data, builder.add(out_at, times(out_row, row)), column)
                for row, column in parts
            }
            sums = {part: builder.load(places[part], align=bytes_per_number) for part in parts}
            x_rows = [builder.add(x_at, times(x_row, row)) for row in range(rows)]
            before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
            builder.cbranch(builder.icmp_signed(">", inner, ir.Constant(index, 0)), loop, after)

            builder.position_at_end(loop)
            i = builder.phi(index)
            running = {part: builder.phi(vector) for part in parts}
            b_place = builder.add(b_at, builder.mul(i, b_row))
            b_vectors = [
                builder.load(vector_at(b_data, b_place, column), align=bytes_per_number) for column in range(vectors)
            ]
            added = {}
            for row in range(rows):
                place = builder.add(x_rows[row], builder.mul(i, x_inner))
                first = builder.insert_element(
                    undefined, builder.load(builder.gep(x_data, [place])), ir.Constant(ir.IntType(32), 0)
                )
                scale = builder.shuffle_vector(first, undefined, everywhere)
                for column in range(vectors):
                    added[row, column] = builder.call(multiply_add, [scale, b_vectors[column], running[row, column]])
            following = builder.add(i, ir.Constant(index, 1))
            i.add_incoming(ir.Constant(index, 0), before)
            i.add_incoming(following, loop)
            for part in parts:
                running[part].add_incoming(sums[part], before)
                running[part].add_incoming(added[part], loop)
            builder.cbranch(builder.icmp_signed("<", following, inner), loop, after)

            builder.position_at_end(after)
            results = {part: builder.phi(vector) for part in parts}  # all before the first store, as LLVM wants them
            for part, result in results.items():
                result.add_incoming(sums[part], before)
                result.add_incoming(added[part], loop)
            for part, result in results.items():
                builder.store(result, places[part], align=bytes_per_number)
            return context.get_dummy_value()

        integer = types.intp
        return types.none(x, integer, integer, integer, b, integer, integer, out, integer, integer, integer), make

    return multiply_tile


_multiply_8_by_2, _multiply_8_by_1 = _tile(8, 2), _tile(8, 1)
_multiply_1_by_2, _multiply_1_by_1 = _tile(1, 2), _tile(1, 1)


@compiled
def multiply(x: Any, b: Any, out: Any, rows: int, columns: int, inner: int) -> None:
    """Add the product of a matrix x [rows, inner] and a matrix b [inner, columns] to a matrix out.

    Args:
        x: an array, where in it the matrix begins, and the distances of its rows and of its columns.
        b: likewise without a distance of columns, which is 1.
        out: likewise.
        rows: of x.
        columns: of b; a multiple of ``SLACK``.
        inner: columns of x.
    """
    x, x_at, x_row, x_inner = x
    b, b_at, b_row = b
    out, out_at, out_row = out
    lanes = VECTOR_BYTES // x.itemsize
    column = 0
    while column < columns:
        wide = columns - column >= 2 * lanes
        row = 0
        while row < rows:
            xs, bs, to = x_at + row * x_row, b_at + column, out_at + row * out_row + column
            if rows - row >= 8:
                if wide:
                    _multiply_8_by_2(x, xs, x_row, x_inner, b, bs, b_row, out, to, out_row, inner)
                else:
                    _multiply_8_by_1(x, xs, x_row, x_inner, b, bs, b_row, out, to, out_row, inner)
                row += 8
            else:
                if wide:
                    _multiply_1_by_2(x, xs, x_row, x_inner, b, bs, b_row, out, to, out_row, inner)
                else:
                    _multiply_1_by_1(x, xs, x_row, x_inner, b, bs, b_row, out, to, out_row, inner)
                row += 1
        column += 2 * lanes if wide else lanes


@compiled
def _copy_rows(source: Array, source_row: int, target: Array, target_row: int, rows: int, n: int) -> None:
    """Copy the first ``n`` numbers of each row to rows of another length."""
    for row in range(rows):
        _copy(source[row * source_row : row * source_row + n], target[row * target_row : row * target_row + n])


@compiled
def _add_rows(source: Array, source_row: int, target: Array, target_row: int, rows: int, n: int) -> None:
    """Add the first ``n`` numbers of each row to rows of another length."""
    one = source.dtype.type(1)
    for row in range(rows):
        _add_scaled(one, source[row * source_row : row * source_row + n], target[row * target_row :])


@compiled
def filled(n: int) -> int:
    """The next multiple of a vector's length."""
    return (n + SLACK - 1) // SLACK * SLACK


@compiled
def _geometry(layer: Array) -> tuple[int, int, int]:
    """Of a convolution: length of the piece of a row under its kernel, of a row, and of a step to the right."""
    width = (layer[WIDTH] + 2 * layer[PAD_WIDTH]) * layer[CHANNELS]
    return layer[KERNEL_WIDTH] * layer[CHANNELS], width, layer[STRIDE_WIDTH] * layer[CHANNELS]


@compiled
def _middle(layer: Array) -> tuple[int, int, int]:
    """Of a padded image: where its middle begins, and the lengths of a row of the middle and of the whole."""
    row, margin = layer[WIDTH] * layer[CHANNELS], layer[PAD_WIDTH] * layer[CHANNELS]
    return layer[PAD_HEIGHT] * (row + 2 * margin) + margin, row, row + 2 * margin


@compiled
def _padded_image(layer: Array, images: Array) -> Array:
    size = (layer[HEIGHT] + 2 * layer[PAD_HEIGHT]) * (layer[WIDTH] + 2 * layer[PAD_WIDTH]) * layer[CHANNELS]
    return images[layer[PADDED] : layer[PADDED] + size]


@compiled
def _conv_forward(layer: Array, network: Network, weights: Array, x: Array, out: Array, memory: Memory) -> None:
    outputs, columns = layer[OUT_CHANNELS], filled(layer[OUT_CHANNELS])
    length, image_row, step = _geometry(layer)
    patch, positions = layer[KERNEL_HEIGHT] * length, layer[OUT_HEIGHT] * layer[OUT_WIDTH]
    padded = _padded_image(layer, memory.images)
    first, row, padded_row = _middle(layer)
    _copy_rows(x, row, padded[first:], padded_row, layer[HEIGHT], row)
    start = network.parameters[layer[WEIGHT], START]
    kernels, sums = weights[start : start + patch * outputs], out
    if columns > outputs:
        sums = memory.scratch[: positions * columns]
        kernels = memory.scratch[positions * columns : (positions + patch) * columns]
        sums[:] = 0
        _copy_rows(weights[start:], outputs, kernels, columns, patch, outputs)
    if layer[BIAS] >= 0:
        start = network.parameters[layer[BIAS], START]
        for position in range(positions):
            _copy(weights[start : start + outputs], sums[position * columns : position * columns + outputs])
    else:
        sums[:] = 0
    for y in range(layer[OUT_HEIGHT]):
        for ky in range(layer[KERNEL_HEIGHT]):
            image = (padded, (y * layer[STRIDE_HEIGHT] + ky) * image_row, step, 1)
            target = (sums, y * layer[OUT_WIDTH] * columns, columns)
            multiply(image, (kernels, ky * length * columns, columns), target, layer[OUT_WIDTH], columns, length)
    if columns > outputs:
        _copy_rows(sums, columns, out, outputs, positions, outputs)


@compiled
def _paste(layer: Array, y: int, patches: Array, row: int, padded: Array) -> None:
    """Add up what belongs under each position of the kernel in a row of the output."""
    arrays_do_not_overlap()
    length, image_row, step = _geometry(layer)
    for ky in range(layer[KERNEL_HEIGHT]):
        first = (y * layer[STRIDE_HEIGHT] + ky) * image_row
        for x in range(layer[OUT_WIDTH]):
            for i in range(length):
                padded[np.uintp(first + x * step + i)] += patches[np.uintp(x * row + ky * length + i)]


class _ConvRoom(NamedTuple):
    """What a convolution's backward computation needs for a while, cut out of ``Memory.scratch``.

    Attributes:
        delta: gradient with respect to outputs, each position filled up to whole vectors; empty if it is so already.
        gradient: of the weights, likewise.
        kernels: weights, [outputs, filled patch].
        patches: gradient with respect to the patches of one row of the output.
        padded: gradient with respect to the padded image.
    """

    delta: Array
    gradient: Array
    kernels: Array
    patches: Array
    padded: Array


@compiled
def _conv_room(layer: Array, scratch: Array) -> _ConvRoom:
    length, image_row, _ = _geometry(layer)
    outputs, columns, patch = layer[OUT_CHANNELS], filled(layer[OUT_CHANNELS]), layer[KERNEL_HEIGHT] * length
    widened = columns if columns > outputs else 0
    a = layer[OUT_HEIGHT] * layer[OUT_WIDTH] * widened
    b = a + patch * widened
    c = b + outputs * filled(patch)
    d = c + layer[OUT_WIDTH] * filled(patch)
    e = d + (layer[HEIGHT] + 2 * layer[PAD_HEIGHT]) * image_row
    return _ConvRoom(scratch[:a], scratch[a:b], scratch[b:c], scratch[c:d], scratch[d:e])


@compiled
def _conv_input_gradient(layer: Array, delta: Array, weights: Array, room: _ConvRoom, dx: Array) -> None:
    """Gradient with respect to a convolution's input, from a ``delta`` of whole vectors."""
    outputs, columns, width = layer[OUT_CHANNELS], filled(layer[OUT_CHANNELS]), layer[OUT_WIDTH]
    patch = len(weights) // outputs
    row = filled(patch)
    room.kernels[:] = 0
    for k in range(patch):
        for output in range(outputs):
            room.kernels[output * row + k] = weights[k * outputs + output]
    room.padded[:] = 0
    for y in range(layer[OUT_HEIGHT]):
        room.patches[:] = 0
        gradients = (delta, y * width * columns, columns, 1)
        multiply(gradients, (room.kernels, 0, row), (room.patches, 0, row), width, row, outputs)
        _paste(layer, y, room.patches, row, room.padded)
    first, length, padded_row = _middle(layer)
    _copy_rows(room.padded[first:], padded_row, dx, length, layer[HEIGHT], length)


@compiled
def _conv_weight_gradient(layer: Array, delta: Array, image: Array, gradient: Array) -> None:
    """Add the gradient of a convolution's weights, [patch, filled outputs], from a ``delta`` of whole vectors."""
    length, image_row, step = _geometry(layer)
    columns, width = filled(layer[OUT_CHANNELS]), layer[OUT_WIDTH]
    for y in range(layer[OUT_HEIGHT]):
        for ky in range(layer[KERNEL_HEIGHT]):
            rows = (image, (y * layer[STRIDE_HEIGHT] + ky) * image_row, 1, step)
            target = (gradient, ky * length * columns, columns)
            multiply(rows, (delta, y * width * columns, columns), target, length, columns, width)


@compiled
def _conv_backward(
    layer: Array, delta: Array, dx: Array, network: Network, learned: Learned, rules: Rules, memory: Memory
) -> None:
    outputs, columns = layer[OUT_CHANNELS], filled(layer[OUT_CHANNELS])
    positions = layer[OUT_HEIGHT] * layer[OUT_WIDTH]
    start, stop = network.parameters[layer[WEIGHT], START], network.parameters[layer[WEIGHT], STOP]
    room, wide = _conv_room(layer, memory.scratch), delta
    if columns > outputs:
        wide = room.delta
        wide[:] = 0
        _copy_rows(delta, outputs, wide, columns, positions, outputs)
    if len(dx):
        _conv_input_gradient(layer, wide, learned.weights[start:stop], room, dx)

    nothing, stores = memory.gradient[:0], rules.base == BY_PASS
    if layer[BIAS] >= 0 and network.parameters[layer[BIAS], BLOCK] != FROZEN:
        first = network.parameters[layer[BIAS], GRADIENT_START]
        bias = memory.gradient[first : first + outputs]
        if not rules.adds:
            bias[:] = 0
        for position in range(positions):
            _add_scaled(bias.dtype.type(1), delta[position * outputs : (position + 1) * outputs], bias)
        if not stores:
            _update_parameter(layer[BIAS], memory.update.one, bias, nothing, network, learned, rules, memory)
    if network.parameters[layer[WEIGHT], BLOCK] != FROZEN:
        first = network.parameters[layer[WEIGHT], GRADIENT_START]
        image, gradient = _padded_image(layer, memory.images), memory.gradient[first : first + stop - start]
        if not rules.adds:
            gradient[:] = 0
        if columns > outputs:
            room.gradient[:] = 0
            _conv_weight_gradient(layer, wide, image, room.gradient)
            _add_rows(room.gradient, columns, gradient, outputs, (stop - start) // outputs, outputs)
        else:
            _conv_weight_gradient(layer, wide, image, gradient)
        if not stores:
            _update_parameter(layer[WEIGHT], memory.update.one, gradient, nothing, network, learned, rules, memory)


@compiled
def _take_larger(x: Array, x_at: int, out: Array, winners: Array, out_at: int, n: int) -> None:
    """Put the larger numbers of ``x`` in the place of those in ``out``, and where they are into ``winners``."""
    arrays_do_not_overlap()
    for c in range(n):
        jx, j = np.uintp(x_at + c), np.uintp(out_at + c)
        # as in PyTorch, what is not a number wins, so that it is seen in the loss
        larger = (x[jx] > out[j]) | (x[jx] != x[jx])
        out[j] = x[jx] if larger else out[j]
        winners[j] = np.int32(x_at + c) if larger else winners[j]


@compiled
def _max_pool_forward(layer: Array, x: Array, out: Array, winners: Array) -> None:
    channels = layer[CHANNELS]
    out[:] = -np.inf
    to = 0
    for y in range(layer[OUT_HEIGHT]):
        for column in range(layer[OUT_WIDTH]):
            for ky in range(layer[KERNEL_HEIGHT]):
                row = (y * layer[STRIDE_HEIGHT] + ky) * layer[WIDTH]
                for kx in range(layer[KERNEL_WIDTH]):
                    first = (row + column * layer[STRIDE_WIDTH] + kx) * channels
                    _take_larger(x, first, out, winners, to, channels)
            to += channels


@compiled
def _activation_forward(kind: int, slope: Any, a: Array) -> None:
    # written so that what is not a number stays so
    if kind == TANH:
        for i in range(len(a)):
            a[i] = np.tanh(a[i])
    elif kind == RELU:
        for i in range(len(a)):
            a[i] = a.dtype.type(0) if a[i] < 0 else a[i]
    else:
        for i in range(len(a)):
            a[i] = slope * a[i] if a[i] < 0 else a[i]


@compiled
def _activation_backward(kind: int, slope: Any, a: Array, delta: Array) -> None:
    one = a.dtype.type(1)
    if kind == TANH:
        for i in range(len(a)):
            delta[i] *= one - a[i] * a[i]
    elif kind == RELU:
        for i in range(len(a)):
            delta[i] = delta[i] if a[i] > 0 else a.dtype.type(0)
    else:
        for i in range(len(a)):
            delta[i] = delta[i] if a[i] > 0 else slope * delta[i]


@compiled
def _forward(network: Network, weights: Array, memory: Memory) -> None:
    for number in range(len(network.layers)):
        layer = network.layers[number]
        kind = layer[KIND]
        x = memory.activations[layer[INPUT] : layer[INPUT] + layer[N_INPUTS]]
        out = memory.activations[layer[OUTPUT] : layer[OUTPUT] + layer[N_OUTPUTS]]
        if kind == LINEAR:
            _linear_forward(layer, network, weights, x, out)
        elif kind == CONV:
            _conv_forward(layer, network, weights, x, out, memory)
        elif kind == MAX_POOL:
            _max_pool_forward(layer, x, out, memory.winners[layer[WINNERS] : layer[WINNERS] + len(out)])
        elif kind == CHANNELS_LAST:
            _transpose(x, layer[CHANNELS], layer[HEIGHT] * layer[WIDTH], out)
        elif kind == CHANNELS_FIRST:
            _transpose(x, layer[HEIGHT] * layer[WIDTH], layer[CHANNELS], out)
        else:
            _activation_forward(kind, network.slopes[number], out)


@compiled
def _backward_and_update(network: Network, learned: Learned, rules: Rules, memory: Memory) -> None:
    for number in range(len(network.layers) - 1, -1, -1):
        layer = network.layers[number]
        kind = layer[KIND]
        delta = memory.deltas[layer[OUTPUT] : layer[OUTPUT] + layer[N_OUTPUTS]]
        dx = memory.deltas[layer[INPUT] : layer[INPUT] + layer[N_INPUTS] * layer[BACKWARD]]
        if kind == LINEAR:
            x = memory.activations[layer[INPUT] : layer[INPUT] + layer[N_INPUTS]]
            _linear_backward(layer, x, delta, dx, network, learned, rules, memory)
        elif kind == CONV:
            _conv_backward(layer, delta, dx, network, learned, rules, memory)
        elif len(dx) == 0:
            continue
        elif kind == MAX_POOL:
            dx[:] = 0
            for i in range(len(delta)):
                dx[memory.winners[layer[WINNERS] + i]] += delta[i]
        elif kind == CHANNELS_LAST:
            _transpose(delta, layer[HEIGHT] * layer[WIDTH], layer[CHANNELS], dx)
        elif kind == CHANNELS_FIRST:
            _transpose(delta, layer[CHANNELS], layer[HEIGHT] * layer[WIDTH], dx)
        else:
            out = memory.activations[layer[OUTPUT] : layer[OUTPUT] + layer[N_OUTPUTS]]
            _activation_backward(kind, network.slopes[number], out, delta)


@compiled
def _add_from_rows(network: Network, memory: Memory, n: int, adds: bool) -> None:
    """Store, or add, the gradients of linear layers' weights from the first ``n`` rows of ``memory.rows``."""
    rows, row = memory.rows, len(memory.rows) // N_ROWS
    for number in range(len(network.layers)):
        layer = network.layers[number]
        if layer[KIND] != LINEAR or network.parameters[layer[WEIGHT], BLOCK] == FROZEN:
            continue
        inputs, outputs, x_at = layer[N_INPUTS], layer[N_OUTPUTS], layer[ROW]
        first, delta_at = network.parameters[layer[WEIGHT], GRADIENT_START], x_at + filled(inputs)
        if not adds:
            memory.gradient[first : first + inputs * outputs] = 0
        whole = inputs // SLACK * SLACK
        target = (memory.gradient, first, inputs)
        multiply((rows, delta_at, 1, row), (rows, x_at, row), target, outputs, whole, n)
        for sample in range(n):
            x = rows[sample * row + x_at + whole : sample * row + x_at + inputs]
            for output in range(outputs):
                rest = memory.gradient[first + output * inputs + whole : first + (output + 1) * inputs]
                _add_scaled(rows[sample * row + delta_at + output], x, rest)


@compiled
def _update_from_stored(network: Network, learned: Learned, rules: Rules, memory: Memory) -> None:
    """Update all parameters by the gradients that are stored."""
    for number in range(len(network.parameters)):
        if network.parameters[number, BLOCK] != FROZEN:
            gradient = memory.gradient[network.parameters[number, START] : network.parameters[number, STOP]]
            nothing = memory.gradient[:0]
            _update_parameter(number, memory.update.one, gradient, nothing, network, learned, rules, memory)


@compiled
def _cross_entropy(outputs: Array, label: int, share: float, delta: Array) -> float:
    """Loss, rounded as the outputs are, and ``share`` times its gradient with respect to the outputs."""
    largest = np.float64(outputs[0])
    for i in range(1, len(outputs)):
        largest = max(largest, np.float64(outputs[i]))
    total = 0.0
    for i in range(len(outputs)):
        total += np.exp(np.float64(outputs[i]) - largest)
    for i in range(len(outputs)):
        delta[i] = share * (np.exp(np.float64(outputs[i]) - largest) / total - (i == label))
    return np.float64(outputs.dtype.type(np.log(total) + largest - np.float64(outputs[label])))


@compiled
def _squared_error(outputs: Array, target: Array, scale: float, share: float, delta: Array) -> float:
    """Loss, rounded as the outputs are, and ``share`` times its gradient with respect to the outputs."""
    total = 0.0
    for i in range(len(outputs)):
        error = np.float64(outputs[i]) - np.float64(target[i])
        total += error * error
        delta[i] = share * 2 * scale * error
    return np.float64(outputs.dtype.type(np.float64(outputs.dtype.type(total)) * scale))


@compiled
def _largest(outputs: Array) -> int:
    best = 0
    for i in range(1, len(outputs)):
        if outputs[i] > outputs[best]:
            best = i
    return best


@compiled
def _outputs(network: Network, numbers: Array) -> Array:
    """The network's outputs, cut out of what is kept of all layers."""
    last = network.layers[len(network.layers) - 1]
    return numbers[last[OUTPUT] : last[OUTPUT] + last[N_OUTPUTS]]


@compiled
def _loss(network: Network, memory: Memory, x: Array, label: int, target: Array, share: float, weights: Array) -> float:
    """Predict a sample: its loss, and ``share`` times the loss's gradient with respect to the outputs."""
    _copy(x, memory.activations[: len(x)])
    _forward(network, weights, memory)
    outputs, delta = _outputs(network, memory.activations), _outputs(network, memory.deltas)
    if network.loss == CROSS_ENTROPY:
        return _cross_entropy(outputs, label, share, delta)
    return _squared_error(outputs, target, network.loss_scale, share, delta)


@compiled
def _rounded(value: float, like: Array) -> float:
    return np.float64(like.dtype.type(value))


@compiled
def _store_gradients(network: Network, learned: Learned, rules: Rules, memory: Memory, sample: int, n: int) -> None:
    """Store the gradients of the first sample of a mini-batch of ``n``, or add those of another one."""
    row = sample % N_ROWS if n > 1 else -1
    rest = rules.base_settings, rules.meta, rules.meta_settings, rules.revises, rules.pass_address, rules.pass_table
    _backward_and_update(network, learned, Rules(BY_PASS, *rest, sample > 0, row, -1), memory)
    if n > 1 and (row == N_ROWS - 1 or sample == n - 1):
        _add_from_rows(network, memory, row + 1, sample >= N_ROWS)


@compiled
def count_correct(network: Network, weights: Array, memory: Memory, x: Array, labels: Array) -> int:
    """How many samples are predicted right: the largest output is at the label.

    Args:
        x: inputs [samples, numbers], each in the order that PyTorch flattens it.
        labels: classes int64 [samples].
    """
    outputs = _outputs(network, memory.activations)
    n_correct = 0
    for i in range(len(x)):
        _copy(x[i], memory.activations[: x.shape[1]])
        _forward(network, weights, memory)
        if _largest(outputs) == labels[i]:
            n_correct += 1
    return n_correct


@compiled
def _add_sizes(values: Array, rows: int, columns: int, sums: Array) -> None:
    """Add up the absolute values in each column."""
    arrays_do_not_overlap()
    for column in range(columns):
        sums[np.uintp(column)] = 0
    for row in range(rows):
        for column in range(columns):
            sums[np.uintp(column)] += abs(values[np.uintp(row * columns + column)])


@compiled
def _mean_size(sums: Array, unit: int, rows: int, each: int) -> float:
    total = 0.0
    for i in range(unit * each, (unit + 1) * each):
        total += sums[i]
    return total / (rows * each)


@compiled
def use_units(units: Units, activations: Array, weights: Array) -> bool:
    """Let hidden units grow older, and take in what they contribute (``ContinualBackprop``).

    Returns:
        Whether a unit is due to be replaced.
    """
    due = False
    number = units.room.dtype.type
    for index in range(len(units.layers)):
        layer, settings = units.layers[index], units.settings[index]
        n, rows, each = layer[N_UNITS], layer[INPUT_ROWS], layer[INPUTS_EACH]
        ages = units.ages[layer[FIRST_UNIT] : layer[FIRST_UNIT] + n]
        utilities = units.utilities[layer[FIRST_UNIT] : layer[FIRST_UNIT] + n]
        activity = np.empty(n)
        _add_sizes(activations[layer[INPUTS] :], rows, n * each, units.room)
        for unit in range(n):
            activity[unit] = _mean_size(units.room, unit, rows, each)
        rows, each = layer[OUTGOING_ROWS], layer[OUTGOING_EACH]
        _add_sizes(weights[layer[OUTGOING] :], rows, n * each, units.room)
        n_mature = 0
        for unit in range(n):
            used = number(activity[unit] * _mean_size(units.room, unit, rows, each))
            utilities[unit] += number(1 - settings[DECAY]) * (used - utilities[unit])
            ages[unit] += 1
            n_mature += ages[unit] > settings[MATURITY]
        units.budgets[index] += settings[REPLACEMENT_RATE] * n_mature
        due |= units.budgets[index] >= 1
    return due


EVERYTHING = 2**40  # numbers, more than there are in any memory


@compiled
def gradients(
    network: Network,
    rules: Rules,
    memory: Memory,
    addresses: Array,
    x: Array,
    labels: Array,
    targets: Array,
    backward: bool,
    outputs: Array,
) -> float:
    """Predict a mini-batch with weights where they lie in memory, and write the gradients of its loss to others.

    Args:
        addresses: of each parameter's weights and gradient, int64 [parameters, 2]; a gradient's is that of the weights
            where none is wanted.
        x, labels, targets: as ``learn``.
        backward: whether gradients are wanted at all.
        outputs: receives the predictions, [samples, outputs].

    Returns:
        The loss of the mini-batch.
    """
    lowest, kind = addresses.min(), memory.update.constants.dtype
    numbers, nothing = carray(pointer_to(lowest), EVERYTHING, kind), outputs[0, :0]
    parameters = network.parameters.copy()
    for i in range(len(parameters)):
        start = (addresses[i, 0] - lowest) // outputs.itemsize
        parameters[i, START], parameters[i, STOP] = start, start + parameters[i, STOP] - parameters[i, START]
        parameters[i, GRADIENT_START] = (addresses[i, 1] - lowest) // outputs.itemsize
    loss = network.loss, network.loss_scale, network.averages
    placed = Network(network.layers, network.slopes, parameters, network.settings, *loss)
    none = np.zeros((0, 0))
    learned = Learned(numbers, nothing, nothing, nothing, nothing, np.zeros(0), none, nothing, none)
    rest = memory.rows, memory.update, memory.meta_gradients
    room = Memory(memory.activations, memory.deltas, memory.images, memory.winners, memory.scratch, numbers, *rest)
    share, total = 1 / len(x) if network.averages else 1.0, 0.0
    for i in range(len(x)):
        total += _loss(placed, room, x[i], labels[i], targets[i], share, numbers)
        _copy(_outputs(network, memory.activations), outputs[i])
        if backward:
            _store_gradients(placed, learned, rules, room, i, len(x))
    return _rounded(total * share, outputs)


UPDATE, REPORT = range(2)  # tasks of a pass: make the update; write the step sizes in force to its table
LEARNED_ALL, LOSS_NOT_FINITE, HANDED_BACK = (
    -1,
    -2,
    -3,
)  # otherwise the number of a block whose meta gradient is not finite


@compiled
def learn(
    network: Network,
    learned: Learned,
    rules: Rules,
    memory: Memory,
    units: Units,
    x: Array,
    labels: Array,
    targets: Array,
    planned: Array,
    first_step: int,
    record_every: int,
    batch_size: int,
    correct: Array,
    losses: Array,
    step_sizes: Array,
    meta_gradients: Array,
) -> tuple[int, int, float]:
    """Predict, score, learn, for one sample after the other, or for one mini-batch after the other.

    Args:
        learned: changed in place.
        units: likewise; without layers for none.
        x: inputs [samples, numbers], each in the order that PyTorch flattens it.
        labels: classes int64 [samples], for cross-entropy.
        targets: [samples, outputs], for squared errors.
        planned: step sizes at each update, float64 [updates, blocks]; [0, blocks] for those of the table of blocks.
        first_step: number of the first sample in the stream.
        record_every: an update is recorded if the number of one of its samples is a multiple.
        batch_size: samples that are predicted, and then learned from, at once; at the end they may be fewer.
        correct: receives whether the largest output was at the label, bool [samples].
        losses: receives the losses of the predictions, float64 [samples].
        step_sizes: receives the step sizes in force at each recorded update, float64 [recorded updates, blocks].
        meta_gradients: likewise the meta gradients.

    Returns:
        How many samples were learned from; why no more: ``LEARNED_ALL``, ``LOSS_NOT_FINITE``, ``HANDED_BACK`` where a
        unit is due or meta gradients are collected, or the number of a block whose meta gradient is not finite; and the
        value that is not finite.
    """
    outputs = _outputs(network, memory.activations)
    active = np.zeros(len(learned.blocks), np.bool_)
    for number in range(len(network.parameters)):
        if network.parameters[number, BLOCK] != FROZEN:
            active[network.parameters[number, BLOCK]] = True
    predicting, n_weights = learned.weights, len(learned.weights)
    if rules.predicts_with >= 0:
        predicting = learned.kept[rules.predicts_with * n_weights : (rules.predicts_with + 1) * n_weights]
    n_recorded = 0
    for start in range(0, len(x), batch_size):
        stop = min(start + batch_size, len(x))
        recorded = -(-(first_step + start) // record_every) * record_every < first_step + stop
        n = stop - start
        share, loss = 1 / n if network.averages else 1.0, 0.0
        for i in range(start, stop):
            losses[i] = _loss(network, memory, x[i], labels[i], targets[i], share, predicting)
            loss += losses[i]
            correct[i] = _largest(outputs) == labels[i]
            if i == stop - 1:
                loss = _rounded(loss * share, outputs)
                if not np.isfinite(loss):
                    return start, LOSS_NOT_FINITE, loss
                if len(planned):
                    learned.blocks[:, STEP_SIZE] = planned[start // batch_size]
                if recorded and rules.base == BY_PASS:
                    call_pass(rules.pass_address, rules.pass_table, REPORT, loss)
                if recorded:
                    step_sizes[n_recorded] = learned.blocks[:, STEP_SIZE]
                memory.meta_gradients[:] = 0
            if rules.predicts_with >= 0:
                _loss(network, memory, x[i], labels[i], targets[i], share, learned.weights)
            if n > 1:
                _store_gradients(network, learned, rules, memory, i - start, n)
            else:
                _backward_and_update(network, learned, rules, memory)
        if rules.base == BY_PASS:
            call_pass(rules.pass_address, rules.pass_table, UPDATE, loss)
        elif n > 1:
            _update_from_stored(network, learned, rules, memory)
        for block in range(len(learned.blocks)):
            if active[block] and learned.blocks[block, META_LR] > 0:
                for z in memory.meta_gradients[block]:
                    if not np.isfinite(z):
                        return start, block, z
                z = _meta_gradient(learned.blocks[block], memory.meta_gradients[block])
                change = update_step_size(rules.meta, rules.meta_settings, learned.blocks[block], z)
                if rules.revises and change != 0:
                    _revise_block(block, change, network, learned)
        if recorded:
            meta_gradients[n_recorded] = learned.blocks[:, META_GRADIENT]
            n_recorded += 1
        handed_back = use_units(units, memory.activations, learned.weights)
        if rules.meta == META_COLLECT:
            learned.blocks[:, META_STEP] += 1
            handed_back |= learned.blocks[0, META_STEP] == rules.meta_settings[0]
        if handed_back:
            return stop, HANDED_BACK, 0.0
    return len(x), LEARNED_ALL, 0.0
