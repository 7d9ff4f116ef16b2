"""Numbered records in every system of the platform: tests/lab/platform/writer.

A record is a number and the time at which it was written, in milliseconds. A system gets the next number when it has
acknowledged the one before, so each has all of them from 1 on. One that may be there or not is written again.
"""

import json
import os
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from http.client import HTTPException

# Records a second, in each system.
RATE = 1
state, node = sys.argv[1:3]


class Session:
    """A client in a pod, which answers each line with one line."""

    def __init__(self, namespace, pod, *client):
        command = [f"{state}/bin/kubectl", "-n", namespace, "exec", "-i", pod, "--", *client]
        self.client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line):
        print(line, file=self.client.stdin, flush=True)
        if not (answer := self.client.stdout.readline()):
            raise OSError(f"{self.client.args[-1]}: no answer")
        return answer.strip()


class Http:
    def __init__(self, address, authority=None, certificate=None, headers=None):
        context = ssl.create_default_context(cafile=authority)
        if certificate:
            context.load_cert_chain(f"{certificate}.crt", f"{certificate}.key")
        self.address, self.headers = address, headers or {}
        self.opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))

    def ask(self, path, content=None, method=None, kind="application/json"):
        headers = {"Content-Type": kind, **self.headers}
        request = urllib.request.Request(self.address + path, content, headers, method=method)
        with self.opener.open(request, timeout=10) as answer:
            return answer.read()


class MariaDB:
    def __init__(self):
        self.session = Session("shop", "orders-0", "mariadb", "--batch", "--skip-column-names", "--unbuffered")
        self.session.ask("CREATE DATABASE IF NOT EXISTS records; SET group_concat_max_len = 1 << 30; "
                         "CREATE TABLE IF NOT EXISTS records.records (number INT PRIMARY KEY, at BIGINT NOT NULL); SELECT 1;")

    def write(self, number, at):
        self.session.ask(f"INSERT IGNORE INTO records.records VALUES ({number}, {at}); SELECT 1;")

    def read(self):
        return json.loads(self.session.ask("SELECT COALESCE(JSON_OBJECTAGG(number, at), '{}') FROM records.records;"))


class Redis:
    def __init__(self):
        client = 'REDISCLI_AUTH=$PASSWORD exec redis-cli --tls --cacert /etc/shop/tls/ca.crt'
        self.session = Session("shop", "sessions-0", "sh", "-c", client)

    def write(self, number, at):
        answer = self.session.ask(f"HSETNX records {number} {at}")
        if answer not in ("0", "1"):
            raise OSError(answer)

    def read(self):
        words = json.loads(self.session.ask("EVAL \"return cjson.encode(redis.call('HGETALL', 'records'))\" 0")) or []
        return dict(zip(words[::2], words[1::2]))


class Vault:
    def __init__(self):
        with open(f"{state}/safe/vault.json") as kept:
            headers = {"X-Vault-Token": json.load(kept)["root_token"]}
        self.http = Http("https://vault.vault.svc:8200/v1/secret", f"{state}/secrets/vault/ca.crt", headers=headers)

    def write(self, number, at):
        self.http.ask(f"/data/records/{number}", json.dumps({"data": {"at": at}}).encode())

    def read(self):
        numbers = json.loads(self.http.ask("/metadata/records", method="LIST"))["data"]["keys"]
        return {n: json.loads(self.http.ask(f"/data/records/{n}"))["data"]["data"]["at"] for n in numbers}


class Kubernetes:
    """ConfigMaps."""

    def __init__(self):
        pki = f"{state}/kubernetes/pki"
        self.http = Http(f"https://{node}:6443/api/v1/namespaces", f"{pki}/ca.crt", f"{pki}/admin")
        self.make("", {"metadata": {"name": "records"}})

    def make(self, path, thing):
        try:
            self.http.ask(path, json.dumps(thing).encode())
        except urllib.error.HTTPError as error:
            if error.code != 409:  # it is there
                raise

    def write(self, number, at):
        self.make("/records/configmaps", {"metadata": {"name": f"record-{number}"}, "data": {"at": str(at)}})

    def read(self):
        found = json.loads(self.http.ask("/records/configmaps"))["items"]
        names = {one["metadata"]["name"].removeprefix("record-"): one for one in found}
        return {number: one["data"]["at"] for number, one in names.items() if number.isdigit()}


class Prometheus:
    """Samples of one series, by remote write."""

    def __init__(self):
        self.http = Http("http://prometheus.monitoring.svc:9090/api/v1")

    def write(self, number, at):
        def field(place, content):  # all of them are short
            return bytes([place << 3 | 2, len(content)]) + content

        label = field(1, field(1, b"__name__") + field(2, b"lab_record"))
        milliseconds = bytes((at >> shift & 0x7F) | 0x80 for shift in range(0, 35, 7)) + bytes([at >> 35])
        sample = field(2, b"\x09" + struct.pack("<d", number) + b"\x10" + milliseconds)
        request = field(1, label + sample)
        # In snappy's format, as it is.
        self.http.ask("/write", bytes([len(request), 60 << 2, len(request) - 1]) + request, kind="application/x-protobuf")

    def read(self):
        found = json.loads(self.http.ask("/query?" + urllib.parse.urlencode({"query": "lab_record[100d]"})))
        return {number: at * 1000 for one in found["data"]["result"] for at, number in one["values"]}


class Pictshare:
    """Pictures: each a row of PostgreSQL and a file."""

    def __init__(self):
        self.http = Http("http://pictshare-frontend.pictshare-production.svc/pictures")

    def write(self, number, at):
        self.http.ask(f"/{number}", f"P6 1 1 255\n123{at}".encode(), method="PUT")

    def read(self):
        pictures = {number: self.http.ask(f"/{number}") for number, _ in json.loads(self.http.ask(""))}
        return {number: picture[14:] for number, picture in pictures.items() if picture[14:].isdigit()}


SYSTEMS = {system.__name__.lower(): system for system in (Kubernetes, MariaDB, Pictshare, Prometheus, Redis, Vault)}


def now():
    return time.time_ns() // 1_000_000


def ledger(name):
    """Of what was acknowledged: the time, by number."""
    try:
        with open(f"{state}/records/{name}") as lines:
            return dict(tuple(map(int, line.split())) for line in lines if line.endswith("\n"))
    except FileNotFoundError:
        return {}


def keep_writing(name):
    number, system, turn = max(ledger(name), default=0) + 1, None, time.monotonic()
    with open(f"{state}/records/{name}", "a", buffering=1) as acknowledged:
        while True:
            try:
                system = system or SYSTEMS[name]()
                system.write(number, now())
                print(number, now(), file=acknowledged)
                number += 1
            except (OSError, ValueError, HTTPException) as error:
                print(f"{name}: record {number}: {error}", flush=True)
                system = None
            # What was slow is not made up for.
            time.sleep(max(0, turn + 1 / RATE - time.monotonic()))
            turn = time.monotonic()


def write():
    os.makedirs(f"{state}/records", exist_ok=True)
    with open(f"{state}/run/writer.pid", "w") as file:
        file.write(str(os.getpid()))
    for name in SYSTEMS:
        threading.Thread(target=keep_writing, args=[name]).start()


def look(name):
    """What is there, by its own data; and of what was acknowledged, what is not."""
    known = ledger(name)
    try:
        there = {int(number): int(at) for number, at in SYSTEMS[name]().read().items()}
    except (OSError, ValueError, HTTPException) as error:
        return {"error": str(error)}
    newest = max(there, default=0)
    lost = [{"number": number, "acknowledged": at} for number, at in known.items() if number not in there]
    return {
        "newest": newest, "written": there.get(newest), "count": len(there),
        "gaps": sorted(set(range(1, newest)) - set(there)), "acknowledged": len(known), "lost": lost,
    }


def report(names):
    seen = {name: look(name) for name in [name for name in names if name != "--json"] or SYSTEMS}
    if "--json" in names:
        return print(json.dumps(seen))
    for name, its in seen.items():
        if "error" in its:
            print(f"{name:11} {its['error']}")
            continue
        written = time.strftime("%FT%TZ", time.gmtime((its["written"] or 0) / 1000))
        lost = its["lost"] and f", from {its['lost'][0]['number']} to {its['lost'][-1]['number']}" or ""
        print(f"{name:11} newest {its['newest']} of {written}, {its['count']} records, {len(its['gaps'])} missing before; "
              f"acknowledged {its['acknowledged']}, of these lost {len(its['lost'])}{lost}")


match sys.argv[3:]:
    case ["write"]:
        write()
    case ["begun"]:
        sys.exit(not all(map(ledger, SYSTEMS)))
    case ["report", *names]:
        report(names)
