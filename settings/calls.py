"""This file reads and writes what is typed for an entry of a registry: `name`, `name(option=value, ...)`, or several of them."""

import ast
import re

from settings.own_files import own_file


def parse_call(text: str) -> tuple[str, dict]:
    """The name and the options of a text such as `name` or `name(option=literal, ...)`; ValueError where it is neither.

    A network in a file of the user's, such as mynet.py:build, is a name as a whole.
    """
    if own_file(text):
        return text, {}
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    try:
        # the name is cut off before Python reads the rest: it may be a keyword, and the registry checks it
        call = ast.parse(f"f({match[2] or ''})", mode="eval").body
        names = [keyword.arg for keyword in call.keywords]
        if not isinstance(call.func, ast.Name) or call.args or None in names or len({*names}) < len(names):
            raise ValueError
        return match[1], {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AttributeError, TypeError, RecursionError, MemoryError):
        wanted = (
            "mynet.py:build for a function in a file" if ".py" in text else "name or name(option=value, ...) with plain values"
        )
        raise ValueError(f"cannot read '{text}': write {wanted}") from None


def call_text(name: str, options: dict) -> str:
    """The text of which `parse_call` reads this name and these options."""
    return f"{name}({', '.join(f'{option}={value!r}' for option, value in options.items())})"


def listed(text: str) -> list[str]:
    """The single choices in a text such as `one, other(option=1)`, in their order; ValueError where it is none.

    A network in a file of the user's, such as mynet.py:build, stands alone.
    """
    if own_file(text):
        return [text]
    try:
        parts = [ast.unparse(part) for part in ast.parse(f"({text},)", mode="eval").body.elts]
    except (SyntaxError, ValueError, AttributeError, RecursionError, MemoryError):
        raise ValueError(f"cannot read '{text}': write name or name(option=value, ...), several with commas between") from None
    for part in parts:
        parse_call(part)
    return parts


def parts_of(text: str) -> list[str]:
    """The single choices in a text such as `one + other(option=1)`, in their order; ValueError where it is none."""
    try:
        node, parts = ast.parse(text.strip(), mode="eval").body, []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            parts.insert(0, ast.unparse(node.right))
            node = node.left
        return [ast.unparse(node), *parts]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"cannot read '{text}': write name or name(option=value, ...), several joined by +") from None
