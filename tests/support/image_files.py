"""Image files, right ones and such as claim to be larger than they are."""

import io
import struct
import zlib

from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def claimed_png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + _header(width, height, 8, 2) + _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")


def one_row_png(width: int, depth: int, kind: int, row: bytes, transparent: bytes) -> bytes:
    """A PNG of one row with a transparent colour, in depths that Pillow does not write.

    Args:
        width: pixels.
        depth: bits of a value.
        kind: colour type of the format: 0 is grey, 2 RGB.
        row: its pixels.
        transparent: the colour, 16 bits a value.
    """
    parts = (_chunk(b"tRNS", transparent), _chunk(b"IDAT", zlib.compress(b"\0" + row)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + _header(width, 1, depth, kind) + b"".join(parts)


def _header(width: int, height: int, depth: int, kind: int) -> bytes:
    return _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
