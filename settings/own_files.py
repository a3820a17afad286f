"""This file reads what names a network in a file of the user's, such as mynet.py:build, without executing that file."""

import ast
import importlib
import re
from functools import partial
from pathlib import Path

from settings.errors import Refused
from settings.files import read_whole
from settings.signatures import Entry, Option, suggest

MOST = 1 << 24  # bytes of a Python file


def own_file(text: str | None) -> tuple[Path, str] | None:
    """The file and the name in it that a text such as mynet.py:build says; None for any other text."""
    match = re.fullmatch(r"(.+\.py):([^\W\d]\w*)", text or "", re.DOTALL)
    return match and (Path(match[1]), match[2])


class WithOwnFiles:
    """What a registry has to be besides, so that mynet.py:build is one of its names: a function in a file of the user's."""

    def check(self, text: str) -> tuple[str, dict]:
        """The name and the options of a choice; a network of the user's has none. ValueError as the registry's own."""
        return (text, {}) if own_file(text) else super().check(text)

    def entry(self, text: str) -> Entry:
        """The entry of a name; that of a file's function makes a network of it for what the data are like."""
        if not own_file(text):
            return super().entry(text)
        options = {"classes": Option(10), "channels": Option(3), "size": Option(32)}
        return Entry(text, "models.adoption", "from_file", "a network in a file of your own", self.kind, options)

    def get(self, text: str, **options):
        """The function that makes the network, with its options bound; the user's file is executed when that is called."""
        if not own_file(text):
            return super().get(text, **options)
        entry = self.entry(text)
        return partial(getattr(importlib.import_module(entry.module), entry.function), text, **options)


def check_own_file(text: str) -> None:
    """Raise Refused unless the file is there, is Python, and has a function or a class of that name at its top."""
    path, name = own_file(text)
    content = read_whole(path, "Python file", MOST)
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise Refused(f"'{path}' is no Python{where}: {getattr(error, 'msg', error)}") from None
    names = _names_at_the_top(tree)
    if name not in names and "*" not in names:
        legal = suggest(name, names) if names else "it defines nothing"
        raise Refused(f"'{path}' has no function '{name}': {legal}")


def _names_at_the_top(tree: ast.Module) -> set[str]:
    """The names that a file defines, or imports, outside of its functions and classes."""
    names, waiting = set(), [*tree.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        else:
            names |= {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
            waiting += ast.iter_child_nodes(node)
    return names
