"""Small changes to a program, each of which a test should notice: what `mutation_score.py` draws from.

A mutant swaps a comparison, an operation, `and` and `or`, `break` and `continue`, takes a `not` or a minus away,
changes a constant, returns or assigns None, or leaves a statement out. Annotations, docstrings, sentences for people
and what a `raise` says stay as they are; so do imports, and what is in an f-string.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_COMPUTED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Div,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitAnd,
}
_TOLD = {"debug", "info", "warning", "error", "warn", "cast", "TypeVar"}  # calls whose texts are for people
_NOTHING = "pass"


@dataclass(frozen=True)
class Mutant:
    """One change of a file.

    Attributes:
        lines: of the file that it is about: who runs none of them does not notice it.
        source: of the whole file after it.
    """

    operator: str
    line: int
    before: str
    after: str
    lines: tuple[int, int]
    source: str


def mutants_of(source: str) -> list[Mutant]:
    """All mutants of a program, in the order of its text; each compiles, and no two are equal."""
    found: dict[str, Mutant] = {}
    offsets, content = _offsets(source), source.encode()
    for change in _Changes().of(ast.parse(source)):
        start, end = (offsets[line - 1] + column for line, column in _span(change.node))
        after = content[:start] + change.text.encode() + content[end:]
        before = content[start:end].decode()
        mutant = Mutant(change.operator, change.node.lineno, before, change.text, change.lines, after.decode())
        if before != change.text and mutant.source not in found and _compiles(mutant.source):
            found[mutant.source] = mutant
    return sorted(found.values(), key=lambda each: (each.line, each.operator))


@dataclass(frozen=True)
class _Change:
    node: ast.expr | ast.stmt
    text: str
    operator: str
    lines: tuple[int, int]


class _Changes:
    """Walks a program, and knows which lines it is in."""

    def __init__(self):
        self._function: tuple[int, int] = (0, 0)  # lines of the innermost body; (0, 0) outside

    def of(self, node: ast.AST) -> Iterator[_Change]:
        match node:
            case ast.JoinedStr() | ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
                return
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                return
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from self._of_function(node)
                return
            case ast.Raise():
                yield self._change(node, _NOTHING, "statement removed")
                return
            case ast.Assign(targets=[ast.Name(id="__all__")]) | ast.Assign(value=ast.Subscript(value=ast.Name())):
                if not self._function[0]:  # names that are handed on, and of types
                    return
        yield from self._here(node)
        for child in self._parts(node):
            yield from self.of(child)

    def _of_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[_Change]:
        outside, self._function = self._function, (node.body[0].lineno, node.end_lineno or node.lineno)
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            yield from (_Change(each.node, each.text, "default", self._function) for each in self.of(default))
        for statement in node.body:
            yield from self.of(statement)
        self._function = outside

    def _parts(self, node: ast.AST) -> Iterator[ast.AST]:
        """What is in it, without annotations and texts for people."""
        told = isinstance(node, ast.Call) and _name(node.func) in _TOLD
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list") or (told and name in ("args", "keywords")):
                continue
            yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, ast.AST))

    def _here(self, node: ast.AST) -> Iterator[_Change]:
        match node:
            case ast.expr():
                yield from (self._change(node, f"({text})", operator) for text, operator in _of_expression(node))
            case ast.stmt():
                yield from (self._change(node, text, operator) for text, operator in _of_statement(node))

    def _change(self, node: ast.expr | ast.stmt, text: str, operator: str) -> _Change:
        inside = self._function[0] > 0
        return _Change(node, text, operator, (node.lineno, node.end_lineno or node.lineno) if inside else (0, 0))


def _of_expression(node: ast.expr) -> Iterator[tuple[str, str]]:
    match node:
        case ast.Compare(left, operators, others):
            for at, operator in enumerate(operators):
                swapped = [*operators[:at], _COMPARED[type(operator)](), *operators[at + 1 :]]
                yield ast.unparse(ast.Compare(left, swapped, others)), "comparison"
        case ast.BinOp(left, operator, right) if type(operator) in _COMPUTED:
            yield ast.unparse(ast.BinOp(left, _COMPUTED[type(operator)](), right)), "arithmetic"
        case ast.BoolOp(operator, values):
            yield ast.unparse(ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)), "boolean"
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert(), operand):
            yield ast.unparse(operand), "not" if isinstance(node.op, ast.Not) else "sign"
        case ast.Constant(value):
            yield from _of_constant(value)
        case ast.Lambda(arguments, body) if not _is_none(body):
            yield ast.unparse(ast.Lambda(arguments, ast.Constant(None))), "return"


def _of_constant(value: object) -> Iterator[tuple[str, str]]:
    match value:
        case bool():
            yield repr(not value), "constant"
        case int() | float():
            yield repr(value + 1), "constant"
        case str() if value and not any(each.isspace() for each in value):
            yield repr(f"XX{value}XX"), "constant"


def _of_statement(node: ast.stmt) -> Iterator[tuple[str, str]]:
    match node:
        case ast.Return(value) if value is not None and not _is_none(value):
            yield "return None", "return"
        case ast.Assign(targets, value) if not _is_none(value):
            yield ast.unparse(ast.Assign(targets, ast.Constant(None), lineno=0)), "assigned"
        case ast.AugAssign(target, operator, value):
            if type(operator) in _COMPUTED:
                yield ast.unparse(ast.AugAssign(target, _COMPUTED[type(operator)](), value)), "arithmetic"
            yield ast.unparse(ast.Assign([target], value, lineno=0)), "assigned"
        case ast.Expr(ast.Call()):
            yield _NOTHING, "statement removed"
        case ast.Break():
            yield "continue", "break"
        case ast.Continue():
            yield "break", "break"


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _span(node: ast.expr | ast.stmt) -> tuple[tuple[int, int], tuple[int, int]]:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def _offsets(source: str) -> list[int]:
    """Of each line's first byte."""
    found = [0]
    for line in source.encode().splitlines(keepends=True):
        found.append(found[-1] + len(line))
    return found


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True
