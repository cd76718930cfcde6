#!/usr/bin/env python3
"""The second decoder of runwal journals, written from src/format/FORMAT.md alone.

    runwal_decode.py DATADIR                   every readable record, a JSON line each
    runwal_decode.py --verify DATADIR          the verdict, as one JSON object
    runwal_decode.py --files OUTDIR DATADIR    the projected files

It reads directories nobody writes to. Damage goes to stderr, a line each. Exit codes: 0 clean,
1 not there, 2 usage, 3 corrupt or tampered, 4 torn, 6 unsupported, 7 I/O error.
"""

import base64
import ctypes
import datetime
import json
import mmap
import os
import re
import stat
import struct
import sys
import zlib
from collections import Counter

U64 = (1 << 64) - 1
LAST_SEGMENT = (1 << 63) - 1
MIB = 1 << 20
BLOCK = 1024
BATCH = 116
EXIT = {"clean": 0, "torn": 4, "corrupt": 3, "tampered": 3, "unsupported": 6}
WORST = ["clean", "torn", "corrupt", "tampered", "unsupported"]


class Malformed(Exception):
    """Bytes that do not follow the format."""


class Unsupported(Exception):
    """Bytes that are right, of a version this decoder does not know."""


# --- BLAKE3: many chunks at once, each in a 64-bit lane of big integers ---

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
SHUFFLE = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
MIXES = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
         (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
LANES = 512


def compress(cv, words, counter, length, flags, lanes):
    """One compression in each lane; `cv`, `words` and `counter` hold a value per lane."""
    ones = int.from_bytes(b"\1\0\0\0\0\0\0\0" * lanes, "little")
    mask = ones * 0xFFFFFFFF
    low, high = counter & mask, (counter >> 32) & mask
    v = list(cv) + [ones * i for i in IV[:4]] + [low, high, ones * length, ones * flags]
    for _ in range(7):
        for i, (a, b, c, d) in enumerate(MIXES):
            va, vb, vc, vd = v[a], v[b], v[c], v[d]
            va = (va + vb + words[2 * i]) & mask
            vd ^= va
            vd = (vd >> 16 | vd << 16) & mask
            vc = (vc + vd) & mask
            vb ^= vc
            vb = (vb >> 12 | vb << 20) & mask
            va = (va + vb + words[2 * i + 1]) & mask
            vd ^= va
            vd = (vd >> 8 | vd << 24) & mask
            vc = (vc + vd) & mask
            vb ^= vc
            v[a], v[b], v[c], v[d] = va, (vb >> 7 | vb << 25) & mask, vc, vd
        words = [words[i] for i in SHUFFLE]
    return [v[i] ^ v[i + 8] for i in range(8)]


def spread(values):
    """Puts each value into its lane."""
    return int.from_bytes(struct.pack(f"<{len(values)}Q", *values), "little")


def gather(cv, lanes):
    """The eight words of each lane."""
    columns = [struct.unpack(f"<{lanes}Q", word.to_bytes(8 * lanes, "little")) for word in cv]
    return list(zip(*columns))


def hash_chunks(data, first, last_flags):
    """The chaining values of equally long chunks of at most 1024 bytes, numbered from `first`."""
    size = min(len(data), 1024)
    lanes = max(1, len(data) // 1024)
    ones = spread([1] * lanes)
    counter = spread(range(first, first + lanes))
    cv = [ones * i for i in IV]
    blocks = max(1, -(-size // 64))
    words = struct.unpack(f"<{lanes * blocks * 16}I", bytes(data).ljust(lanes * blocks * 64, b"\0"))
    for block in range(blocks):
        length = min(64, size - 64 * block)
        flags = (CHUNK_START if block == 0 else 0) | (CHUNK_END | last_flags if block == blocks - 1 else 0)
        lane_words = [spread(words[16 * block + i::16 * blocks]) for i in range(16)]
        cv = compress(cv, lane_words, counter, length, flags, lanes)
    return gather(cv, lanes)


def blake3(data):
    """The plain hash, 32 bytes."""
    if len(data) <= 1024:
        return struct.pack("<8I", *hash_chunks(data, 0, ROOT)[0])
    nodes, whole = [], len(data) // 1024
    for chunk in range(0, whole, LANES):
        nodes += hash_chunks(data[1024 * chunk:1024 * min(whole, chunk + LANES)], chunk, 0)
    if len(data) % 1024:
        nodes += hash_chunks(data[1024 * whole:], whole, 0)
    while len(nodes) > 1:
        pairs, flags = len(nodes) // 2, PARENT | (ROOT if len(nodes) == 2 else 0)
        words = [spread([nodes[2 * p + i // 8][i % 8] for p in range(pairs)]) for i in range(16)]
        cv = [spread([i] * pairs) for i in IV]
        nodes = gather(compress(cv, words, 0, 64, flags, pairs), pairs) + nodes[2 * pairs:]
    return struct.pack("<8I", *nodes[0])


# --- Reading fields ---

class Fields:
    """A cursor over bytes; whatever is not there or not as it should be is `Malformed`."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, size):
        """So many bytes."""
        if size > len(self.data) - self.at:
            raise Malformed("cut short")
        self.at += size
        return self.data[self.at - size:self.at]

    def number(self, code):
        """A fixed-width number, by its struct letter."""
        return struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]

    def varint(self):
        """LEB128 in its shortest spelling."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.number("B")
            value |= (byte & 127) << shift
            if byte < 128:
                if value > U64 or (byte == 0 and shift):
                    raise Malformed("a varint too large or not the shortest")
                return value
        raise Malformed("a varint too long")

    def zigzag(self):
        """A signed varint."""
        value = self.varint()
        return value >> 1 ^ -(value & 1)

    def counted(self, limit):
        """Bytes behind a varint of their length."""
        size = self.varint()
        if size > limit:
            raise Malformed("too long")
        return bytes(self.take(size))

    def choice(self, names):
        """A u8 that stands for a name."""
        value = self.number("B")
        if value >= len(names):
            raise Malformed("an unknown value")
        return names[value]

    def boolean(self):
        """A u8 of 0 or 1."""
        return self.choice([False, True])

    def bytes(self):
        """Bytes behind a u64 of their length."""
        return bytes(self.take(self.number("Q")))

    def string(self, pattern=None):
        """UTF-8, of a form."""
        try:
            text = self.bytes().decode()
        except UnicodeDecodeError:
            raise Malformed("not UTF-8") from None
        if pattern and not pattern.fullmatch(text):
            raise Malformed("not of the form it should have")
        return text

    def option(self, read, *arguments):
        """Nothing or a value."""
        return read(*arguments) if self.boolean() else None

    def list(self, read):
        """Values behind a u64 of their number; each takes at least a byte."""
        count = self.number("Q")
        if count > len(self.data) - self.at:
            raise Malformed("more members than bytes")
        return [read() for _ in range(count)]

    def end(self):
        """Nothing may be left."""
        if self.at != len(self.data):
            raise Malformed("bytes left over")


def wrap(value):
    """A signed 64-bit number."""
    return (value + (1 << 63) & U64) - (1 << 63)


# --- JSON ---

ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
TYPE = re.compile(r"[a-z0-9_]{1,64}")
TOKEN = re.compile(r'''(?P<string>"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*")'''
                   r"|(?P<scalar>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null)"
                   r"|(?P<mark>[\[\]{},:])")
SPACE = re.compile("[ \t\n\r]*")
HIDDEN = re.compile("[\0-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


class Raw(str):
    """JSON as its text."""


class Pairs(list):
    """A JSON object whose keys may come twice."""


def tokens(text):
    """The tokens of a JSON text, whatever white space stands between them, and an empty one at the end."""
    at = SPACE.match(text).end()
    while at < len(text):
        found = TOKEN.match(text, at)
        if not found:
            raise Malformed("not JSON")
        yield found.group() if found.lastgroup == "mark" else found.lastgroup, at, found.end()
        at = SPACE.match(text, found.end()).end()
    yield "", at, at


def read_json(f):
    """JSON as its text, without the white space between its tokens."""
    text = f.string()
    check_json(text)
    return "".join(text[at:end] for _, at, end in tokens(text))


def check_json(text):
    """Is it one JSON value? Of an object the members, as `(key start, key end, value end)`."""
    stack, state, members, key = [], "value", [], None
    for token, at, end in tokens(text):
        if token in (",", "}") and state == "after" and stack == ["}"]:
            members.append((*key, at))
        if state in ("value", "value or ]") and token in ("string", "scalar"):
            state = "after"
        elif state in ("value", "value or ]") and token in ("[", "{"):
            stack.append("]" if token == "[" else "}")
            state = "value or ]" if token == "[" else "key or }"
        elif state in ("key", "key or }") and token == "string":
            key, state = (at, end) if len(stack) == 1 else key, "colon"
        elif state == "colon" and token == ":":
            state = "value"
        elif stack and token == stack[-1] and (state == "after" or state.endswith(f" or {token}")):
            stack.pop()
            state = "after"
        elif state == "after" and token == "," and stack:
            state = "value" if stack[-1] == "]" else "key"
        elif state == "after" and token == "" and not stack:
            return members
        else:
            raise Malformed("not JSON")


def quote(text):
    """A JSON string, escaped as JSON demands and no further."""
    return json.dumps(text, ensure_ascii=False)


def hide(text):
    """The characters that would not be seen, or would turn what is seen around, as `\\uXXXX`."""
    return HIDDEN.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def pairs_of(value):
    """The members of an object; None if it is none."""
    return value if isinstance(value, Pairs) else list(value.items()) if isinstance(value, dict) else None


def compact(value):
    """JSON without white space."""
    if isinstance(value, Raw):
        return value
    if (pairs := pairs_of(value)) is not None:
        return "{" + ",".join(f"{quote(k)}:{compact(v)}" for k, v in pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(compact(v) for v in value) + "]"
    return quote(value)


def pretty(value, indent="\n"):
    """JSON indented by two spaces."""
    deeper, pairs = indent + "  ", pairs_of(value)
    if not isinstance(value, (dict, list)) or not value:
        return compact(value)
    items = [pretty(v, deeper) for v in value] if pairs is None else \
        [f"{quote(k)}: {pretty(v, deeper)}" for k, v in pairs]
    left, right = "[]" if pairs is None else "{}"
    return left + deeper + ("," + deeper).join(items) + indent + right


def time_text(nanoseconds, digits):
    """RFC 3339 in UTC, the fraction cut; null stays null."""
    if nanoseconds is None:
        return None
    seconds, fraction = divmod(nanoseconds, 10 ** 9)
    when = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)
    return f"{when:%Y-%m-%dT%H:%M:%S}.{f'{fraction:09}'[:digits]}Z"


def bytes_json(data):
    """Text, or an object with base64; null stays null."""
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


# --- Payloads ---

LEVELS = ["debug", "info", "warn", "error"]
STATUSES = ["prepared", "running", "completed", "failed", "blocked", "needs_human", "cancelled", "interrupted"]


def read_run(f, record):
    """Kind 1: the object of `meta.json`."""
    task, run, step = f.string(ID), f.string(ID), f.string(ID)
    meta = {"taskId": task, "stepId": step, "runId": run, "attempt": f.number("I")}
    meta |= {"stepKind": f.option(f.string), "workerKind": f.option(f.string)}
    meta |= {"command": [bytes_json(word) for word in f.list(f.bytes)], "workingTree": bytes_json(f.option(f.bytes))}
    environment = f.list(lambda: (f.bytes(), f.bytes()))
    meta |= {"environment": Pairs((name.decode(errors="replace"), bytes_json(v)) for name, v in environment)}
    meta |= {"timeoutMs": f.option(f.number, "Q"), "graceMs": f.number("Q"), "checkpoints": f.boolean()}
    meta |= {"recorderId": f.take(16).hex(), "bootId": f.take(16).hex()}
    meta |= {"controller": f.option(f.string), "host": f.string(), "term": record.term}
    meta |= {"labels": Pairs(f.list(lambda: (f.string(), f.string()))), "parent": f.option(read_parent, f)}
    return {"request": meta | {"renderer": f.number("H"), "createdAt": time_text(record.created, 3)}}


def read_parent(f):
    """The run it follows."""
    return {"taskId": f.string(ID), "runId": f.string(ID), "checkpoint": f.option(f.number, "I")}


def read_lifecycle(f, _):
    """Kind 2."""
    fields = {"type": f.string(TYPE), "level": f.choice(LEVELS), "message": f.string(), "data": Raw(read_json(f))}
    return fields


def read_output(f, _):
    """Kinds 3 and 4."""
    text = bytes_json(bytes(f.take(len(f.data))))
    return {"text": text} if isinstance(text, str) else text


def read_patch(f, _):
    """Kind 5: the fields that are in the patch."""
    fields = [("status", f.choice, STATUSES), ("startedAt", f.option, f.number, "q"), ("updatedAt", f.number, "q"),
              ("finishedAt", f.option, f.number, "q"), ("summary", f.option, f.string),
              ("exitCode", f.option, f.number, "i"), ("signal", f.option, f.string), ("pid", f.option, f.number, "I")]
    return {"patch": {name: read(*rest) for name, read, *rest in fields if f.boolean()}}


def read_checkpoint(f, record):
    """Kind 6: a part of a checkpoint."""
    number, kind = f.number("I"), f.string(TYPE)
    fields = {"type": kind, "number": number, "format": f.choice(["json", "text", "patch"]),
              "replay": f.choice(["none", "git_apply_binary"]), "summary": f.string(), "bytes": f.number("Q")}
    record.content = f.bytes()
    return fields | ({"more": True} if record.flags & 4 else {})


def read_tick(f, record):
    """Kind 7: the object of its JSONL line."""
    batch, runner, stage, result, error = f.string(), f.string(), f.string(), f.option(f.string), f.option(f.string)
    line = Pairs([("batch_id", batch), ("duration_ms", f.option(f.number, "Q")), ("error", error), ("result", result),
                  ("runner", runner), ("stage", stage), ("ts", time_text(record.created, 3))])
    details, used, depths = read_json(f), {key for key, _ in line}, Counter()
    members = check_json(details)
    if not details.startswith("{"):
        raise Malformed("details that are no object")
    for start, end, stop in members:
        key = json.loads(details[start:end])
        if re.search("[\ud800-\udfff]", key):
            raise Malformed("a key that is not Unicode")
        name = key
        while name in used:
            depths[key] += 1
            name = f"detail_{depths[key]}_{key}" if depths[key] > 1 else f"detail_{key}"
        used.add(name)
        line.append((name, Raw(details[end + 1:stop])))
    return {"tick": Raw(hide(compact(line)))}


KINDS = {1: ("run", read_run), 2: ("lifecycle", read_lifecycle), 3: ("stdout", read_output),
         4: ("stderr", read_output), 5: ("state_patch", read_patch), 6: ("checkpoint", read_checkpoint),
         7: ("tick", read_tick)}


class Record:
    """A record: its fields, and what its payload says."""

    def __init__(self, f, position, batch_time, opened):
        start, size = f.at, f.varint()
        self.position, self.content = position, None
        self.kind, self.version, self.flags = f.number("B"), f.number("B"), f.number("B")
        if self.flags & 128:
            raise Unsupported("a reserved flag of a record")
        self.stream, self.sequence, self.time = f.varint(), f.varint(), wrap(batch_time + f.zigzag())
        self.created = wrap(self.time + f.zigzag()) if self.flags & 8 else self.time
        self.name = f.counted(512) if self.flags & 1 else None
        self.key = f.counted(256) if self.flags & 16 else None
        self.term = f.varint() if self.flags & 32 else None
        head = bytes(f.data[start:f.at])
        crc = f.number("I") if self.flags & 64 else None
        self.payload = f.take(size)
        if size > MIB or crc is not None and zlib.crc32(self.payload, zlib.crc32(head)) != crc:
            raise Malformed("a record is too long or does not match its checksum")
        if self.flags & 1 and (self.stream or self.sequence != 1):
            raise Malformed("a record opens a stream and is not its first")
        self.stream = position if self.flags & 1 else self.stream or opened
        if not 1 <= self.stream <= position or not self.sequence:
            raise Malformed("a record of no stream")

    def fields(self):
        """What the payload says; None if the kind is unknown or its schema is not followed."""
        if self.kind not in KINDS or self.version != 1:
            return None
        try:
            f = Fields(self.payload)
            fields = KINDS[self.kind][1](f, self)
            f.end()
            return fields
        except Malformed:
            return None


# --- Segments ---

class Damage:
    """Something that is not as it should be."""

    def __init__(self, verdict, segment, offset, first, last, reason, stands=None):
        self.verdict, self.segment, self.offset, self.reason = verdict, segment, offset, reason
        self.first, self.last = (first, last) if first <= last else (0, 0)
        self.stands, self.accepted = stands or (self.first, self.last), False

    def judge(self, header):
        """It is accepted where its positions lie within those that a header gives up."""
        low, high = self.stands
        self.accepted = header is not None and 0 < header.given_first <= low and high <= header.given_last
        return self


class Segment:
    """A segment file and its header; `problem` says why it cannot be read."""

    def __init__(self, number, path):
        self.number, self.data, self.problem, self.broken_copy = number, b"", None, None
        try:
            self.data = open_bytes(path)
            self.parse(bytes(self.data[:BLOCK]))
        except Malformed as error:
            self.problem = str(error)

    def parse(self, block):
        """Takes the header from the copies that are valid, which have to say the same."""
        found, problem = [], "the header is damaged"
        for at in (0, 512):
            try:
                found.append((at, self.header(block[at:at + 512])))
            except Malformed as error:
                problem = str(error)
        if not found:
            raise Malformed(problem)
        if found[0][1] != found[-1][1]:
            raise Malformed("the copies of the header differ")
        self.broken_copy = None if len(found) == 2 else 512 - found[0][0]
        (self.journal, number, _, self.salt, self.before_salt, self.first, self.before_end, self.before_footer,
         self.chain, self.born, _, _, self.given_first, self.given_last) = found[0][1]
        if number != self.number:
            raise Malformed("the header is of another segment")

    def header(self, copy):
        """The fields of a copy of the header."""
        if len(copy) < 512 or zlib.crc32(copy[:508]) != u32(copy, 508):
            raise Malformed("the header is damaged")
        magic, version, flags = struct.unpack_from("<8sHH", copy)
        if magic != b"RUNWAL\r\n":
            raise Malformed("no segment")
        if version != 1 or flags:
            raise Unsupported(f"segment {self.number}: version {version}, incompatible flags {flags:#x}")
        fields = struct.unpack_from("<16sQQQQQQQ32sQQqQQ", copy, 16)
        _, number, epoch, _, _, first, end, footer, _, _, capacity, *_ = fields
        if not 1 <= number <= LAST_SEGMENT or epoch > LAST_SEGMENT or not first or capacity > 64 * MIB or \
                end > 256 * MIB or footer > 16 * MIB + 24:
            raise Malformed("the header says what cannot be")
        return fields

    def place(self, at):
        """What a checksum begins with, so that the same bytes elsewhere are not valid."""
        return self.journal + struct.pack("<QQQ", self.number, self.salt, at)


class Batch:
    """A batch whose header is valid by itself."""

    __slots__ = ("at", "chain", "codec", "count", "crc", "decoded", "digest", "durable", "end", "first", "last",
                 "size", "time")

    def __init__(self, segment, at, end):
        header = bytes(segment.data[at:min(at + BATCH, end)])
        if header[:4] != b"RWB1" or len(header) < BATCH or \
                zlib.crc32(segment.place(at) + header[:112]) != u32(header, 112):
            raise Malformed("no batch")
        self.codec, durability, flags, size, self.size, self.count, self.crc = \
            struct.unpack_from("<BBHIIII", header, 4)
        if self.codec > 1 or durability > 1 or flags & 0xFF00:
            raise Unsupported(f"segment {segment.number}, offset {at}: a batch of an unknown kind")
        self.first, self.time, self.durable = struct.unpack_from("<QqQ", header, 24)
        self.digest, self.chain = header[48:80], header[80:112]
        self.at, self.end, self.last = at, at + BATCH + size, self.first + self.count - 1
        self.decoded = None
        fits = size < self.size if self.codec else size == self.size
        if not fits or self.size > 8 * MIB or not 1 <= self.count <= 65536:
            raise Malformed("a batch header that says what cannot be")
        if not self.first or self.last + 1 > U64 or self.durable >= self.first:
            raise Malformed("a batch header with positions that cannot be")

    def stored(self, segment):
        """The bytes of the body as stored."""
        return memoryview(segment.data)[self.at + BATCH:self.end]

    def body(self, segment):
        """The bytes of the body."""
        if not self.codec:
            return self.stored(segment)
        if self.decoded is None:
            self.decoded = unpack(bytes(self.stored(segment)), self.size)
        return memoryview(self.decoded)

    def records(self, segment):
        """The records, which must fill the body."""
        f, records, opened = Fields(self.body(segment)), [], 0
        for position in range(self.first, self.last + 1):
            records.append(Record(f, position, self.time, opened))
            opened = position if records[-1].flags & 1 else opened
        f.end()
        return records

    def link(self, chain):
        """The chain hash there should be after this batch."""
        return blake3(chain + struct.pack("<QIq", self.first, self.count, self.time) + self.digest)

    def check(self, segment, end):
        """What verdict the body gets, and why; no reason if it is valid."""
        if self.end > end or zlib.crc32(self.stored(segment)) != self.crc:
            return "corrupt", CUT_SHORT
        if blake3(self.body(segment)) != self.digest:
            return "tampered", "a body does not match its digest"
        return ("clean", None) if self.follows(segment) else ("corrupt", NO_RECORDS)

    def follows(self, segment):
        """Does the body hold the records it should?"""
        try:
            self.records(segment)
        except Malformed:
            return False
        except Unsupported:
            # What does not match its digest is no other version's.
            if blake3(self.body(segment)) == self.digest:
                raise
            return False
        return True


def unpack(block, size):
    """What an LZ4 block decodes to, if that is as much as it should be; otherwise nothing."""
    out, at = bytearray(), 0

    def length(nibble):
        nonlocal at
        more = 255 if nibble == 15 else 0
        while more == 255:
            more, at = block[at], at + 1
            nibble += more
        return nibble

    try:
        while len(out) <= size <= 255 * len(block):
            token, at = block[at], at + 1
            literals = length(token >> 4)
            if at + literals > len(block):
                break
            out += block[at:at + literals]
            at += literals
            if at == len(block):
                return bytes(out) if len(out) == size else b""
            back, at = block[at] | block[at + 1] << 8, at + 2
            copied = 4 + length(token & 15)
            if not 0 < back <= len(out) or len(out) + copied > size:
                break
            piece = bytes(out[-back:])
            out += (piece * (copied // back + 1))[:copied]
    except IndexError:
        pass
    return b""


CUT_SHORT = "a body is cut short or does not match its checksum"
NO_RECORDS = "a body is not made of records"
NO_BATCH = "no batch stands here"


def u32(data, at):
    """A u32 at an offset."""
    return struct.unpack_from("<I", data, at)[0]


def open_bytes(path):
    """A regular file, mapped."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise Malformed("not a regular file")
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if os.fstat(file.fileno()).st_size else b""


def footer_at(segment, at, size):
    """Does a footer of this size stand at an offset?"""
    data = bytes(segment.data[at:at + min(size, 24 + 16 * MIB)])
    return len(data) == size >= 24 and footer_begins(segment, at) and u32(data, 8) == size - 24 and \
        zlib.crc32(data[24:]) == u32(data, 12)


def footer_begins(segment, at):
    """Is what stands at an offset the beginning of a footer?"""
    head = bytes(segment.data[at:at + 24])
    if len(head) < 24 or head[:4] != b"RWF1" or zlib.crc32(segment.place(at) + head[:20]) != u32(head, 20):
        return False
    if u32(head, 4) >> 16:
        raise Unsupported(f"segment {segment.number}: a footer with unknown flags")
    return u32(head, 8) <= 16 * MIB


def something_at(segment, at):
    """Does anything stand from an offset on but zeros?"""
    return any(segment.data[i:i + MIB].strip(b"\0") for i in range(at, len(segment.data), MIB))


def something_behind(segment, end):
    """Does anything stand behind the last batch but zeros and a footer?"""
    size = 24 + u32(segment.data, end + 8) if end + 24 <= len(segment.data) else 0
    return something_at(segment, end + size if size and footer_at(segment, end, size) else end)


class Walk:
    """The batches of a segment in order, what is damaged between them, and where it ends.

    Each step is what was found, the batch it is about (None for what is none), and where the next one begins.
    """

    def __init__(self, segment, end, last=None, ends_itself=False):
        self.segment, self.end = segment, min(end, len(segment.data))
        self.steps, self.durable, self.broken, self.ends_itself = [], 0, None, ends_itself
        self.next, self.chain, self.at = segment.first, segment.chain, BLOCK
        while self.at < self.end:
            self.step()
        if self.broken is not None or self.at < end:
            self.note("corrupt", self.at if self.broken is None else self.broken, last or 0, NO_BATCH)
            self.at, self.chain = max(self.at, end), None
        elif last is not None and last >= self.next:
            self.note("corrupt", self.at, last, "batches are missing at the end")
            self.chain = None
        self.next = max(self.next, (last or 0) + 1)

    def step(self):
        """Takes a batch, or searches for the next one."""
        if self.ends_itself and self.broken is None and (
                footer_begins(self.segment, self.at) or not something_at(self.segment, self.at)):
            self.at = self.end
            return None
        try:
            batch = Batch(self.segment, self.at, self.end)
        except Malformed:
            return self.search()
        self.durable = max(self.durable, batch.durable)
        if batch.first < self.next or batch.first > self.next and self.broken is None:
            return self.search()
        if self.broken is not None:
            self.note("corrupt", self.broken, batch.first - 1, NO_BATCH)
            self.next, self.broken, self.chain = batch.first, None, None
        verdict, problem = batch.check(self.segment, self.end)
        if self.chain and batch.link(self.chain) != batch.chain:
            text, stands = "the chain hash is not right", (batch.first, batch.first)
            self.steps.append((Damage("tampered", self.segment.number, self.at, 1, 0, text, stands), batch, self.at))
        if problem:
            self.note(verdict, self.at, batch.last, problem, batch)
        else:
            self.steps.append((None, batch, batch.end))
        self.next, self.chain, self.at = batch.last + 1, batch.chain, batch.end
        return None

    def search(self):
        """Goes to the next offset where a batch may stand."""
        self.broken = self.at if self.broken is None else self.broken
        found = self.segment.data.find(b"RWB1", self.at + 1, self.end)
        self.at = self.end if found < 0 else found

    def note(self, verdict, offset, last, reason, batch=None):
        """Notes damage from the next position on."""
        damage = Damage(verdict, self.segment.number, offset, self.next, last, reason)
        self.steps.append((damage, batch, batch.end if batch else self.at))


class Inspection:
    """What the newest segment holds: how far it is good, and what it proves durable."""

    def __init__(self, segment, told):
        walk, self.good, known = Walk(segment, len(segment.data)), (segment.first - 1, BLOCK), []
        self.proven = max(segment.first - 1, segment.born, told, walk.durable)
        self.told_kept = max(segment.first - 1, told, walk.durable) >= segment.born
        readable, sound, self.verdict = self.good, True, "corrupt"
        for damage, batch, end in walk.steps:
            if batch is None:
                sound = False
                continue
            unchained = damage is not None and damage.stands[0] and not damage.first
            whole = not unchained and (damage is None or damage.verdict == "tampered" and batch.follows(segment))
            if whole:
                readable = batch.last, end
                self.good = readable if sound else self.good
                continue
            if not unchained:
                known.append((batch.last, end))
            if sound:
                self.verdict = damage.verdict
            if unchained and sound or damage.reason not in (CUT_SHORT, "the chain hash is not right"):
                self.proven = max(self.proven, batch.last)
            sound = False
        if self.proven <= self.good[0]:
            self.end = self.good
        else:
            known = [one for one in known if one[0] <= self.proven and one[1] > readable[1]]
            last, end = known[-1] if known else readable
            self.end = max(last, self.proven), end


# --- The journal ---

class Mark:
    """What is durable, as the mark says, and what it is worth here.

    `own`: it was written for this very file; `whole`: in this boot, and both slots are valid.
    """

    def __init__(self, path):
        self.own = self.whole = self.here = self.busy = False
        self.segment, self.end, self.position = 0, 0, 0
        self.journal = self.chain = None
        try:
            data, inode = bytes(open_bytes(path)[:BLOCK + 40]), os.lstat(path).st_ino
        except (Malformed, OSError):
            return
        slots = [s for s in (data[:132], data[512:644]) if len(s) == 132 and zlib.crc32(s[:128]) == u32(s, 128)]
        slots = [s for s in slots if s[:8] == b"RWM1\1\0\0\0" and s[79] < 128]
        word = data[BLOCK:].ljust(40, b"\0")
        valid = word[:4] == b"RWZ1" and 1 <= u32(word, 16) <= 3 and zlib.crc32(word[:36]) == u32(word, 36)
        self.busy = any(word) and not (valid and word[20:36] != this_boot())
        if slots:
            slot = max(slots, key=lambda s: struct.unpack_from("<Q", s, 8))
            (boot, device, mount, found, self.journal, self.segment, self.end,
             self.position, self.chain) = struct.unpack_from("<16sQQQ16sQQQ32s", slot, 16)
            place = os.path.dirname(os.path.dirname(path))
            same_boot, at = boot == this_boot(), place_of(place)
            self.own = found == inode and (not same_boot or device == at[0])
            self.whole = self.own and len(slots) == 2 and same_boot
            self.here = mount == at[1]


def this_boot():
    """The id of this boot."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return bytes.fromhex(file.read(36).decode().replace("-", ""))
    except (OSError, ValueError):
        return None


def place_of(path):
    """Device and mount id of a directory, as `statx` gives them: STATX_MNT_ID_UNIQUE where there is that."""
    found = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None).statx(-100, os.fsencode(path), 0, 0x57FF, found):
        raise OSError(f"statx of {path}")
    major, minor, mount = struct.unpack_from("<IIQ", found, 136)
    return major << 32 | minor, mount


class Journal:
    """All segments: what can be read of them, and what is damaged."""

    def __init__(self, directory):
        self.directory = os.path.join(directory, "journal")
        self.mark = Mark(os.path.join(self.directory, "mark"))
        self.segments = [Segment(number, path) for number, path in sorted(self.names())]
        self.batches, self.damage, self.next, self.durable, self.torn = [], [], 1, 0, None
        self.check_journal_ids()
        self.right = [s for s in self.segments if not s.problem]
        self.check_segments()
        if self.right:
            self.read()
        self.check_end()

    def names(self):
        """Number and path of each segment."""
        for name in os.listdir(self.directory) if os.path.isdir(self.directory) else []:
            number = re.fullmatch(r"([0-9]{10,20})\.seg", name)
            if number and name == f"{int(number[1]):010}.seg" and 1 <= int(number[1]) <= LAST_SEGMENT:
                yield int(number[1]), os.path.join(self.directory, name)

    def check_journal_ids(self):
        """Segments of another journal are not read: than the mark's, or else than the newest's."""
        ids = [s.journal for s in self.segments if not s.problem]
        named = self.mark.own or self.mark.journal in ids
        right = self.mark.journal if named else ids[-1] if ids else None
        for segment in self.segments:
            if not segment.problem and segment.journal != right:
                segment.problem = "a segment of another journal"

    def note(self, segment, offset, first, last, reason, verdict="corrupt"):
        """Notes that positions are gone, if there are any."""
        self.damage.append(Damage(verdict, segment, offset, first, last, reason))
        return self.damage[-1]

    def check_segments(self):
        """What a segment and the next one say of each other, and what has no place among them."""
        for name in ("mark", "lock"):
            path = os.path.join(self.directory, name)
            if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
                self.note(0, 0, 1, 0, f"the {name} is no regular file")
        for segment in self.right:
            after = self.behind(segment.number)
            if segment.broken_copy is not None:
                self.note(segment.number, segment.broken_copy, 1, 0, "a copy of the header is damaged")
            if after is None or after.number > segment.number + 1:
                continue
            if after.before_salt != segment.salt and not after.given_first:
                self.note(segment.number, 0, 1, 0, "not the segment that the next one follows")
            if after.before_footer and not footer_at(segment, after.before_end, after.before_footer):
                self.note(segment.number, after.before_end, 1, 0, "the footer is damaged")

    def behind(self, number):
        """The next segment that can be read."""
        return next((segment for segment in self.right if segment.number > number), None)

    def end(self, inspection):
        """The segment that reading ends in, and the last position and the end there."""
        newest, mark = self.right[-1], self.mark
        named = next((segment for segment in self.right if segment.number == mark.segment), None)
        if mark.whole and named and (mark.here or self.nothing_behind(named)):
            return named, (mark.position, mark.end)
        if mark.whole and not mark.here and mark.busy and inspection.proven <= inspection.good[0]:
            steps = Walk(newest, inspection.good[1]).steps
            ends = [(batch.last, end) for _, batch, end in steps
                    if batch.last <= inspection.proven and inspection.told_kept]
            return newest, ends[-1] if ends else (newest.first - 1, BLOCK)
        return newest, inspection.end

    def nothing_behind(self, named):
        """Does nothing stand behind what the mark names?"""
        later = any(segment.number == named.number + 1 for segment in self.segments)
        return not later and not any(named.data[self.mark.end:self.mark.end + BATCH])

    def read(self):
        """Reads segment by segment, to the end."""
        newest, mark, before, chain = self.right[-1], self.mark, None, None
        told = mark.position if mark.own and mark.segment <= newest.number else 0
        inspection = Inspection(newest, told)
        active, (last, end) = self.end(inspection)
        # A batch whose header stands before the end is read whole.
        first = Walk(active, end, last)
        last, end = first.next - 1, first.at
        for segment in [segment for segment in self.right if segment.number <= active.number]:
            number, after = segment.number, self.behind(segment.number)
            missing = (before.number if before else 0) + 1
            if missing < number:
                self.note(missing, 0, self.next, segment.first - 1, self.why(missing)).judge(segment)
            elif self.next < segment.first:
                self.note(number, 0, self.next, segment.first - 1, "positions are missing before it").judge(segment)
            elif before and segment.before_salt == before.salt and chain and chain != segment.chain:
                self.note(number, 0, 1, 0, "the chain hash of the header is not right", "tampered")
            if segment is active:
                walk = Walk(segment, end, last)
            elif after.number == number + 1:
                walk = Walk(segment, after.before_end, after.first - 1)
            else:
                walk = Walk(segment, len(segment.data), ends_itself=True)
            for damage, batch, _ in walk.steps:
                self.take(segment, damage, batch, after)
            self.next, before, chain = max(self.next, segment.first, walk.next), segment, walk.chain
        self.active, self.durable = active.number, last
        self.judge_end(newest, inspection)

    def why(self, number):
        """Why a segment cannot be read."""
        return next((s.problem for s in self.segments if s.number == number), "a segment is missing")

    def take(self, segment, damage, batch, after):
        """Takes over a batch, or damage, that a walk found."""
        if damage:
            self.damage.append(damage.judge(after))
        else:
            self.batches.append((segment, batch))
        mark = self.mark
        if batch and (damage is None or damage.reason == NO_RECORDS) and mark.own and \
                (mark.segment, mark.end) == (segment.number, batch.end) and mark.chain != batch.chain:
            self.note(segment.number, batch.end, 1, 0, "the mark has another chain hash", "tampered")

    def judge_end(self, newest, inspection):
        """What stands behind the end that reading goes to."""
        last, end = inspection.good
        if not self.mark.own and self.mark.position > self.durable:
            self.torn = f"the copy is incomplete: it ends before position {self.mark.position}"
        if inspection.proven > last:
            if self.durable <= last:
                self.note(newest.number, end, last + 1, inspection.proven, "records are gone", inspection.verdict)
                self.durable = inspection.proven
        elif something_behind(newest, end) or last > self.durable:
            self.torn = f"segment {newest.number}, offset {end}: a write was cut short"

    def check_end(self):
        """Behind the segment that reading ends in there may be others, or the mark may know of others."""
        active = self.active if self.right else 0
        lost = [segment for segment in self.segments if segment.problem and segment.number > active]
        newest = self.right[-1].number if self.right else 0
        for segment in lost:
            self.note(segment.number, 0, 1, 0, segment.problem)
        named = self.mark.segment if self.mark.own else 0
        if named > newest or lost and not self.right:
            place = newest + 1 if newest else max([named] + [segment.number for segment in lost])
            told = self.mark.position if self.mark.own else 0
            self.note(place, 0, self.durable + 1, told, "a segment is missing or cannot be read")

    def verdict(self):
        """The worst of all damage that was not accepted."""
        verdicts = [d.verdict for d in self.damage if not d.accepted] + ["torn" if self.torn else "clean"]
        return max(verdicts, key=WORST.index)

    def records(self):
        """All records that can be read."""
        for segment, batch in self.batches:
            yield from batch.records(segment)

    def report(self):
        """What `runwal verify -o json` prints."""
        damage = [{"segment": d.segment, "offset": d.offset, "from": d.first, "to": d.last, "reason": d.reason,
                   "accepted": d.accepted} for d in self.damage]
        return {"verdict": self.verdict(), "records": sum(b.count for _, b in self.batches),
                "batches": len(self.batches), "segments": len(self.segments),
                "bytes": sum(len(s.data) for s in self.segments), "durable": self.durable, "damage": damage}


# --- Lines and files ---

def run_of(record):
    """The task and the run in the name of the stream it opens; None if it is no run's."""
    task, slash, run = record.name.decode(errors="replace").partition("/")
    return (task, run) if slash and ID.fullmatch(task) and ID.fullmatch(run) else None


def log_line(record, run):
    """A record as `runwal log -o json` prints it, without the cursor."""
    fields = record.fields()
    line = {"position": record.position} | ({"task": run[0], "run": run[1]} if run else {})
    line |= {"seq": record.sequence, "time": time_text(record.time, 9), "createdAt": time_text(record.created, 9)}
    if fields is None:
        return compact(line | {"kind": "unknown", "kindNumber": record.kind, "version": record.version})
    if "patch" in fields:
        fields["patch"] = {k: time_text(v, 9) if k.endswith("At") else v for k, v in fields["patch"].items()}
    return compact(line | {"kind": KINDS[record.kind][0]} | fields)


def event_line(record, fields):
    """A line of `worker.log`."""
    short = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    message = re.sub(r"\\|" + HIDDEN.pattern, lambda c: short.get(c.group(), f"\\u{{{ord(c.group()):x}}}"),
                     fields["message"])
    words = [time_text(record.created, 3), fields["level"].upper(), fields["type"], message, hide(fields["data"])]
    return " ".join(words) + "\n"


class Run:
    """The files of a run."""

    def __init__(self, name, record, meta):
        self.folder, self.meta, self.parts = f"runs/{name[0]}/{name[1]}", meta, []
        self.state = {key: meta[key] for key in ("taskId", "stepId", "runId", "attempt")}
        self.state |= {"status": "prepared", "startedAt": time_text(record.created, 3)}
        self.state |= dict.fromkeys(["updatedAt", "finishedAt", "summary", "exitCode", "signal", "pid",
                                     "lastEventSeq", "lastCheckpointSeq"])
        self.logs = {"worker.log": bytearray(), "stdout.log": bytearray(), "stderr.log": bytearray()}

    def take(self, record, fields, files):
        """Takes a record of the run."""
        if not record.flags & 4:
            self.state["updatedAt"] = time_text(record.created, 3)
        if record.kind == 2:
            self.state["lastEventSeq"] = record.sequence
            self.logs["worker.log"] += event_line(record, fields).encode()
        elif record.kind in (3, 4):
            self.logs[KINDS[record.kind][0] + ".log"] += record.payload
        elif record.kind == 5:
            self.state |= {k: time_text(v, 3) if k.endswith("At") else v for k, v in fields["patch"].items()}
        elif record.kind == 6:
            self.take_checkpoint(record, fields, files)

    def take_checkpoint(self, record, fields, files):
        """Takes a part of a checkpoint; with the last one, the file."""
        self.parts.append(record.content)
        if record.flags & 4:
            return
        self.state["lastCheckpointSeq"] = fields["number"]
        content, self.parts = b"".join(self.parts), []
        if len(content) == fields["bytes"]:
            extension = {"json": "json", "text": "txt", "patch": "patch"}[fields["format"]]
            name = f"{fields['number']:04}-{fields['type'].replace('_', '-')}.{extension}"
            files[f"{self.folder}/checkpoints/{name}"] = content

    def finish(self, files):
        """The files that grew."""
        files[f"{self.folder}/meta.json"] = pretty(self.meta).encode() + b"\n"
        files[f"{self.folder}/state.json"] = pretty(self.state).encode() + b"\n"
        files.update((f"{self.folder}/{name}", content) for name, content in self.logs.items())


def projected(journal):
    """All projected files: path and content."""
    files, runs, timed = {}, {}, set()
    for record in journal.records():
        fields = record.fields()
        if record.name == b"timed-jobs":
            timed.add(record.stream)
        if fields and record.kind == 1 and record.flags & 1 and run_of(record):
            runs[record.stream] = Run(run_of(record), record, fields["request"])
        if fields and record.kind == 7 and record.stream in timed:
            path = f"timed-jobs/{time_text(record.created, 3)[:10]}.jsonl"
            files.setdefault(path, bytearray()).extend(fields["tick"].encode() + b"\n")
        if fields and record.stream in runs:
            runs[record.stream].take(record, fields, files)
    for run in runs.values():
        run.finish(files)
    return files


def write_files(journal, target):
    """Writes the projected files."""
    for path, content in projected(journal).items():
        path = os.path.join(target, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)


def print_log(journal):
    """Prints the records."""
    runs = {}
    for record in journal.records():
        if record.flags & 1:
            runs[record.position] = run_of(record)
        print(log_line(record, runs.get(record.stream)))


def run(arguments):
    """Reads a directory and does what is asked."""
    journal = Journal(arguments[-1])
    if arguments[0] == "--verify":
        print(compact(journal.report()))
    elif arguments[0] == "--files":
        write_files(journal, arguments[1])
    else:
        print_log(journal)
    for damage in journal.damage:
        print(f"segment {damage.segment}, offset {damage.offset}: {damage.reason}; positions {damage.first} to "
              f"{damage.last}{' (accepted)' if damage.accepted else ''}", file=sys.stderr)
    if journal.torn:
        print(journal.torn, file=sys.stderr)
    return EXIT[journal.verdict()]


def main(arguments):
    """The command line."""
    if len(arguments) != {"--verify": 2, "--files": 3}.get(arguments[0] if arguments else "", 1):
        print(__doc__, file=sys.stderr)
        return 2
    if not os.path.isdir(arguments[-1]):
        print(f"there is no directory {arguments[-1]}", file=sys.stderr)
        return 1
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    try:
        return run(arguments)
    except Unsupported as error:
        if arguments[0] == "--verify":
            print('{"verdict":"unsupported"}')
        print(error, file=sys.stderr)
        return EXIT["unsupported"]
    except OSError as error:
        print(error, file=sys.stderr)
        return 7


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
