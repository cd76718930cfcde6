#!/usr/bin/env python3
"""The second decoder of runwal journals, written from src/format/FORMAT.md alone.

    runwal_decode.py DATADIR                   every readable record, a JSON line each
    runwal_decode.py --verify DATADIR          the verdict, as one JSON object
    runwal_decode.py --files OUTDIR DATADIR    the projected files

It reads directories nobody writes to. Damage goes to stderr, a line each. Exit codes: 0 clean,
1 not there, 2 usage, 3 corrupt or tampered, 4 torn, 6 unsupported, 7 I/O error.
"""

import base64
import datetime
import json
import mmap
import os
import re
import stat
import struct
import sys
import zlib
from array import array

U64 = (1 << 64) - 1
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
STRING = r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"'
TOKEN = re.compile(r"(?P<string>" + STRING + r")|(?P<scalar>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
                   r"|true|false|null)|(?P<mark>[\[\]{},:])")
HIDDEN = re.compile("[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


class Raw(str):
    """JSON as its text."""


class Object(list):
    """A JSON object: pairs, in order."""


def tokens(text):
    """The tokens of a JSON text, without white space between them, and a last empty one."""
    at = 0
    while at < len(text):
        found = TOKEN.match(text, at)
        if not found:
            raise Malformed("not JSON")
        yield found.lastgroup if found.lastgroup != "mark" else found.group(), at, found.end()
        at = found.end()
    yield "", at, at


def check_json(text):
    """Is it one JSON value? Of an object the members, as spans `(key start, key end, value end)`."""
    stack, state, members, key = [], "value", [], None
    for token, at, end in tokens(text):
        closes = token in ("]", "}") and token
        if state in ("value", "first value") and token in ("string", "scalar"):
            state = "after"
        elif state in ("value", "first value") and token in ("[", "{"):
            stack.append("]" if token == "[" else "}")
            state = "first value" if token == "[" else "first key"
        elif state in ("key", "first key") and token == "string":
            key, state = ((at, end) if len(stack) == 1 else key), "colon"
        elif state == "colon" and token == ":":
            state = "value"
        elif closes and stack and closes == stack[-1] and state in ("after", f"first {'value' if closes == ']' else 'key'}"):
            if len(stack) == 1 and closes == "}" and state == "after":
                members.append((*key, at))
            stack.pop()
            state = "after"
        elif state == "after" and token == "," and stack:
            if len(stack) == 1 and stack[0] == "}":
                members.append((*key, at))
            state = "value" if stack[-1] == "]" else "key"
        elif state == "after" and token == "" and not stack:
            return members
        else:
            raise Malformed("not JSON")


def json_string(reader):
    """A string that is JSON."""
    text = reader.string()
    check_json(text)
    return Raw(text)


def quote(text):
    """A JSON string, escaped as JSON demands and no further."""
    return json.dumps(text, ensure_ascii=False)


def hide(text):
    """The characters that would not be seen, or would turn what is seen around, as `\\uXXXX`."""
    return HIDDEN.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def compact(value):
    """JSON without white space."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, Object):
        return "{" + ",".join(f"{quote(k)}:{compact(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(compact(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def pretty(value, indent="\n"):
    """JSON indented by two spaces."""
    deeper = indent + "  "
    if isinstance(value, list) and value:
        is_object = isinstance(value, Object)
        items = [f"{quote(v[0])}: {pretty(v[1], deeper)}" if is_object else pretty(v, deeper) for v in value]
        left, right = "{}" if is_object else "[]"
        return left + deeper + ("," + deeper).join(items) + indent + right
    return compact(value)


def time_text(nanoseconds, digits):
    """RFC 3339 in UTC, the fraction cut."""
    seconds, fraction = divmod(nanoseconds, 10 ** 9)
    when = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)
    return f"{when:%Y-%m-%dT%H:%M:%S}.{f'{fraction:09}'[:digits]}Z"


def bytes_json(data):
    """Text, or an object with base64."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return Object([("base64", base64.b64encode(data).decode())])


# --- Payloads ---

LEVELS = ["debug", "info", "warn", "error"]
STATUSES = ["prepared", "running", "completed", "failed", "blocked", "needs_human", "cancelled", "interrupted"]
KINDS = {1: "run", 2: "lifecycle", 3: "stdout", 4: "stderr", 5: "state_patch", 6: "checkpoint", 7: "tick"}


def read_run(f, record):
    """Kind 1: the object of `meta.json`."""
    task, run, step, attempt = f.string(ID), f.string(ID), f.string(ID), f.number("I")
    pair, text = (lambda: (f.bytes(), f.bytes())), (lambda: (f.string(), f.string()))
    meta = Object([("taskId", task), ("stepId", step), ("runId", run), ("attempt", attempt)])
    meta += [("stepKind", f.option(f.string)), ("workerKind", f.option(f.string))]
    meta += [("command", [bytes_json(word) for word in f.list(f.bytes)])]
    tree = f.option(f.bytes)
    meta += [("workingTree", None if tree is None else bytes_json(tree))]
    meta += [("environment", Object((n.decode(errors="replace"), bytes_json(v)) for n, v in f.list(pair)))]
    meta += [("timeoutMs", f.option(f.number, "Q")), ("graceMs", f.number("Q")), ("checkpoints", f.boolean())]
    meta += [("recorderId", f.take(16).hex()), ("bootId", f.take(16).hex())]
    meta += [("controller", f.option(f.string)), ("host", f.string()), ("term", record.term)]
    meta += [("labels", Object(f.list(text))), ("parent", f.option(read_parent, f)), ("renderer", f.number("H"))]
    meta += [("createdAt", time_text(record.created, 3))]
    return {"request": meta}


def read_parent(f):
    """The run it follows."""
    return Object([("taskId", f.string(ID)), ("runId", f.string(ID)), ("checkpoint", f.option(f.number, "I"))])


def read_lifecycle(f, _):
    """Kind 2."""
    return {"type": f.string(TYPE), "level": f.choice(LEVELS), "message": f.string(), "data": json_string(f)}


def read_output(f, _):
    """Kinds 3 and 4."""
    payload = bytes(f.take(len(f.data)))
    text = bytes_json(payload)
    return {"text": text} if isinstance(text, str) else {"base64": text[0][1]}


def read_patch(f, _):
    """Kind 5: the fields that are in the patch."""
    fields = [("status", f.choice, STATUSES), ("startedAt", f.option, f.number, "q"), ("updatedAt", f.number, "q"),
              ("finishedAt", f.option, f.number, "q"), ("summary", f.option, f.string),
              ("exitCode", f.option, f.number, "i"), ("signal", f.option, f.string), ("pid", f.option, f.number, "I")]
    return {"patch": Object((name, read(*rest)) for name, read, *rest in fields if f.boolean())}


def read_checkpoint(f, record):
    """Kind 6: a part of a checkpoint."""
    number, kind = f.number("I"), f.string(TYPE)
    fields = {"type": kind, "number": number, "format": f.choice(["json", "text", "patch"]),
              "replay": f.choice(["none", "git_apply_binary"]), "summary": f.string(), "bytes": f.number("Q")}
    record.content = f.bytes()
    return fields | ({"more": True} if record.flags & 4 else {})


def read_tick(f, record):
    """Kind 7: the object of its JSONL line."""
    batch, runner, stage = f.string(), f.string(), f.string()
    result, error, duration, details = f.option(f.string), f.option(f.string), f.option(f.number, "Q"), f.string()
    head = [("batch_id", batch), ("duration_ms", duration), ("error", error), ("result", result),
            ("runner", runner), ("stage", stage), ("ts", time_text(record.created, 3))]
    members = check_json(details)
    if not details.startswith("{"):
        raise Malformed("details that are no object")
    line, used = [f"{quote(k)}:{compact(v)}" for k, v in head], {k for k, _ in head}
    for start, end, stop in members:
        key = json.loads(details[start:end])
        if re.search("[\ud800-\udfff]", key):
            raise Malformed("a key that is not Unicode")
        while key in used:
            key = "detail_" + key
        used.add(key)
        line.append(f"{quote(key)}{details[end:stop]}")
    return {"tick": Raw(hide("{" + ",".join(line) + "}"))}


READERS = {1: read_run, 2: read_lifecycle, 3: read_output, 4: read_output, 5: read_patch, 6: read_checkpoint,
           7: read_tick}


class Record:
    """A record: its fields, and what its payload says."""

    def __init__(self, f, position, batch_time, opened):
        start = f.at
        size = f.varint()
        if size > MIB:
            raise Malformed("a payload too long")
        self.position, self.content = position, None
        self.kind, self.version, self.flags = f.number("B"), f.number("B"), f.number("B")
        if self.flags & 128:
            raise Unsupported("a reserved flag of a record")
        self.stream, self.sequence = f.varint(), f.varint()
        self.time = wrap(batch_time + f.zigzag())
        self.created = wrap(self.time + f.zigzag()) if self.flags & 8 else self.time
        self.name = f.counted(512) if self.flags & 1 else None
        self.key = f.counted(256) if self.flags & 16 else None
        self.term = f.varint() if self.flags & 32 else None
        head = bytes(f.data[start:f.at])
        crc = f.number("I") if self.flags & 64 else None
        self.payload = f.take(size)
        if crc is not None and zlib.crc32(self.payload, zlib.crc32(head)) != crc:
            raise Malformed("a record does not match its checksum")
        self.resolve(opened)

    def resolve(self, opened):
        """Finds the stream, and checks stream and sequence."""
        if self.flags & 1 and (self.stream or self.sequence != 1):
            raise Malformed("a record that opens a stream and is not its first")
        self.stream = self.position if self.flags & 1 else self.stream or opened
        if not self.stream or self.stream > self.position or not self.sequence:
            raise Malformed("a record of no stream")

    def fields(self):
        """What the payload says; None if the kind is unknown or its schema is not followed."""
        if self.kind not in KINDS or self.version != 1:
            return None
        try:
            f = Fields(self.payload)
            fields = READERS[self.kind](f, self)
            f.end()
            return fields
        except Malformed:
            return None


def read_records(body, first, count, batch_time):
    """The records of a body, which they must fill."""
    f, records, opened = Fields(body), [], 0
    for position in range(first, first + count):
        records.append(Record(f, position, batch_time, opened))
        opened = position if records[-1].flags & 1 else opened
    f.end()
    return records


# --- Segments ---

class Damage:
    """Something that is not as it should be."""

    def __init__(self, verdict, segment, offset, first, last, reason):
        self.verdict, self.segment, self.offset, self.end, self.reason = verdict, segment, offset, offset, reason
        self.first, self.last = (first, last) if first <= last else (0, 0)
        self.accepted = False


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
        """Reads the header block."""
        right = [len(c) == 512 and zlib.crc32(c[:508]) == u32(c, 508) for c in (block[:512], block[512:])]
        copies = [block[512 * i:512 * i + 512] for i in (0, 1) if right[i]]
        if not copies or copies[0] != copies[-1]:
            raise Malformed("the header is damaged" if not copies else "the copies of the header differ")
        magic, version, flags = struct.unpack_from("<8sHH", copies[0])
        if magic != b"RUNWAL\r\n":
            raise Malformed("no segment")
        if version != 1 or flags:
            raise Unsupported(f"segment {self.number}: version {version}, incompatible flags {flags:#x}")
        self.broken_copy = None if all(right) else 512 * right.index(False)
        fields = struct.unpack_from("<16sQQQQQQQ32sQQqQQ", copies[0], 16)
        (self.journal, number, _, self.salt, self.before_salt, self.first, self.before_end, self.before_footer,
         self.chain, self.born, capacity, _, self.given_first, self.given_last) = fields
        if number != self.number or not self.first or capacity > 64 * MIB:
            raise Malformed("the header is of another segment or says what cannot be")

    def given_up(self):
        """The positions given up before it, first and last; 1 and 0 for none."""
        right = 0 < self.given_first <= self.given_last < self.first
        return (self.given_first, self.given_last) if right else (1, 0)


CHECKSUM = "a body is cut short or does not match its checksum"


class Batch:
    """A batch whose header is valid by itself."""

    def __init__(self, segment, at):
        header = bytes(segment.data[at:at + BATCH])
        place = segment.journal + struct.pack("<QQQ", segment.number, segment.salt, at)
        if header[:4] != b"RWB1" or len(header) < BATCH or zlib.crc32(place + header[:112]) != u32(header, 112):
            raise Malformed("no batch")
        codec, durability, flags, size, decoded, self.count, self.crc = struct.unpack_from("<BBHIIII", header, 4)
        if codec or durability > 1 or flags & 0xFF00:
            raise Unsupported(f"segment {segment.number}, offset {at}: a batch of an unknown kind")
        self.first, self.time, self.durable = struct.unpack_from("<QqQ", header, 24)
        self.digest, self.chain = header[48:80], header[80:112]
        self.at, self.end, self.last = at, at + BATCH + size, self.first + self.count - 1
        if size != decoded or size > 8 * MIB or not 1 <= self.count <= 65536:
            raise Malformed("a batch header that says what cannot be")
        if not self.first or self.last + 1 > U64 or self.durable >= self.first:
            raise Malformed("a batch header with positions that cannot be")

    def body(self, segment):
        """The bytes of the body."""
        return memoryview(segment.data)[self.at + BATCH:self.end]

    def records(self, segment):
        """The records."""
        return read_records(self.body(segment), self.first, self.count, self.time)

    def link(self, chain):
        """The chain hash there should be after this batch."""
        return blake3(chain + struct.pack("<QIq", self.first, self.count, self.time) + self.digest)

    def check(self, segment, end):
        """What verdict the body gets, and why; no reason if it is valid."""
        if self.end > end or zlib.crc32(self.body(segment)) != self.crc:
            return "corrupt", CHECKSUM
        if blake3(self.body(segment)) != self.digest:
            return "tampered", "a body does not match its digest"
        try:
            self.records(segment)
        except Malformed as error:
            return "corrupt", f"a body that is not valid: {error}"
        return "clean", None


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
    place = segment.journal + struct.pack("<QQQ", segment.number, segment.salt, at)
    if len(data) != size or data[:4] != b"RWF1" or zlib.crc32(place + data[:20]) != u32(data, 20):
        return False
    if u32(data, 4) >> 16:
        raise Unsupported(f"segment {segment.number}: a footer with unknown flags")
    return u32(data, 8) == size - 24 and zlib.crc32(data[24:]) == u32(data, 12)


def header_at(segment, at):
    """The batch at an offset, or None."""
    try:
        return Batch(segment, at)
    except Malformed:
        return None


def first_nonzero(data, start, end):
    """The first offset with a byte that is not zero, or None."""
    for at in range(start, end, MIB):
        piece = data[at:min(end, at + MIB)]
        rest = piece.lstrip(b"\0")
        if rest:
            return at + len(piece) - len(rest)
    return None


class Walk:
    """The batches of a segment in order, what is damaged between them, and what they prove durable."""

    def __init__(self, segment, end, last=None):
        self.segment, self.end = segment, min(end, len(segment.data))
        self.steps, self.durable = [], 0
        self.next, self.chain, self.at = segment.first, segment.chain, BLOCK
        self.broken, self.chain_known = None, True
        while self.at < self.end:
            self.step(header_at(segment, self.at))
        if self.broken is not None or self.at < end:
            self.at, self.chain_known = self.at if self.broken is None else self.broken, False
        self.last = last

    def step(self, batch):
        """Takes a batch, or searches for the next one."""
        self.durable = max(self.durable, batch.durable if batch else 0)
        continues = batch and (batch.first >= self.next if self.broken is not None else batch.first == self.next)
        if not continues:
            self.broken = self.at if self.broken is None else self.broken
            found = self.segment.data.find(b"RWB1", self.at + 1, self.end)
            self.at = self.end if found < 0 else found
            return
        if self.broken is not None:
            self.damage("corrupt", self.broken, self.at, batch.first - 1, "no batch stands here")
            self.next, self.broken, self.chain_known = batch.first, None, False
        verdict, problem = batch.check(self.segment, self.end)
        if problem != CHECKSUM and self.chain_known and batch.link(self.chain) != batch.chain:
            self.damage("tampered", self.at, self.at, 0, "the chain hash is not right")
        if problem:
            self.damage(verdict, self.at, batch.end, batch.last, problem)
        else:
            self.steps.append(batch)
        self.next, self.chain, self.chain_known = batch.last + 1, batch.chain, True
        self.at = batch.end

    def damage(self, verdict, offset, end, last, reason):
        """Notes damage from the next position on."""
        self.steps.append(Damage(verdict, self.segment.number, offset, self.next, last, reason))
        self.steps[-1].end = end


# --- The journal ---

class Mark:
    """What is durable, as the mark says. `own`: it was written for this very file; `reliable`: in this boot too."""

    def __init__(self, path):
        self.own, self.reliable, self.segment, self.end, self.position = False, False, 0, 0, 0
        try:
            data = bytes(open_bytes(path)[:BLOCK])
            inode = os.lstat(path).st_ino
        except (Malformed, OSError):
            return
        slots = [s for s in (data[:132], data[512:644]) if len(s) == 132 and zlib.crc32(s[:128]) == u32(s, 128)]
        slots = [s for s in slots if s[:8] == b"RWM1\1\0\0\0"]
        if slots:
            slot = max(slots, key=lambda s: struct.unpack_from("<Q", s, 8))
            (_, boot, _, _, found, self.journal, self.segment, self.end, self.position,
             self.chain) = struct.unpack_from("<Q16sQQQ16sQQQ32s", slot, 8)
            self.own = found == inode
            self.reliable = self.own and len(slots) == 2 and boot == this_boot()


def this_boot():
    """The id of this boot."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return bytes.fromhex(file.read(36).decode().replace("-", ""))
    except (OSError, ValueError):
        return None


class Journal:
    """All segments: what can be read of them, and what is damaged."""

    def __init__(self, directory):
        self.directory = os.path.join(directory, "journal")
        self.mark = Mark(os.path.join(self.directory, "mark"))
        self.segments = [Segment(n, path) for n, path in sorted(self.names())]
        self.batches, self.damage, self.next, self.torn = [], [], 1, None
        self.check_journal_ids()
        readable = [s for s in self.segments if not s.problem]
        for before, segment in zip([None] + readable, readable):
            if before:
                self.read_sealed(before, segment)
            self.check_gap(before.number if before else 0, segment)
            self.accept(segment)
        newest = readable[-1] if readable else None
        if newest:
            self.read_newest(newest)
        self.durable = self.next - 1
        self.check_end(newest)

    def names(self):
        """Number and path of each segment."""
        if not os.path.isdir(self.directory):
            return
        for name in os.listdir(self.directory):
            number = re.fullmatch(r"([0-9]{10,20})\.seg", name)
            if number and name == f"{int(number[1]):010}.seg" and 1 <= int(number[1]) <= U64:
                yield int(number[1]), os.path.join(self.directory, name)

    def check_journal_ids(self):
        """Segments of another journal are not read: than the mark's, else than most; of as many, the newest's."""
        ids = [s.journal for s in self.segments if not s.problem]
        right = self.mark.journal if self.mark.own else max(reversed(ids), key=ids.count, default=None)
        for segment in self.segments:
            if not segment.problem and segment.journal != right:
                segment.problem = "a segment of another journal"

    def note(self, segment, offset, last, reason, verdict="corrupt"):
        """Notes that the positions up to `last` are gone, if there are any."""
        self.damage.append(Damage(verdict, segment, offset, self.next, last, reason))
        self.next = max(self.next, last + 1)

    def check_gap(self, before, segment):
        """What is missing or cannot be read between two segments; the first of it gets the positions."""
        for lost in [s for s in self.segments if before < s.number < segment.number] + [segment]:
            if lost.number > before + 1:
                self.note(before + 1, 0, segment.first - 1, "a segment is missing")
            if lost is not segment:
                self.note(lost.number, 0, segment.first - 1, lost.problem)
            before = lost.number
        if self.next < segment.first:
            self.note(segment.number, 0, segment.first - 1, "positions are missing before it")
        if segment.broken_copy is not None:
            self.note(segment.number, segment.broken_copy, 0, "a copy of the header is damaged")

    def read_sealed(self, segment, after):
        """Reads a segment that is not the newest; where it ends, the next one says, if that is there."""
        adjacent = after.number == segment.number + 1
        walk = Walk(segment, after.before_end if adjacent else len(segment.data))
        self.take(walk, walk.steps)
        if not adjacent:
            if self.something_behind(segment, walk.at):
                self.note(segment.number, walk.at, 0, "neither a batch nor a footer stands here")
            return
        if after.before_salt != segment.salt:
            self.note(segment.number, 0, 0, "not the segment that the next one follows")
        elif walk.chain_known and self.next == after.first and walk.chain != after.chain:
            self.note(after.number, 0, 0, "the chain hash of the header is not right", "tampered")
        if walk.at < after.before_end or self.next < after.first:
            self.note(segment.number, walk.at, after.first - 1, "batches are missing at the end")
        if after.before_footer and not footer_at(segment, after.before_end, after.before_footer):
            self.note(segment.number, after.before_end, 0, "the footer is damaged")

    def accept(self, segment):
        """Damage does not count where the next segment gives its positions up."""
        first, last = segment.given_up()
        for damage in self.damage:
            damage.accepted = damage.accepted or first <= damage.first <= damage.last <= last

    def take(self, walk, steps):
        """Takes over what a walk found."""
        for step in steps:
            if isinstance(step, Damage):
                self.damage.append(step)
            else:
                self.batches.append((walk.segment, step))
            self.next = max(self.next, step.last + 1)

    def read_newest(self, segment):
        """Reads the newest segment, up to the mark if that can be relied on."""
        walk, mark = Walk(segment, len(segment.data)), self.mark
        own = mark.own and mark.journal == segment.journal and mark.segment <= segment.number
        evidence = max(segment.first - 1, segment.born, walk.durable, mark.position if own else 0)
        limit = mark.end if own and mark.reliable and mark.segment == segment.number else len(segment.data)
        end = BLOCK
        for step in walk.steps:
            broken = isinstance(step, Damage)
            if broken and step.verdict == "corrupt" and step.first > evidence:
                break
            if broken or step.end <= limit:
                self.take(walk, [step])
                end = step.end
        if self.next <= evidence and (not walk.steps or walk.steps[-1].last <= evidence):
            self.note(segment.number, end, evidence, "durable records are gone")
        elif not mark.own and mark.position >= self.next:
            self.torn = f"the copy is incomplete: it ends before position {mark.position}"
        if self.something_behind(segment, end):
            self.torn = f"segment {segment.number}, offset {end}: a write was cut short"

    def something_behind(self, segment, end):
        """Does anything stand behind the durable end but zeros and a footer?"""
        size = u32(segment.data, end + 8) if end + 12 <= len(segment.data) else 0
        if footer_at(segment, end, 24 + size):
            end += 24 + size
        return first_nonzero(segment.data, end, len(segment.data)) is not None

    def check_end(self, newest):
        """Behind the newest segment that can be read there may be others, or the mark may know of others."""
        number, known = newest.number if newest else 0, self.mark.segment if self.mark.own else 0
        behind = [s for s in self.segments if s.number > number]
        for segment in behind:
            self.note(segment.number, 0, 0, segment.problem)
        if known > number or behind and not self.mark.own:
            place = number + 1 if newest else max(known, *(s.number for s in behind), 0)
            self.note(place, 0, self.mark.position if known > number else 0, "a segment is missing or cannot be read")

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
        damage = [Object([("segment", d.segment), ("offset", d.offset), ("from", d.first), ("to", d.last),
                          ("reason", d.reason), ("accepted", d.accepted)]) for d in self.damage]
        return Object([("verdict", self.verdict()), ("records", sum(b.count for _, b in self.batches)),
                       ("batches", len(self.batches)), ("segments", len(self.segments)),
                       ("bytes", sum(len(s.data) for s in self.segments)), ("durable", self.durable),
                       ("damage", damage)])


# --- Lines and files ---

def run_of(record):
    """The task and the run in the name of the stream it opens."""
    task, slash, run = record.name.decode(errors="replace").partition("/")
    return (task, run) if slash and ID.fullmatch(task) and ID.fullmatch(run) else None


def log_line(record, run):
    """A record as `runwal log -o json` prints it, without the cursor."""
    fields = record.fields()
    line = Object([("position", record.position)])
    line += [("task", run[0]), ("run", run[1])] if run else []
    line += [("seq", record.sequence), ("time", time_text(record.time, 9)), ("createdAt", time_text(record.created, 9))]
    line += [("kind", "unknown" if fields is None else KINDS[record.kind])]
    fields = {"kindNumber": record.kind, "version": record.version} if fields is None else fields
    for key, value in fields.items():
        if key == "patch":
            value = Object((k, time_text(v, 9) if k.endswith("At") and v is not None else v) for k, v in value)
        line.append((key, value))
    return compact(line)


class Run:
    """The files of a run."""

    def __init__(self, record, meta):
        self.meta, self.parts = meta, []
        request = dict(meta)
        self.folder = f"runs/{request['taskId']}/{request['runId']}"
        self.state = {k: request[k] for k in ("taskId", "stepId", "runId", "attempt")}
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
            self.logs[KINDS[record.kind] + ".log"] += record.payload
        elif record.kind == 5:
            for key, value in fields["patch"]:
                self.state[key] = time_text(value, 3) if key.endswith("At") and value is not None else value
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
        files[f"{self.folder}/state.json"] = pretty(Object(self.state.items())).encode() + b"\n"
        for name, content in self.logs.items():
            files[f"{self.folder}/{name}"] = content


def event_line(record, fields):
    """A line of `worker.log`."""
    short = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    message = re.sub(r"\\|" + HIDDEN.pattern, lambda c: short.get(c.group(), f"\\u{{{ord(c.group()):x}}}"),
                     fields["message"])
    words = [time_text(record.created, 3), fields["level"].upper(), fields["type"], message, hide(fields["data"])]
    return " ".join(words) + "\n"


def projected(journal):
    """All projected files: path and content."""
    files, runs, timed = {}, {}, set()
    for record in journal.records():
        fields = record.fields()
        if record.flags & 1 and record.name == b"timed-jobs":
            timed.add(record.position)
        if record.flags & 1 and record.kind == 1 and fields:
            runs[record.stream] = Run(record, fields["request"])
        if record.kind == 7 and record.stream in timed and fields:
            path = f"timed-jobs/{time_text(record.created, 3)[:10]}.jsonl"
            files.setdefault(path, bytearray()).extend(fields["tick"].encode() + b"\n")
        if record.stream in runs and fields:
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
        sys.stdout.write(log_line(record, runs.get(record.stream)) + "\n")


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
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")
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
