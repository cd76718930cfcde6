"""Drives the decoder in tests/decoder for the fuzz targets: requests and answers are a length and bytes.

A request begins with its kind: B is a body (first position, time, number of records, the bytes), whose
records and files are the answer; D is the path of a data directory, of which it is the report and the
records. All that decides anything is in the decoder.
"""

import functools
import os
import struct
import sys
import traceback
import zlib

sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
import runwal_decode as decoder

HASH = functools.lru_cache(maxsize=1000)(decoder.blake3)
decoder.blake3 = lambda data: HASH(bytes(data))


def line(record):
    """A record without its payload's meaning."""
    fields = [record.position, record.stream, record.sequence, record.time, record.created, record.kind,
              record.version, record.flags & 6, None if record.term is None else record.term,
              None if record.key is None else record.key.hex(), len(record.payload),
              int(record.fields() is not None)]
    return " ".join("-" if field is None else str(field) for field in fields) + "\n"


class Body:
    """What the decoder's walks over batches and journals ask for, of one body."""

    def __init__(self, request):
        self.first, self.time, self.count = struct.unpack_from("<QqI", request)
        self.last, self.data = self.first + self.count - 1, request[20:]
        self.all = decoder.Batch.records(self, None)

    def body(self, _):
        """The bytes."""
        return memoryview(self.data)

    def records(self):
        """The records."""
        return iter(self.all)


def body(request):
    """The records of a body and the files they make."""
    try:
        read = Body(request)
    except decoder.Malformed:
        return b"malformed"
    except decoder.Unsupported:
        return b"unsupported"
    answer = "".join(map(line, read.all)).encode()
    for path, content in sorted(decoder.projected(read).items()):
        answer += f"{path} {len(content)}\n".encode() + bytes(content) + b"\n"
    return answer


def directory(request):
    """The report about a data directory, and its records with the CRC of their payloads."""
    try:
        journal = decoder.Journal(request.decode())
        report = decoder.compact(journal.report())
        sums = (f"{zlib.crc32(record.payload)} {line(record)}" for record in journal.records())
        return (report + "\n" + "".join(sums)).encode()
    except decoder.Unsupported:
        return b"unsupported"


def main():
    """Answers until nobody asks any more."""
    asks, answers = sys.stdin.buffer, sys.stdout.buffer
    while head := asks.read(4):
        request = asks.read(struct.unpack("<I", head)[0])
        try:
            answer = (body if request[:1] == b"B" else directory)(request[1:])
        except Exception:
            answer = traceback.format_exc().encode()
        answers.write(struct.pack("<I", len(answer)) + answer)
        answers.flush()


main()
