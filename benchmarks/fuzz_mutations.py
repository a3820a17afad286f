"""This file damages files: it makes one change at random to the content of a JSON or torch file that the program wrote."""

import io
import json
import math
import pickle
import random
import zipfile
from dataclasses import dataclass
from pathlib import PurePath

import torch
from torch import Tensor


@dataclass
class Mutation:
    """A changed file: its bytes, and what was done.

    `foreign` says that no program would write it: a type that does not belong there, a missing part, a number that is none.
    A file whose change is not foreign, as another text for a text, is another file, and may be taken as that.
    """

    content: bytes
    words: str
    foreign: bool


def nested(depth: int):
    """Lists in lists."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


VALUES = {
    "null": None,
    "true": True,
    "a text": "x",
    "an escape": "a\n\x1b[31mb",
    "a null byte": "a\0b",
    "-1": -1,
    "1.5": 1.5,
    "2**70": 2**70,
    "1e300": 1e300,
    "NaN": math.nan,
    "infinity": math.inf,
    "an empty list": [],
    "an empty table": {},
    "a list of a number": [1],
    "a table of null": {"settings": None},
    "nested lists": nested(200),
}
TENSORS = {
    "as float64": lambda t: t.double() if t.dtype != torch.float64 else t.half(),
    "as int32": lambda t: t.to(torch.int32),
    "of another shape": lambda t: t.unsqueeze(0),
    "without values": lambda t: t.flatten()[:0],
    "of NaN": lambda t: torch.full_like(t.float(), math.nan),
    "with an infinity": lambda t: torch.cat([t.float().flatten(), torch.tensor([math.inf])])[1:].reshape(t.shape),
    "of 10^8 values in one": lambda t: t.flatten()[:1].expand(10**8) if t.numel() else torch.zeros(1).expand(10**8),
    "sparse": lambda t: t.to_sparse() if t.dim() else t.unsqueeze(0).to_sparse(),
    "a text": lambda t: "x",
    "a number": lambda t: 1,
    "null": lambda t: None,
}


def mutate(content: bytes, kind: str, chance: random.Random) -> Mutation:
    """Change a file of the kind "json", "jsonl" or "torch" in one place, or cut it, or flip one of its bits."""
    way = chance.random()
    if way < 0.1:
        cut = chance.randrange(len(content))
        return Mutation(content[:cut], f"cut after {cut} bytes", True)
    if way < 0.2:
        place, bit = chance.randrange(len(content)), chance.randrange(8)
        flipped = content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
        return Mutation(flipped, f"bit {bit} of byte {place} flipped", kind == "torch")  # in a text it may be another letter
    if kind == "torch":
        return _strange(content, chance) if way < 0.27 else _tree(torch.load(io.BytesIO(content)), _packed, chance)
    if kind == "json":
        return _tree(json.loads(content), lambda tree: json.dumps(tree).encode(), chance)
    rows = [json.loads(line) for line in content.splitlines()]
    return _tree(rows, lambda tree: "".join(json.dumps(row) + "\n" for row in tree).encode(), chance)


def _packed(tree) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return buffer.getvalue()


def _strange(content: bytes, chance: random.Random) -> Mutation:
    """A torch file that somebody else made, or that asks for more than is in it."""
    ring: list = []
    ring += [ring, ring]
    doubled: list = [1]
    for _ in range(20):
        doubled = [doubled] * 10
    own = torch.load(io.BytesIO(content))
    made = {
        "a pickle": lambda: pickle.dumps({"format": 1}),
        "a class": lambda: _packed({"format": 1, "model": PurePath("x")}),
        "a list": lambda: _packed([1, 2]),
        "a list in itself": lambda: _packed(own | {"results": ring, "training": ring}),
        "lists that stand in many places": lambda: _packed(own | {"results": doubled, "training": doubled}),
        "compressed": lambda: _compressed(content),
        "empty": lambda: b"",
    }
    words = chance.choice(list(made))
    return Mutation(made[words](), words, True)


def _compressed(content: bytes) -> bytes:
    """The archive with its entries compressed, and one of zeros behind them, which a thousandth of its size holds."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.writestr("archive/data/9999", bytes(10**7))
    return buffer.getvalue()


def _tree(tree, packed, chance: random.Random) -> Mutation:
    """Walk down at random, and change what is met there; the containers on the way are copied, and nothing else."""
    path, value = [], tree
    while isinstance(value, dict | list | tuple) and value and (not path or chance.random() < 0.75):
        path.append(chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value)))
        value = value[path[-1]]
    where = ".".join(map(str, path))
    if chance.random() < 0.2:
        return Mutation(packed(_replaced(tree, path, None, drop=True)), f"{where} dropped", True)
    if isinstance(value, Tensor):
        words = chance.choice(list(TENSORS))
        return Mutation(packed(_replaced(tree, path, TENSORS[words](value))), f"{where} {words}", True)
    if isinstance(value, list) and value and chance.random() < 0.5:
        words, changed = chance.choice([("with its last item twice", [*value, value[-1]]), ("reversed", value[::-1])])
        return Mutation(packed(_replaced(tree, path, changed)), f"{where} {words}", False)
    words = chance.choice(list(VALUES))
    new = VALUES[words]
    foreign = _type(new) != _type(value) or new in ("a\0b", 2**70) or (isinstance(new, float) and not math.isfinite(new))
    return Mutation(packed(_replaced(tree, path, new)), f"{where} is {words}", foreign and value is not None)


def _type(value) -> type:
    return float if type(value) is int else list if type(value) is tuple else type(value)


def _replaced(tree, path: list, value, drop: bool = False):
    """The tree with another value at the path, or without it."""
    if not path:
        return value
    copied = dict(tree) if isinstance(tree, dict) else list(tree)
    if drop and len(path) == 1:
        del copied[path[0]]
    else:
        copied[path[0]] = _replaced(tree[path[0]], path[1:], value, drop)
    return tuple(copied) if isinstance(tree, tuple) else copied
