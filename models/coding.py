"""This file codes weights in few bits and decodes them: shared values, relative positions, and Huffman codes for both.

It is the storage of Deep Compression (Han, Mao and Dally, 2016, arXiv 1510.00149). Of a weight only the entries that are
not 0 are stored, each as a number of its value in a codebook and as the distance to the entry before it.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# the parts of a coded weight, in the order in which they stand in its bytes
PARTS = ("values", "indices", "code tables", "codebook")
MOST_BITS = 8  # of a number: a code table names each by one byte


@dataclass(frozen=True)
class Coded:
    """A coded weight: its bytes, the bits of each part, and the plain numbers that `decode` needs beside the bytes."""

    content: bytes
    bits: dict[str, int]
    header: list[int]


def relative(positions: np.ndarray, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances between entries, each 1 to `largest`, and which of these are entries: both (stored,).

    `positions` are those of the entries that are not 0, ascending, counted from 0; the first distance is counted from -1.
    Where two entries are further apart, zeros are stored at the largest distance to fill the gap.
    """
    distances = np.diff(positions, prepend=-1)
    fillers = (distances - 1) // largest
    places = np.cumsum(fillers + 1) - 1
    stored = np.full(int((fillers + 1).sum()), largest, dtype=np.int64)
    stored[places] = distances - fillers * largest
    real = np.zeros(len(stored), dtype=bool)
    real[places] = True
    return stored, real


def encode(numbers: Tensor, codebook: Tensor, index_bits: int) -> Coded:
    """Code a weight whose entries are `codebook[numbers]`, where number 0 stands for 0.

    `numbers` is (...) int64, `codebook` (values,) float32 with codebook[0] = 0 and at most 256 values; distances are at
    most 2^index_bits.
    """
    flat = numbers.flatten().cpu().numpy()
    positions = np.flatnonzero(flat)
    distances, real = relative(positions, 2**index_bits)
    values = np.zeros(len(distances), dtype=np.int64)
    values[real] = flat[positions]
    value_table, value_stream, value_bits = _huffman(values)
    index_table, index_stream, index_stream_bits = _huffman(distances - 1)
    book = codebook[1:].detach().cpu().numpy().astype("<f4").tobytes()
    parts = (value_stream, index_stream, value_table + index_table, book)
    return Coded(
        content=b"".join(parts),
        bits={name: 8 * len(part) for name, part in zip(PARTS, parts, strict=True)},
        header=[len(values), value_bits, index_stream_bits, len(value_table), len(index_table), len(codebook) - 1],
    )


def decode(content: memoryview, header: list[int], shape: torch.Size) -> tuple[Tensor, int]:
    """Return the weight, of this shape, float32, and how many of the bytes in `content` it took.

    ValueError where the bytes cannot be those of such a weight.
    """
    entries, value_bits, index_bits, value_table, index_table, values = header
    if min(header) < 0 or values >= 2**MOST_BITS:
        raise ValueError("a coded weight has an impossible header")
    sizes = [_bytes(value_bits), _bytes(index_bits), value_table, index_table, 4 * values]
    ends = np.cumsum(sizes).tolist()
    if ends[-1] > len(content):
        raise ValueError("a coded weight is cut short")
    value_stream, index_stream, first, second, book = (content[end - size : end] for size, end in zip(sizes, ends, strict=True))
    numbers = _read_huffman(first, value_stream, value_bits, entries)
    positions = np.cumsum(_read_huffman(second, index_stream, index_bits, entries) + 1) - 1
    codebook = np.concatenate([np.zeros(1, dtype="<f4"), np.frombuffer(book, dtype="<f4")])
    weight = np.zeros(shape.numel(), dtype=np.float32)
    if entries and (positions[-1] >= len(weight) or numbers.max() > values or not np.isfinite(codebook).all()):
        raise ValueError("a coded weight has entries beyond its shape or its codebook")
    weight[positions] = codebook[numbers]
    return torch.from_numpy(weight).view(shape), ends[-1]


def _bytes(bits: int) -> int:
    return -(-bits // 8)


def _huffman(symbols: np.ndarray) -> tuple[bytes, bytes, int]:
    """Return a canonical Huffman code of symbols below 256 as a table, the coded symbols, and their number of bits.

    The table holds how many codes there are of each length, (lengths,) uint16 behind their number, then the symbols in
    the order of their codes. A single symbol has a code of one bit.
    """
    from bitarray import bitarray
    from bitarray.util import canonical_huffman

    if len(symbols) == 0:
        return b"\0", b"", 0
    code, counts, order = canonical_huffman(Counter(symbols.tolist()))
    stream = bitarray(endian="big")
    stream.encode(code, symbols.tolist())
    table = bytes([len(counts)]) + np.array(counts, dtype="<u2").tobytes() + bytes(order)
    return table, stream.tobytes(), len(stream)


def _read_huffman(table: memoryview, stream: memoryview, bits: int, entries: int) -> np.ndarray:
    """Return the symbols, (entries,), that `_huffman` wrote; ValueError where table and stream do not give so many."""
    from bitarray import bitarray
    from bitarray.util import canonical_decode

    lengths = table[0] if len(table) else 0
    counts = np.frombuffer(table[1 : 1 + 2 * lengths], dtype="<u2").tolist()
    coded = bitarray(endian="big")
    coded.frombytes(bytes(stream))
    del coded[bits:]
    if entries > bits or len(counts) < lengths or (entries and not counts):
        raise ValueError("a coded weight has an impossible code table")
    if not entries:
        return np.zeros(0, dtype=np.int64)
    symbols = list(canonical_decode(coded, counts, list(table[1 + 2 * lengths :])))
    if len(symbols) != entries:
        raise ValueError(f"a coded weight has {len(symbols)} entries instead of {entries}")
    return np.array(symbols, dtype=np.int64)
