"""What the first bytes of a packet say about its picture: whether decoding may begin there, whether others refer to it.

Nothing is decoded. H.264 (ITU-T H.264, 7.3.1), HEVC (H.265, 7.3.1.2), MPEG-4 Visual (ISO/IEC 14496-2, 6.2.5), VP8 (RFC 6386,
9.1), VP9 and AV1 (their bitstream specifications, uncompressed header). Container flags alone would not do: a file
without a table of key frames calls every packet one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

INTRA_CODECS = ("mjpeg", "prores")  # every picture stands alone
HEVC_SETS, HEVC_RASL, HEVC_IRAP = (32, 33, 34), (8, 9), range(16, 22)
H264_SETS, H264_IDR, H264_SLICES = (7, 8), 5, range(1, 6)


class CodedPicture(NamedTuple):
    """What a packet holds.

    Attributes:
        restart: what comes behind refers to nothing before it, but for leading pictures.
        unused: no other picture of its temporal layer refers to it; so it may be left out of the stream's highest layer.
        layer: temporal layer, from 0.
        leading: it is shown before the restart behind which it is stored, and refers to the group before (HEVC's RASL).
        refers_back: the same where times must tell: so if it is shown before the last restart (MPEG-4's B-VOP).
        parameters: parameter sets beside it.
    """

    restart: bool = False
    unused: bool = False
    layer: int = 0
    leading: bool = False
    refers_back: bool = False
    parameters: tuple[bytes, ...] = ()


Look = Callable[[memoryview], CodedPicture]


def reader(codec: str, extradata: bytes | None) -> Look | None:
    """What looks into the packets of a stream; None for codecs whose groups of pictures are not known here."""
    if codec in ("h264", "hevc"):
        split = _splitter(codec, extradata)
        return (lambda data: _h264(split(data))) if codec == "h264" else (lambda data: _hevc(split(data)))
    if codec in INTRA_CODECS:
        return lambda _: CodedPicture(restart=True)
    return {"mpeg4": _mpeg4, "vp8": _vp8, "vp9": _vp9, "av1": _av1}.get(codec)


# --------------------------------------------------------------------------------------------------- H.264 and HEVC


def _h264(units: Iterator[memoryview]) -> CodedPicture:
    sets = []
    for unit in units:
        kind = unit[0] & 31
        if kind in H264_SETS:
            sets.append(bytes(unit))
        if kind in H264_SLICES:
            # of two fields the second may be referred to
            unused = unit[0] >> 5 == 0 and all(other[0] >> 5 == 0 for other in units if other[0] & 31 in H264_SLICES)
            return CodedPicture(restart=kind == H264_IDR, unused=unused, parameters=tuple(sets))
    return CodedPicture(parameters=tuple(sets))


def _hevc(units: Iterator[memoryview]) -> CodedPicture:
    sets = []
    for unit in units:
        kind = unit[0] >> 1 & 63
        if kind in HEVC_SETS:
            sets.append(bytes(unit))
        if kind < 32 and len(unit) > 1:
            return CodedPicture(
                restart=kind in HEVC_IRAP,
                unused=kind < 15 and kind % 2 == 0,  # the sub-layer non-reference pictures
                layer=(unit[1] & 7) - 1,
                leading=kind in HEVC_RASL,
                parameters=tuple(sets),
            )
    return CodedPicture(parameters=tuple(sets))


def _splitter(codec: str, extradata: bytes | None) -> Callable[[memoryview], Iterator[memoryview]]:
    """NAL units by their lengths where a configuration record tells how wide these are (ISO/IEC 14496-15: avcC byte 4,
    hvcC byte 21), by start codes elsewhere."""
    where = 4 if codec == "h264" else 21
    if extradata and len(extradata) > where and extradata[0] == 1:
        width = (extradata[where] & 3) + 1
        return lambda data: _by_length(data, width)
    return _by_start_code


def _by_length(data: memoryview, width: int) -> Iterator[memoryview]:
    at = 0
    while at + width < len(data):
        length = int.from_bytes(data[at : at + width], "big")
        at += width
        if length == 0 or at + length > len(data):
            return
        yield data[at : at + length]
        at += length


def _by_start_code(data: memoryview) -> Iterator[memoryview]:
    text = bytes(data)
    at = text.find(b"\0\0\1")
    while at >= 0 and at + 3 < len(text):
        end = text.find(b"\0\0\1", at + 3)
        unit = text[at + 3 : end if end >= 0 else len(text)].rstrip(b"\0")
        if unit:
            yield memoryview(unit)
        at = end


# ----------------------------------------------------------------------------------------------------------- others


def _mpeg4(data: memoryview) -> CodedPicture:
    """Volume and layer headers are its parameters. A packet with two pictures (DivX in AVI) is none that is known."""
    text = bytes(data)
    at = text.find(b"\0\0\1\xb6")
    if at < 0 or at + 4 >= len(text) or text.find(b"\0\0\1\xb6", at + 4) >= 0:
        return CodedPicture()
    kind = text[at + 4] >> 6
    layers = [i for i in range(0x20, 0x30) if bytes((0, 0, 1, i)) in text[:at]]
    sets = tuple(text[text.find(bytes((0, 0, 1, i))) : at].split(b"\0\0\1\xb3")[0] for i in layers)
    return CodedPicture(restart=kind == 0, unused=kind == 2, refers_back=kind == 2, parameters=sets)


def _vp8(data: memoryview) -> CodedPicture:
    return CodedPicture(restart=len(data) > 0 and data[0] & 1 == 0)


def _vp9(data: memoryview) -> CodedPicture:
    """The first frame of a superframe speaks for it: a key frame replaces every reference."""
    if not len(data):
        return CodedPicture()
    bits = f"{data[0]:08b}"
    show_existing, inter = bits[5:7] if bits[2:4] == "11" else bits[4:6]  # a reserved bit comes first in profile 3
    return CodedPicture(restart=bits[:2] == "10" and show_existing == "0" and inter == "0")


def _av1(data: memoryview) -> CodedPicture:
    """A restart is a shown key frame behind a sequence header."""
    at, sequence = 0, False
    while at < len(data):
        header = data[at]
        kind, extended, sized = header >> 3 & 15, header >> 2 & 1, header >> 1 & 1
        at += 1 + extended
        length = len(data) - at
        if sized:
            length, shift = 0, 0
            while at < len(data) and shift < 35:
                length |= (data[at] & 127) << shift
                shift, at = shift + 7, at + 1
                if data[at - 1] < 128:
                    break
        if kind == 1:
            sequence = at < len(data) and data[at] >> 3 & 1 == 0  # no reduced header, as stills have
        if kind in (3, 6):  # frame header, frame
            return CodedPicture(restart=sequence and at < len(data) and data[at] >> 4 == 0b0001)
        at += length
    return CodedPicture()
