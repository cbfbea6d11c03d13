"""tool.called.calculate → tool.returned: the value of numbers with + - * / and brackets, and of nothing else."""

import ast
import operator

from serve import serve

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value(node):
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](value(left), value(right))
    raise ValueError(f"this is not arithmetic: {ast.unparse(node)}")


def calculate(_, data):
    result = value(ast.parse(data["arguments"]["argument"][:1000], mode="eval").body)
    return "tool.returned", {**data, "result": result}


serve(calculate)
