"""Writes the text of a pass over memory from the functions of an ``Elementwise`` optimizer, or of one on a base update.

The text is theirs, but that settings are rounded to the type of weights where they meet one, as PyTorch rounds them.
"""

import ast
import inspect
import itertools
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from continual_metaopt.engines.compiled import kernels
from continual_metaopt.engines.compiled.passes import N_COLUMNS, N_ROWS, NUMBER, RESTARTS, WEIGHTS, Pass
from continual_metaopt.optim import elementwise
from continual_metaopt.optim.base import OnBase, arguments_of
from continual_metaopt.optim.elementwise import Elementwise

NAMES = ("sqrt", "exp", "log", "sign", "maximum", "minimum", "where")
OPERATIONS = {getattr(elementwise, name): name for name in NAMES}
BUILT_IN = {abs: "abs", min: "min", max: "max", float: "float", round: "round"}
MATHEMATICS = {function: f"math.{name}" for name, function in vars(math).items() if callable(function)}

RUN = """
def run(tables, task, loss):
    head = carray(k.pointer_to(tables), 9, np.int64)
    n_parameters, n_groups = head[0], head[1]
    places = carray(k.pointer_to(head[2]), (n_parameters, {n_places}), np.int64)
    steps = carray(k.pointer_to(head[3]), n_parameters, np.float64)
    numbers = carray(k.pointer_to(head[4]), (n_groups, {n_numbers}), np.float64)
    blocks = carray(k.pointer_to(head[5]), (n_groups, k.N_BLOCK_COLUMNS), np.float64)
    measured = carray(k.pointer_to(head[6]), (n_groups, {n_measured}), np.float64)
    partial = carray(k.pointer_to(head[7]), ({n_measured}, k.PIECE), number)
    constants = carray(k.pointer_to(head[8]), k.N_CONSTANTS, number)
    if task == k.REPORT:
{report}
        return
    for p in range(n_parameters):
        steps[p] += 1
{update}
"""

EACH_WEIGHT = """
for i in range(n):
    ...
"""
SINCE_RESTARTS = """
for row in range(n // n_columns):
    of_row = row % n_rows
    for column in range(n_columns):
        i, of_column = np.uintp(row * n_columns + column), np.uintp(n_rows + column)
        rate, correction = max(since[0, of_row], since[0, of_column]), max(since[1, of_row], since[1, of_column])
        ...
"""

Function = Callable[..., Any]


class NotWritten(Exception):
    """The message says what keeps an optimizer's functions from being compiled."""


@cache
def elementwise_pass(kind: type[Elementwise], numbers: tuple[str, ...]) -> Pass:
    """Write the pass of a class of optimizers whose groups have these numbers.

    Raises:
        NotWritten: a function holds what cannot be compiled.
    """
    text, update = _Text(kind.keeps, numbers, tuple(kind.measures)), []
    if kind.measure is not None:
        update += text.measuring(kind.measure, kind.measures, kind.over_all_groups)
    if kind.decide is not None:
        update += text.for_each_group(kind.decide, kind.decides, kind.over_all_groups)
    cells = ", ".join(f"{name}[i]" for name in ("w", *kind.keeps))
    update += text.for_each_parameter([f"{cells} = {text.call(kind.move)}"])
    report = text.reporting(kind.step_size)
    if kind.log_step_size is not None:
        report += text.averaging(kind.log_step_size)
    whole, keeps, decides = text.whole(report, update), tuple(kind.keeps), tuple(kind.decides)
    return Pass(whole, keeps, numbers, decides, len(kind.measures), kind.predicts_with)


@cache
def on_base_pass(
    rule: str,
    moments: tuple[str, str],
    n_settings: int,
    kind: type[OnBase],
    numbers: tuple[str, ...],
    restarts: bool = False,
) -> Pass:
    """Write the pass of a base update, with what a class of optimizers adds to it.

    Args:
        rule: name of the base update's rule in the kernels, in capitals.
        moments: names under which the momentum and the second moment are kept; empty for rules without.
        n_settings: number of the rule's settings, which are the first of ``numbers``.
        kind: the class.
        numbers: of a group.
        restarts: whether weights begin anew with the output that they lead to, or with their input.

    Raises:
        NotWritten: a function holds what cannot be compiled.
    """
    m, v = (f"{name}[i]" if name else "zero" for name in moments)
    keeps = (*(name for name in moments if name), *kind.keeps)
    text = _Text(keeps, numbers, ())
    number, correction, constants = getattr(kernels, rule), None, "constants"
    if restarts and number in kernels.CORRECTIONS:
        correction = kernels.CORRECTIONS[number]
        parts = ("correction" if i == correction else f"constants[{i}]" for i in range(kernels.N_CONSTANTS))
        constants = f"({', '.join(parts)})"
    body = ["before = w[i]", f"gradient = {'g[i]' if kind.adjusted is None else text.call(kind.adjusted)}"]
    body += [f"direction, {m}, {v} = k.{rule.lower()}_direction(gradient, {m}, {v}, {constants})"]
    body += ["w[i] = before * keep - rate * direction"]
    if kind.after is not None:
        cells = ", ".join(f"{name}[i]" for name in ("w", *kind.keeps))
        body += [f"{cells} = {text.call(kind.after)}"]
    lr, settings = f"numbers[group, {numbers.index('lr')}]", f"k.{rule}, numbers[group, :{n_settings}]"
    others = {
        "keep": f"number(1 - {lr} * numbers[group, {numbers.index('weight_decay')}])",
        "zero": "number(0)",
        "constants": "constants",
    }
    if correction is None:
        others["rate"] = f"number({lr} / k.rule_constants({settings}, steps[p], constants))"
        update = text.for_each_parameter(body, others)
    else:
        rows, columns, address = (f"places[p, {place}]" for place in (N_ROWS, N_COLUMNS, RESTARTS))
        restarted = f"carray(k.pointer_to({address}), {rows} + {columns}, np.float64)"
        since = f"k.constants_since({settings}, {correction}, steps[p], {restarted}, {lr}, constants)"
        update = text.for_each_parameter(
            body, {**others, "n_rows": rows, "n_columns": columns, "since": since}, SINCE_RESTARTS
        )
    if kind.plan is not None:
        update += text.for_each_group(kind.plan, kind.plans)
    return Pass(text.whole(text.reporting(Elementwise.step_size), update), keeps, numbers, kind.plans, 0)


class _Text:
    """The functions of a pass, written one after the other.

    Args:
        keeps: names of what is kept for each weight.
        numbers: names of the numbers of a group.
        measured: names of what is measured in each group.
    """

    def __init__(self, keeps: Sequence[str], numbers: Sequence[str], measured: Sequence[str]) -> None:
        self.arrays = ("w", "g", *keeps)
        self.where_numbers_are = {
            **{name: f"numbers[group, {i}]" for i, name in enumerate(numbers)},
            **{name: f"measured[group, {i}]" for i, name in enumerate(measured)},
            "step": "steps[p]",
            "loss": "loss",
        }
        if "seed" in numbers:
            seed = self.where_numbers_are["seed"]
            self.where_numbers_are["noise_stream"] = f"noise.stream({seed}, steps[p], places[p, {NUMBER}])"
        self.n_numbers, self.n_measured = len(numbers), max(len(measured), 1)
        self.functions: list[str] = []
        self._numbers = itertools.count()
        self.used: dict[
            str, str
        ] = {}  # where numbers are that functions of a weight have asked for since the last loop

    def whole(self, report: Sequence[str], update: Sequence[str]) -> str:
        """Give the text: all functions, and what calls them."""
        run = RUN.format(
            n_places=len(self.arrays) + WEIGHTS,
            n_numbers=self.n_numbers,
            n_measured=self.n_measured,
            report=textwrap.indent("\n".join(report), " " * 8),
            update=textwrap.indent("\n".join(update), " " * 4),
        )
        return "\n\n".join([*self.functions, run])

    def write(self, function: Function, of_a_weight: Sequence[bool]) -> tuple[str, list[bool]]:
        """Write a function, given which arguments belong to a weight; returns its name, and which results do."""
        name = f"{function.__name__}_{next(self._numbers)}"
        writer = _Writer(self, function, of_a_weight)
        self.functions.append(f"@compiled\n{writer.text(name)}")
        return name, writer.results

    def call(self, function: Function, double: bool = False) -> str:
        """Write a function; returns its call, in a loop over the weights of a parameter or over groups.

        Args:
            double: compute in double precision, whatever the type of weights.
        """
        names = arguments_of(function)
        of_a_weight = [name in (*self.arrays, "before", "noise") for name in names]
        name, _ = self.write(function, [its and not double for its in of_a_weight])
        if not any(of_a_weight):
            return f"{name}({', '.join(self._place_of(argument, function) for argument in names)})"
        cell = "float({}[i])" if double else "{}[i]"
        cells = {"noise": "noise.normal(i, noise_stream, number(0))"} | {a: cell.format(a) for a in self.arrays}
        given = [cells.get(argument, argument) for argument in names]
        numbers = [argument for argument, its in zip(names, of_a_weight, strict=True) if not its]
        numbers += ["noise_stream"] if "noise" in names else []
        self.used |= {argument: self._place_of(argument, function) for argument in numbers}
        return f"{name}({', '.join(given)})"

    def for_each_group(self, function: Function, results: Sequence[str], all_groups: bool = True) -> list[str]:
        """Write a loop over groups, or over those that learn, that sets numbers of theirs."""
        places = ", ".join(self._place_of(name, function) for name in results)
        body = f"{places} = {self.call(function)}"
        return ["for group in range(n_groups):", f"    {body if all_groups else f'if learns(places, group): {body}'}"]

    def reporting(self, step_size: Function) -> list[str]:
        """Write a loop over groups that reports their step sizes."""
        return ["for group in range(n_groups):", f"    blocks[group, 0] = {self.call(step_size)}"]

    def _place_of(self, name: str, function: Function) -> str:
        if name not in self.where_numbers_are:
            raise NotWritten(f"{function.__qualname__} asks for '{name}', which is no number of its groups")
        return self.where_numbers_are[name]

    def for_each_parameter(
        self, body: Sequence[str], others: Mapping[str, str] | None = None, loop: str = EACH_WEIGHT
    ) -> list[str]:
        """Write a loop over weights with this body; returns the loop over parameters that calls it."""
        *before, indent = loop.strip().removesuffix("...").split("\n")
        return self._each([*before, *(indent + line for line in body)], others or {})

    def _each(self, lines: Sequence[str], others: Mapping[str, str], after: Sequence[str] = ()) -> list[str]:
        name = f"loop_{len(self.functions)}"
        places, self.used = self.used, {}
        given = [*others, *places]
        body = textwrap.indent("\n".join(["k.arrays_do_not_overlap()", *lines]), " " * 4)
        self.functions.append(f"@compiled\ndef {name}({', '.join(('n', *self.arrays, *given))}):\n{body}")
        arrays = [
            f"    {array} = carray(k.pointer_to(places[p, {column + WEIGHTS}]), n, number)"
            for column, array in enumerate(self.arrays)
        ]
        call = f"    {name}({', '.join(('n', *self.arrays, *others.values(), *places.values()))})"
        return [
            *("for p in range(n_parameters):", "    n, group = places[p, 0], places[p, 1]", *arrays, call),
            *(f"    {line}" for line in after),
        ]

    def measuring(self, measure: Function, measures: Mapping[str, str], over_all_groups: bool) -> list[str]:
        """Write what is measured, in as many partial results as a piece has weights."""
        which = range(len(measures))
        starts = ["-np.inf" if how == "max" else "0.0" for how in measures.values()]
        results = ", ".join(f"x{i}" for i in which)
        lines = [
            *(f"partial_{i}[:] = {starts[i]}" for i in which),
            "for first in range(0, n, k.PIECE):",
            "    for place in range(min(k.PIECE, n - first)):",
            "        i = np.uintp(first + place)",
            f"        {results} = {self.call(measure)}",
        ]
        ends, alike = [], []
        for i, how in enumerate(measures.values()):
            part, total = f"partial_{i}[place]", f"measured[group, {i}]"
            if how == "max":
                lines.append(f"        {part} = maximum(x{i}, {part})")
                ends.append(f"{total} = max({total}, largest(partial[{i}]))")
            else:
                lines.append(f"        {part} += x{i}")
                ends.append(f"{total} += k.sum_of(partial[{i}])")
            alike.append(f"measured[:, {i}] = measured[:, {i}].{how}()")
        rooms = {f"partial_{i}": f"partial[{i}]" for i in which}
        begin = [f"measured[:, {i}] = {start}" for i, start in enumerate(starts)]
        return [*begin, *self._each(lines, rooms, ends), *(alike if over_all_groups else ())]

    def averaging(self, log_step_size: Function) -> list[str]:
        """Write the geometric mean of the step sizes of a group's weights."""
        lines = [
            "for i in range(n):",
            f"    x = float({self.call(log_step_size, double=True)})",
            "    if np.isfinite(x):",
            "        total[0] += x",
            "        total[1] += 1.0",
        ]
        return [
            "totals = np.zeros((n_groups, 2))",
            *self._each(lines, {"total": "totals[group]"}),
            "for group in range(n_groups):",
            "    if totals[group, 1] > 0:",
            "        blocks[group, 0] = np.exp(totals[group, 0] / totals[group, 1])",
        ]


class _Writer(ast.NodeTransformer):
    """Writes a function anew: settings are rounded where they meet a weight, and constants are put in.

    Attributes:
        results: whether each of the results belongs to a weight.
    """

    def __init__(self, text: _Text, function: Function, of_a_weight: Sequence[bool]) -> None:
        self._text, self._function = text, function
        self._names = inspect.getclosurevars(function)
        self._kinds = dict(zip(arguments_of(function), of_a_weight, strict=True))
        self.results: list[bool] = []

    def text(self, name: str) -> str:
        """Give the text of the function under a name."""
        try:
            source = textwrap.dedent(inspect.getsource(self._function))
        except (OSError, TypeError) as error:
            raise NotWritten(f"the text of {self._function.__qualname__} cannot be found") from error
        definition = ast.parse(source).body[0]
        if not isinstance(definition, ast.FunctionDef):
            raise self._refused(definition)
        body = [self._statement(line) for line in definition.body if not _is_docstring(line)]
        made = ast.parse(f"def {name}({', '.join(arguments_of(self._function))}): pass").body[0]
        made.body = body  # type: ignore[attr-defined]
        return ast.unparse(ast.fix_missing_locations(made))

    def _refused(self, node: ast.AST) -> NotWritten:
        return NotWritten(f"{self._function.__qualname__} holds '{ast.unparse(node)}', which has no compiled form")

    def _statement(self, node: ast.stmt) -> ast.stmt:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            value, kinds = self._values(node.value)
            target = node.targets[0]
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            if len(names) != len(kinds) or not all(isinstance(name, ast.Name) for name in names):
                raise self._refused(node)
            for name, kind in zip(names, kinds, strict=True):
                self._kinds[name.id] = kind  # type: ignore[attr-defined]
            return ast.Assign([target], value)
        if isinstance(node, ast.If):
            test, of_a_weight = self._value(node.test)
            if of_a_weight:
                raise NotWritten(f"{self._function.__qualname__} has an 'if' about a weight; use where()")
            return ast.If(test, [*map(self._statement, node.body)], [*map(self._statement, node.orelse)])
        if isinstance(node, ast.Return) and node.value is not None:
            value, self.results = self._values(node.value)
            return ast.Return(value)
        raise self._refused(node)

    def _values(self, node: ast.expr) -> tuple[ast.expr, list[bool]]:
        """An expression of one or several values, and which of them belong to a weight."""
        if isinstance(node, ast.Tuple):
            parts = [self._value(part) for part in node.elts]
            return ast.Tuple([part for part, _ in parts], ast.Load()), [kind for _, kind in parts]
        if isinstance(node, ast.Call) and (called := self._known(node.func)) is not None and _is_written(called):
            parts = [self._value(part) for part in node.args]
            if node.keywords or len(parts) != len(arguments_of(called)):
                raise self._refused(node)
            name, kinds = self._text.write(called, [kind for _, kind in parts])
            return ast.Call(ast.Name(name, ast.Load()), [part for part, _ in parts], []), kinds
        value, kind = self._value(node)
        return value, [kind]

    def _value(self, node: ast.expr) -> tuple[ast.expr, bool]:
        """An expression of one value, and whether it belongs to a weight."""
        if isinstance(node, ast.Constant):
            return node, False
        if isinstance(node, ast.Name) and node.id in self._kinds:
            return node, self._kinds[node.id]
        if isinstance(node, ast.UnaryOp):
            operand, kind = self._value(node.operand)
            return ast.UnaryOp(node.op, operand), kind
        if isinstance(node, ast.BinOp):
            (left, right), kind = self._alike([node.left, node.right], keep=isinstance(node.op, ast.Pow))
            return ast.BinOp(left, node.op, right), kind
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            (left, right), kind = self._alike([node.left, node.comparators[0]])
            return ast.Compare(left, node.ops, [right]), kind
        if isinstance(node, ast.BoolOp | ast.IfExp):
            parts = node.values if isinstance(node, ast.BoolOp) else [node.test, node.body, node.orelse]
            values = [self._value(part) for part in parts]
            if not any(kind for _, kind in values):
                made = [value for value, _ in values]
                return (ast.BoolOp(node.op, made) if isinstance(node, ast.BoolOp) else ast.IfExp(*made)), False
        if isinstance(node, ast.Call) and not node.keywords:
            return self._called(node)
        constant = self._known(node)
        if isinstance(constant, int | float):
            return ast.Constant(constant) if math.isfinite(constant) else _infinite(constant), False
        raise self._refused(node)

    def _called(self, node: ast.Call) -> tuple[ast.expr, bool]:
        called = self._known(node.func)
        if called in OPERATIONS or called in BUILT_IN or called in MATHEMATICS:
            choice = OPERATIONS.get(called) == "where"
            first = [self._value(node.args[0])] if choice else []
            values, kind = self._alike(node.args[len(first) :])
            kind = kind or any(kind for _, kind in first)
            if called in MATHEMATICS and kind:
                raise self._refused(node)
            name = OPERATIONS.get(called) or BUILT_IN.get(called) or MATHEMATICS[called]
            if not kind and name in ("exp", "log", "sqrt"):
                name = f"math.{name}"
            return ast.Call(ast.parse(name, mode="eval").body, [*(value for value, _ in first), *values], []), kind
        if _is_written(called):
            value, kinds = self._values(node)
            if len(kinds) == 1:
                return value, kinds[0]
        raise self._refused(node)

    def _alike(self, nodes: Sequence[ast.expr], keep: bool = False) -> tuple[list[ast.expr], bool]:
        """Expressions that meet: if one belongs to a weight, others are rounded to its type."""
        values = [self._value(node) for node in nodes]
        kind = any(of_a_weight for _, of_a_weight in values)
        if not kind or (keep and isinstance(values[-1][0], ast.Constant)):
            return [value for value, _ in values], kind
        return [value if its else ast.Call(ast.Name("number", ast.Load()), [value], []) for value, its in values], True

    def _known(self, node: ast.expr) -> Any:
        """What a name or an attribute outside of the function is; None if that is not known."""
        if isinstance(node, ast.Name):
            for names in (self._names.nonlocals, self._names.globals, self._names.builtins):
                if node.id in names:
                    return names[node.id]
        if isinstance(node, ast.Attribute):
            return getattr(self._known(node.value), node.attr, None)
        return None


def _infinite(value: float) -> ast.expr:
    return ast.parse("np.inf" if value > 0 else "-np.inf", mode="eval").body


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_written(called: Any) -> bool:
    return inspect.isfunction(called) and called not in OPERATIONS
