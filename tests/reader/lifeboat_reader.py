"""An independent reader of Lifeboat repositories, written from docs/format.md alone.

    lifeboat_reader.py --repository DIR --identity FILE list
    lifeboat_reader.py --repository DIR --identity FILE restore SOURCE[@NUMBER] TARGET

It opens a repository in a local directory with an age identity, checks signatures, digests and ids, and restores files,
directories, symlinks, hard links and page files. It favours clearness over speed and never writes to the repository.
"""

import argparse
import base64
import hashlib
import hmac
import io
import json
import os
import re
import sys

import blake3
import cbor2
import pyrage
import zstandard
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

DATA, WRITER = 0, 1
FILE, DIRECTORY, SYMLINK, HARDLINK, FIFO = range(5)
STATES = ["good", "incomplete", "quarantined"]
MAX_SEQUENCE, MAX_FRAME, MAX_DOCUMENT = 9_999_999_999, 16 << 20, 64 << 20


class Broken(Exception):
    """What was read is not what the format says."""


class TooNew(Exception):
    """Only a later version reads it."""


class WrongKey(Exception):
    """The identity does not open what it should."""


def check(condition, what):
    if not condition:
        raise Broken(what)


# Primitives ---------------------------------------------------------------------------------------------------------


def hash256(data):
    return blake3.blake3(data).digest()


def hash128(data):
    return hash256(data)[:16]


def first64(data):
    return int.from_bytes(data[:8], "little")


def u32(number):
    return number.to_bytes(4, "little")


def u64(number):
    return number.to_bytes(8, "little")


def derive(secret, context, *parts):
    hasher = blake3.blake3(derive_key_context=context)
    hasher.update(secret)
    for part in parts:
        hasher.update(u64(len(part)) + part)
    return hasher.digest()


def raw_public(private):
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def verify(public, context, message, signature):
    signed = bytes([len(context)]) + context.encode() + hash256(message)
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, signed)
        return True
    except InvalidSignature:
        return False


def unseal(key, nonce, sealed, aad, what):
    try:
        return AESGCM(key).decrypt(nonce, sealed, aad)
    except InvalidTag:
        raise Broken(f"{what}: its seal does not open") from None


def unseal_document(key, sealed, aad, what):
    return unseal(key, sealed[:12], sealed[12:], aad, what)


def unpack(stored, limit, what):
    try:
        raw = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(stored)).read(limit + 1)
    except zstandard.ZstdError as why:
        raise Broken(f"{what}: {why}") from None
    check(len(raw) <= limit, f"{what}: it unpacks to more than {limit} bytes")
    return raw


def decode(data, what):
    stream = io.BytesIO(data)
    try:
        value = cbor2.CBORDecoder(stream).decode()
    except Exception as why:  # cbor2 raises several kinds
        raise Broken(f"{what}: {why}") from None
    check(stream.tell() == len(data), f"{what}: something follows the record")
    return value


def hpke_export(private, enc, info):
    """RFC 9180, base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, export only: Export("data key", 32)."""
    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\xff\xff"

    def extract(suite_id, salt, label, material):
        return hmac.new(salt or bytes(32), b"HPKE-v1" + suite_id + label + material, hashlib.sha256).digest()

    def expand(suite_id, key, label, context):  # every output here is one block of 32 bytes
        text = b"\x00\x20HPKE-v1" + suite_id + label + context + b"\x01"
        return hmac.new(key, text, hashlib.sha256).digest()

    key = X25519PrivateKey.from_private_bytes(private)
    shared = key.exchange(X25519PublicKey.from_public_bytes(enc))
    shared = expand(kem, extract(kem, b"", b"eae_prk", shared), b"shared_secret", enc + raw_public(key))
    context = b"\x00" + extract(suite, b"", b"psk_id_hash", b"") + extract(suite, b"", b"info_hash", info)
    exporter = expand(suite, extract(suite, shared, b"secret", b""), b"exp", context)
    return expand(suite, exporter, b"sec", b"data key")


# Repository ---------------------------------------------------------------------------------------------------------


def object_name(number):
    return f"{MAX_SEQUENCE - number:010}-{number}"


def number_of(name):
    match = re.fullmatch(r"\d{10}-([1-9]\d{0,9})", name)
    return int(match[1]) if match and object_name(int(match[1])) == name else None


def signed_record(data, context, public_of, what):
    """Verifies the record's bytes as they stand in the object."""
    outer = json.loads(data)
    start = data.index(b'"record":') + len(b'"record":')
    text = data[start:].decode()
    start_of_value = len(text) - len(text.lstrip())
    record, end = json.JSONDecoder().raw_decode(text, start_of_value)
    raw = text[start_of_value:end].encode()
    check(record == outer["record"], f"{what}: its record is ambiguous")
    good = verify(public_of(record), context, raw, bytes.fromhex(outer["signature"]))
    check(good, f"{what}: its signature is not of the key that must have made it")
    return record


class Repository:
    def __init__(self, directory, identity):
        self.directory = directory
        self.identity = identity
        data = self.get("lifeboat.json")
        first = signed_record(data, "lifeboat.dev 2026 root", lambda r: bytes.fromhex(r["root"]), "lifeboat.json")
        public = bytes.fromhex(first["root"])
        own = blake3.blake3(public, derive_key_context="lifeboat.dev 2026 repository id").hexdigest()[:32]
        check(own == first["id"], "lifeboat.json: its id is not that of its root key")
        self.root = first
        for state in filter(number_of, self.list("_root")):
            name = f"_root/{state}"
            try:
                record = signed_record(self.get(name), "lifeboat.dev 2026 root", lambda _: public, name)
                fits = record["id"] == first["id"] and record["number"] == number_of(state)
                check(fits, f"{name}: it is another repository's or another state's")
            except (Broken, ValueError) as why:
                print(f"stepped over: {why}", file=sys.stderr)
                continue
            self.root = record
            break
        check(self.root["lifeboat"] == 1, f"format {self.root['lifeboat']} is not known")
        self.id = bytes.fromhex(self.root["id"])

    def get(self, name, offset=0, length=None):
        try:
            with open(os.path.join(self.directory, name), "rb") as file:
                file.seek(offset)
                data = file.read() if length is None else file.read(length)
        except OSError as why:
            raise Broken(f"{name}: {why.strerror}") from None
        check(length is None or len(data) == length, f"{name}: it is cut off")
        return data

    def list(self, name):
        path = os.path.join(self.directory, name)
        return sorted(os.listdir(path)) if os.path.isdir(path) else []

    def sources(self):
        label = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
        return [n for n in self.list("") if label.fullmatch(n) and os.path.isdir(os.path.join(self.directory, n))]

    def open_wraps(self, wraps, fits):
        for wrap in wraps:
            try:
                secrets = json.loads(pyrage.decrypt(base64.b64decode(wrap["age"]), [self.identity]))
            except pyrage.DecryptError:
                continue
            if fits(secrets):
                return secrets
        return None


class Lineage:
    def __init__(self, repository, source):
        self.repository, self.source, self.epochs = repository, source, {}

    def epoch(self, number):
        if number not in self.epochs:
            self.epochs[number] = Epoch(self.repository, self.source, number)
        return self.epochs[number]

    def numbers(self):
        """Newest first."""
        return [n for n in map(number_of, self.repository.list(f"{self.source}/snapshots")) if n]

    def snapshots(self):
        for number in self.numbers():
            try:
                yield Snapshot(self, number)
            except Broken as why:
                print(f"stepped over: {why}", file=sys.stderr)


class Epoch:
    def __init__(self, repository, source, number):
        name = f"{source}/keys/{number:04}/epoch.json"
        writers = {w["generation"]: w for w in repository.root["writers"]}

        def public_of(record):
            check(record["generation"] in writers, f"{name}: the root knows no such writer")
            return bytes.fromhex(writers[record["generation"]]["verifying_key"])

        record = signed_record(repository.get(name), "lifeboat.dev 2026 epoch", public_of, name)
        writer = writers[record["generation"]]
        place = (record["repository"], record["source"], record["epoch"])
        check(place == (repository.root["id"], source, number), f"{name}: it does not belong here")
        self.repository, self.name, self.record = repository, name, record
        self.start = record["from"]
        self.last = writer["retired"].get(source, 0) if "retired" in writer else MAX_SEQUENCE
        self.verifying_key = bytes.fromhex(record["verifying_key"])
        self.private = None

    def open(self):
        """Only for a manifest that counts."""
        if self.private:
            return
        repository, name, record = self.repository, self.name, self.record
        if record["kem"] != 0x0020:
            raise TooNew(f"{name}: its KEM is not known")
        directory = name.rpartition("/")[0]
        added = [n for n in repository.list(directory) if n.endswith(".age.json")]
        added = [json.loads(repository.get(f"{directory}/{n}")) for n in added]
        public = bytes.fromhex(record["public"])

        def fits(secrets):
            return raw_public(X25519PrivateKey.from_private_bytes(bytes.fromhex(secrets["private"]))) == public

        secrets = repository.open_wraps(record["wraps"] + added, fits)
        if secrets is None:
            raise WrongKey(f"{name}: this identity does not open it")
        self.private, self.writer = bytes.fromhex(secrets["private"]), bytes.fromhex(secrets["writer"])
        self.chunk_key = derive(self.writer, "lifeboat.dev 2026 chunk id")
        self.mark_key = derive(self.writer, "lifeboat.dev 2026 page mark")

    def chunk_id(self, data):
        return blake3.blake3(data, key=self.chunk_key).digest()[:16]

    def page_mark(self, page, page_id):
        return int.from_bytes(blake3.blake3(u64(page) + page_id, key=self.mark_key).digest()[:16], "little")

    def key(self, context, unique):
        return derive(self.writer, context, unique)


class Snapshot:
    def __init__(self, lineage, number):
        self.repository, self.source, self.number = lineage.repository, lineage.source, number
        self.name = f"{self.source}/snapshots/{object_name(number)}"
        data = self.repository.get(self.name)
        check(len(data) > 84 and data[:6] == b"LBSNAP", f"{self.name}: it is no manifest")
        self.format = int.from_bytes(data[6:8], "big")
        length = int.from_bytes(data[8:12], "little")
        try:
            header = cbor2.loads(data[12 : 12 + length])
            claimed, repository, source, epoch, sequence = (header[i] for i in range(5))
        except Exception as why:  # cbor2 raises several kinds
            raise Broken(f"{self.name}: {why}") from None
        self.epoch = lineage.epoch(epoch)
        good = verify(self.epoch.verifying_key, "lifeboat.dev 2026 manifest", data[:-64], data[-64:])
        check(good, f"{self.name}: its signature is not of the source's writer")
        place = (repository, source, sequence)
        check(place == (self.repository.id, self.source, number), f"{self.name}: it does not belong here")
        check(self.epoch.start <= number <= self.epoch.last, f"{self.name}: its key does not count for this number")
        if self.format > 1:
            raise TooNew(f"{self.name}: format {self.format} is not known")
        check(self.format == claimed == 1, f"{self.name}: there is no such format")
        at, parts = 8, []
        for _ in range(3):
            length = int.from_bytes(data[at : at + 4], "little")
            parts.append(data[at + 4 : at + 4 + length])
            at += 4 + length
        check(at == len(data) - 64, f"{self.name}: its lengths do not add up")
        header = decode(parts[0], self.name)
        self.parent, self.time_ms, self.state, self.packs = header.get(5), header[6], header[7], header[8]
        self.epoch.open()
        aad = self.repository.id + u64(number) + self.source.encode()
        plain = unseal_document(self.epoch.key("lifeboat.dev 2026 catalogue", aad), parts[1], aad, self.name)
        self.catalogue = decode(unpack(plain, MAX_DOCUMENT, self.name), self.name)
        check(self.catalogue[8] == 0, f"{self.name}: its entry list has an unknown depth")
        key = hpke_export(self.epoch.private, parts[2][:32], info(self, "private", u64(number)))
        plain = unseal_document(key, parts[2][32:], aad, self.name)
        self.problems = decode(unpack(plain, MAX_DOCUMENT, self.name), self.name)[0]
        self.opened = {}

    def pack(self, index):
        check(index < len(self.packs), f"{self.name}: it names a pack that it does not list")
        if index not in self.opened:
            self.opened[index] = Pack(self, self.packs[index])
        return self.opened[index]

    def entries(self):
        """(entry, body, pack ids) in order."""
        for _, _, (pack, ordinal), *_ in self.catalogue[9]:
            segment = decode(self.pack(pack).item(ordinal), self.name)
            for entry, body in segment[1]:
                file, empty = entry[1] == FILE, body[0] == 0
                fits = empty if not file else empty <= (entry[6] == 0)
                check(fits, f"{self.name}: an entry has content that it cannot have, or lacks what it should have")
                yield entry + [None] * (11 - len(entry)), body, segment[0]

    def content(self, body, packs, size):
        """(offset, bytes) of an entry's content; what is left out is zeros."""
        kind, fields = body
        if kind == 1:
            by_id = {reference[0]: index for index, reference in enumerate(self.packs)}
            offset = 0
            for pack, first, count in fields[0]:
                check(packs[pack] in by_id, f"{self.name}: an entry names a pack that the snapshot does not list")
                for ordinal in range(first, first + count):
                    data = self.pack(by_id[packs[pack]]).item(ordinal)
                    yield offset, data
                    offset += len(data)
            check(offset == size, f"{self.name}: an entry has another size than its chunks")
        elif kind == 2:
            space, page_size, digest = fields
            end = -(-size // page_size)
            held = {}
            for index in range(len(self.packs)):  # oldest first: a later pack replaces
                held.update((page, (index, ordinal)) for page, ordinal in self.pack(index).pages(space, end))
            held = {page: place for page, place in held.items() if place[1] is not None}
            marks = (self.epoch.page_mark(page, self.pack(index).id_of(ordinal)) for page, (index, ordinal) in held.items())
            complete = (sum(marks) % 2**128).to_bytes(16, "little") == digest
            check(complete, f"{self.name}: its packs do not hold the pages that they should")
            for page, (index, ordinal) in sorted(held.items(), key=lambda item: item[1]):
                data = self.pack(index).item(ordinal)
                check(len(data) == page_size, f"{self.name}: a page has another size than its file's")
                yield page * page_size, data[: size - page * page_size]
        else:
            check(kind == 0, f"{self.name}: an entry's content is of an unknown kind")
            check(size == 0, f"{self.name}: an entry has a size and no content")


def info(snapshot, use, name):
    source = snapshot.source.encode()
    return b"lifeboat.dev 2026 " + use.encode() + b"\x00" + snapshot.repository.id + bytes([len(source)]) + source + name


class Pack:
    def __init__(self, snapshot, reference):
        self.id, size, tail_length, tail_digest = (reference[i] for i in range(4))
        self.repository, self.epoch = snapshot.repository, snapshot.epoch
        self.name = f"{snapshot.source}/packs/{self.id.hex()}"
        tail = self.repository.get(self.name, size - tail_length, tail_length)
        check(hash128(tail) == tail_digest, f"{self.name}: its tail is not the one its snapshot names")
        check(len(tail) >= 32 and tail[-8:] == b"LBPKEND\x01", f"{self.name}: it does not end as a pack does")
        table_length, directory_length = (int.from_bytes(tail[i : i + 4], "little") for i in (-32, -28))
        check(table_length + directory_length + 32 == len(tail), f"{self.name}: its tail has other lengths")
        check(hash128(tail[:-32]) == tail[-24:-8], f"{self.name}: its tail does not have its digest")
        raw_table = tail[:table_length]
        table = decode(raw_table, self.name)
        check(table[0] == self.id, f"{self.name}: it is another pack")
        key = self.epoch.key("lifeboat.dev 2026 pack directory", self.id)
        plain = unseal_document(key, tail[table_length:-32], self.id + hash256(raw_table), self.name)
        directory = decode(unpack(plain, MAX_DOCUMENT, self.name), self.name)
        check(len(directory[0]) == len(table[3]), f"{self.name}: its directory and its table disagree")
        self.ids, self.zeros = directory[1], directory[2]
        self.keys = [
            hpke_export(self.epoch.private, table[1], info(snapshot, "pack", self.id)),
            self.epoch.key("lifeboat.dev 2026 writer frame", self.id),
        ]
        self.frames, self.places, self.runs, self.cached = [], [], [], (None, b"")
        offset = 24
        for number, (seal, (codec, (kind, items))) in enumerate(zip(table[3], directory[0])):
            start = 0
            known = seal[0] in (DATA, WRITER) and codec in (0, 1) and kind in (0, 1)
            check(known, f"{self.name}: frame {number} is of a class, a codec or a kind of items that is not known")
            if kind == 0:
                lengths = items[0]
            else:
                space, page_size, runs = items
                check(512 <= page_size <= 1 << 20, f"{self.name}: frame {number} has pages of {page_size} bytes")
                lengths = []
                for page, count in runs:
                    check(page + count <= 1 << 42, f"{self.name}: frame {number} has a page beyond the last")
                    self.runs.append((space, page, count, len(self.places) + len(lengths)))
                    lengths += [page_size] * count
            for length in lengths:
                self.places.append((number, start, length))
                start += length
            check(start <= MAX_FRAME, f"{self.name}: frame {number} is too large")
            self.frames.append((offset, *seal, codec, start))
            offset += seal[1]
        runs = sorted([(of, page, count) for of, page, count, _ in self.runs] + [(of, *run) for of, runs in self.zeros for run in runs])
        apart = all(a[0] != b[0] or a[1] + a[2] <= b[1] for a, b in zip(runs, runs[1:]))
        check(apart, f"{self.name}: its directory names a page twice")
        check(offset == size - tail_length, f"{self.name}: its frames do not add up to its size")
        check(len(self.ids) == 16 * len(self.places), f"{self.name}: it has another number of ids than items")

    def frame(self, number):
        if self.cached[0] != number:
            offset, kind, sealed_length, digest, codec, raw_length = self.frames[number]
            what = f"{self.name} (frame {number})"
            sealed = self.repository.get(self.name, offset, sealed_length)
            check(hash128(sealed) == digest, f"{what}: its bytes do not have their digest")
            aad = self.id + u32(number) + bytes([kind])
            raw = unseal(self.keys[kind], bytes(8) + number.to_bytes(4, "big"), sealed, aad, what)
            raw = unpack(raw, MAX_FRAME, what) if codec == 1 else raw
            check(len(raw) == raw_length, f"{what}: it has another length than its items")
            self.cached = (number, raw)
        return self.cached[1]

    def id_of(self, ordinal):
        return self.ids[16 * ordinal : 16 * ordinal + 16]

    def item(self, ordinal):
        check(ordinal < len(self.places), f"{self.name}: it has no item {ordinal}")
        frame, start, length = self.places[ordinal]
        data = self.frame(frame)[start : start + length]
        check(self.epoch.chunk_id(data) == self.id_of(ordinal), f"{self.name}: item {ordinal} is not what its id says")
        return data

    def pages(self, space, end):
        """(page, ordinal or None for zeros) of all pages of a space before `end`."""
        for of, first, count, ordinal in self.runs:
            if of == space:
                yield from ((first + i, ordinal + i) for i in range(count) if first + i < end)
        for of, runs in self.zeros:
            if of == space:
                yield from ((page, None) for first, count in runs for page in range(first, min(first + count, end)))


# Restore ------------------------------------------------------------------------------------------------------------


def safe_path(target, path):
    if path == b".":  # the root itself
        return target
    parts = path.split(b"/")
    check(path and not {b"", b".", b".."} & set(parts) and b"\0" not in path, f"{path!r} is no path of an entry")
    inner = target
    for part in parts[:-1]:  # never through a symlink
        inner = os.path.join(inner, part)
        check(not os.path.islink(inner), f"{path!r} leads through a symlink")
        os.makedirs(inner, exist_ok=True)
    return os.path.join(inner, parts[-1])


def restore(snapshot, target):
    target = os.fsencode(target)
    os.makedirs(target, exist_ok=True)
    check(not os.listdir(target), "the target is not empty")
    directories, restored = [], 0
    for entry, body, packs in snapshot.entries():
        path, kind, mode, uid, gid, mtime, size, link, _, xattrs, _ = entry
        place = safe_path(target, path)
        if kind == DIRECTORY:
            os.makedirs(place, exist_ok=True)
            directories.append((place, entry))
        elif kind == SYMLINK:
            os.symlink(link, place)
        elif kind == HARDLINK:
            os.link(safe_path(target, link), place, follow_symlinks=False)
        elif kind == FIFO:
            os.mkfifo(place)
        elif kind == FILE:
            with open(place, "xb") as file:
                for offset, data in snapshot.content(body, packs, size):
                    file.seek(offset)
                    file.write(data)
                file.truncate(size)
        else:
            print(f"left out: {path!r} (device or socket)", file=sys.stderr)
            continue
        restored += 1
        if kind not in (DIRECTORY, HARDLINK):
            metadata(place, entry)
    for place, entry in reversed(directories):  # last: writing into a directory changes its time
        metadata(place, entry)
    return restored


def metadata(place, entry):
    _, kind, mode, uid, gid, mtime, _, _, _, xattrs, _ = entry
    if os.geteuid() == 0:
        os.chown(place, uid, gid, follow_symlinks=False)
    if kind != SYMLINK:
        os.chmod(place, mode)
    for name, value in xattrs or []:
        os.setxattr(place, name, value, follow_symlinks=False)
    os.utime(place, ns=(mtime, mtime), follow_symlinks=False)


# Shares of a recovery identity ---------------------------------------------------------------------------------------


def times(a, b):
    """The product of two numbers of GF(2^8), modulo x^8 + x^4 + x^3 + x + 1."""
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def read_share(text):
    """The number and the 32 bytes of a share, its checksums compared."""
    lines = iter([line for line in (line.strip().lower() for line in text.splitlines()) if line])
    number = next((int(line.split()[-1]) for line in lines if line.startswith("lifeboat share ")), None)
    check(number is not None, "that is no share")
    field = lambda name: next(lines).removeprefix(name).strip()
    counts = field("any").split()
    threshold, count = int(counts[0]), int(counts[2])
    repository, recipient, (made, total) = bytes.fromhex(field("repository")), field("recipient"), field("set").split()
    value = b""
    for at in range(1, 5):
        line = bytes.fromhex(field(str(at)).replace(" ", ""))
        check(blake3.blake3(bytes([number, at]) + line[:8]).digest()[:2] == line[8:], f"line {at} of share {number}")
        value += line[:8]
    hasher = blake3.blake3(derive_key_context="lifeboat.dev 2026 share")
    hasher.update(repository + bytes.fromhex(made) + bytes([number, threshold, count]) + value + recipient.encode())
    check(hasher.digest()[:4].hex() == total, f"the sum of share {number}")
    return number, value


def combine(shares):
    """The identity that the shares give: Lagrange's interpolation at 0, then bech32."""
    inverse = {a: next(b for b in range(1, 256) if times(a, b) == 1) for a in range(1, 256)}
    secret = bytearray(32)
    for x, value in shares:
        factor = 1
        for other in (number for number, _ in shares if number != x):
            factor = times(factor, times(other, inverse[x ^ other]))
        for at in range(32):
            secret[at] ^= times(value[at], factor)
    bits = "".join(f"{byte:08b}" for byte in secret) + "0000"
    data = [int(bits[at : at + 5], 2) for at in range(0, 260, 5)]
    prefix = "age-secret-key-"
    sum_ = 1
    for word in [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix] + data + [0] * 6:
        top, sum_ = sum_ >> 25, (sum_ & 0x1FFFFFF) << 5 ^ word
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            sum_ ^= generator if top >> bit & 1 else 0
    data += [(sum_ ^ 1) >> 5 * (5 - at) & 31 for at in range(6)]
    return (prefix + "1" + "".join("qpzry9x8gf2tvdw0s3jn54khce6mua7l"[word] for word in data)).upper()


def identity_of(paths):
    """An age identity from the file that holds it, or from files of shares."""
    texts = [open(path).read() for path in paths]
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip().startswith("AGE-SECRET-KEY-")]
    return lines[0] if lines else combine([read_share(text) for text in texts])


def main():
    parser = argparse.ArgumentParser(description="Reads a Lifeboat repository without Lifeboat.")
    parser.add_argument("--repository", required=True)
    parser.add_argument("--identity", required=True, action="append", help="a file of an identity, or of a share")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    command = commands.add_parser("restore")
    command.add_argument("reference", help="SOURCE or SOURCE@NUMBER")
    command.add_argument("target")
    arguments = parser.parse_args()
    try:
        identity = pyrage.x25519.Identity.from_str(identity_of(arguments.identity))
        repository = Repository(arguments.repository, identity)
        if arguments.command == "list":
            for source in repository.sources():
                for s in Lineage(repository, source).snapshots():
                    print(source, s.number, STATES[s.state], s.catalogue[4], s.catalogue[5], s.time_ms, sep="\t")
            return
        source, _, number = arguments.reference.partition("@")
        lineage = Lineage(repository, source)
        if number:
            snapshot = Snapshot(lineage, int(number))
        else:
            snapshot = next((s for s in lineage.snapshots() if STATES[s.state] != "quarantined"), None)
            check(snapshot, f"{source} has no snapshot that counts as latest")
        count = restore(snapshot, arguments.target)
        check(count <= snapshot.catalogue[4], "more entries than the catalogue says")
        print(f"restored {count} entries of {source}@{snapshot.number}")
    except (Broken, TooNew, WrongKey) as why:
        sys.exit(f"lifeboat_reader: {why}")


if __name__ == "__main__":
    main()
