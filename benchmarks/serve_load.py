"""`codetr serve` under load: throughput beside one-by-one prediction, latencies, overload, hostile requests, a stop.

    python -m benchmarks.serve_load CHECKPOINT --images DIR                      # all parts, about three minutes
    python -m benchmarks.serve_load CHECKPOINT --images DIR --parts overload --overload-s 600

Parts:
    throughput  images per second of `Detector.predict` in a loop, and of 1, 2, 4 and 8 clients of a server, in turn.
    latency     p50, p95 and p99 of requests that come at random times, at shares of that throughput.
    overload    more clients than the queue has places, which ask again at once: statuses, latencies of those that were
                answered, and the server's memory over time.
    hostile     every request of `tests/serving/hostile.py`, slow heads and slow bodies: status, time, and that it
                answers afterwards.
    stop        SIGTERM while clients ask: every request that was accepted is answered.

The server is a process of its own; the clients share the machine with it. Times are of the client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch

from codetr_cli.inference.detector import Detector
from codetr_cli.runtime.environment import benchmark_conditions
from tests.serving.client import FORM_TYPE, ask, form, post, request
from tests.serving.hostile import of_forms, of_http, of_images, of_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OUT = Path(__file__).parent / "results" / "serve_load.json"
HERE = Path(__file__).resolve().parent.parent
PARTS = ("throughput", "latency", "overload", "hostile", "stop")
CLIENTS = (1, 2, 4, 8)
LOADS = (0.5, 0.8, 1.2)
READ_TIMEOUT_S = 3.0
SAMPLES = 61


def main(argv: list[str] | None = None) -> int:
    """Writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="what is served")
    parser.add_argument("--images", type=Path, required=True, help="a folder of images")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--overload-s", type=float, default=60.0)
    parser.add_argument("--serve", default="", help="further options of codetr serve")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    table: dict[str, Any] = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    bodies = _bodies(args.images)
    for part in args.parts.split(","):
        table[part] = globals()[f"measure_{part}"](args, bodies)
        table[part]["conditions"] = _conditions(args, part)
        args.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        sys.stdout.write(f"{part}: {json.dumps({k: v for k, v in table[part].items() if k != 'conditions'})}\n")
        sys.stdout.flush()
    return 0


# --------------------------------------------------------------------------------------------------------------- parts


def measure_throughput(args: argparse.Namespace, bodies: Sequence[bytes]) -> dict[str, Any]:
    """Images per second, the server's and one by one in a process of its own, in turn."""
    detector = Detector.load(args.checkpoint, device=args.device)
    paths = sorted(args.images.iterdir())
    rates: dict[str, list[float]] = {"predict": [], **{f"{clients} clients": [] for clients in CLIENTS}}
    with _server(args) as server:
        for _ in range(args.rounds):
            started, count = time.perf_counter(), 0
            while time.perf_counter() - started < args.seconds:
                detector.predict(paths[count % len(paths)])
                count += 1
            rates["predict"].append(count / (time.perf_counter() - started))
            for clients in CLIENTS:
                found = asyncio.run(_closed_loop(server.url, bodies, clients, args.seconds))
                rates[f"{clients} clients"].append(found.rate)
    return {
        name: {"images_per_second": round(statistics.median(runs), 2), "runs": runs} for name, runs in rates.items()
    }


def measure_latency(args: argparse.Namespace, bodies: Sequence[bytes]) -> dict[str, Any]:
    """Percentiles at shares of the throughput that was measured just before."""
    rows = []
    with _server(args) as server:
        capacity = asyncio.run(_closed_loop(server.url, bodies, 4, args.seconds)).rate
        for load in LOADS:
            found = asyncio.run(_open_loop(server.url, bodies, load * capacity, 3 * args.seconds))
            rows.append({"load": load, "requests_per_second": round(load * capacity, 2), **found.summary()})
    return {"capacity_images_per_second": round(capacity, 2), "loads": rows}


def measure_overload(args: argparse.Namespace, bodies: Sequence[bytes]) -> dict[str, Any]:
    """Three times as many clients as the queue has places."""
    with _server(args, "--queue", "16") as server:
        memory: list[tuple[float, float]] = []
        found = asyncio.run(_closed_loop(server.url, bodies, 48, args.overload_s, pause=0.25, memory=memory))
        alive = ask(server.url, post(form(_image(bodies)))).status
    half = [mib for at, mib in memory if at > args.overload_s / 10]
    return {
        "seconds": args.overload_s,
        "clients": 48,
        "queue": 16,
        **found.summary(),
        "status_afterwards": alive,
        "memory_mib": [(round(at), round(mib)) for at, mib in memory[:: max(1, len(memory) // SAMPLES)]],
        "memory_growth_mib": round(statistics.mean(half[-len(half) // 4 :]) - statistics.mean(half[: len(half) // 4])),
    }


def measure_hostile(args: argparse.Namespace, bodies: Sequence[bytes]) -> dict[str, Any]:
    """Every hostile request, its answer and its time; and slow clients, many at the same time."""
    rows, wrong = [], []
    limits = ("--max-pixels", "4000000", "--max-body", "8", "--max-images", "4", "--read-timeout", str(READ_TIMEOUT_S))
    with _server(args, *limits) as server:
        cases = [*of_images(4_000_000), *of_forms(4), *of_json(4), *of_http(8_000_000)]
        for case in cases:
            started = time.perf_counter()
            answer = ask(server.url, case.sent)
            seconds = time.perf_counter() - started
            code = answer.json.get("error", {}).get("code", "") if answer.body else ""
            rows.append({"case": case.name, "status": answer.status, "code": code, "ms": round(1000 * seconds, 1)})
            if (answer.status, code) != (case.status, case.code):
                wrong.append(rows[-1])
        slow = asyncio.run(_slow_clients(server.url, bodies))
        alive = ask(server.url, post(form(_image(bodies)))).status
        memory = _memory_mib(server.url)
    return {"cases": len(rows), "wrong": wrong, "slow_clients": slow, "status_afterwards": alive, "memory_mib": memory,
            "slowest_ms": max(row["ms"] for row in rows), "rows": rows}  # fmt: skip


def measure_stop(args: argparse.Namespace, bodies: Sequence[bytes]) -> dict[str, Any]:
    """SIGTERM in the middle of a load, some times."""
    runs = []
    for _ in range(args.rounds):
        with _server(args) as server:
            found = asyncio.run(_stopped(server, bodies))
            found["exit_code"] = server.process.wait(60)
        runs.append(found)
    lost = sum(run["accepted_without_answer"] for run in runs)
    return {"runs": runs, "accepted_without_answer": lost}


# -------------------------------------------------------------------------------------------------------------- clients


@dataclass
class Found:
    """Answers to many requests."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)  # of those that were answered with detections
    retry_after: list[int] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.statuses[200] / self.seconds

    def add(self, status: int, headers: dict[str, str], seconds: float) -> None:
        """Takes note of an answer."""
        self.statuses[status] += 1
        if status == 200:
            self.latencies.append(seconds)
        if "retry-after" in headers:
            self.retry_after.append(int(headers["retry-after"]))

    def summary(self) -> dict[str, Any]:
        """For the result."""
        cuts = statistics.quantiles(self.latencies, n=100) if len(self.latencies) > 1 else [0.0] * 99
        return {
            "images_per_second": round(self.rate, 2),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "p50_ms": round(1000 * cuts[49]),
            "p95_ms": round(1000 * cuts[94]),
            "p99_ms": round(1000 * cuts[98]),
            **({"retry_after_s": [min(self.retry_after), max(self.retry_after)]} if self.retry_after else {}),
        }


class Client:
    """A connection that stays open; status 0 stands for one that was closed without an answer."""

    def __init__(self, url: str) -> None:
        found = urlsplit(url)
        self._address = (found.hostname, found.port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, sent: bytes) -> tuple[int, dict[str, str], bytes]:
        """Sends a request and reads its answer."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(*self._address)
            reader, writer = self._streams
            writer.write(sent)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0, {}, b""
        if headers.get("connection") == "close":
            self.close()
        return int(head[0].split()[1]), headers, body

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def _closed_loop(
    url: str,
    bodies: Sequence[bytes],
    clients: int,
    seconds: float,
    pause: float = 0.0,
    memory: list[tuple[float, float]] | None = None,
) -> Found:
    """Clients that ask again as soon as they have an answer, or after a pause if they were refused."""
    found, started = Found(), time.perf_counter()

    async def run(number: int) -> None:
        client, count = Client(url), number
        while time.perf_counter() - started < seconds:
            asked = time.perf_counter()
            status, headers, _ = await client.ask(bodies[count % len(bodies)])
            found.add(status, headers, time.perf_counter() - asked)
            count += clients
            if status != 200:
                await asyncio.sleep(pause)
        client.close()

    async def watch() -> None:
        while memory is not None:
            memory.append((time.perf_counter() - started, await asyncio.to_thread(_memory_mib, url)))
            await asyncio.sleep(2)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(run(number) for number in range(clients)))
    watching.cancel()
    found.seconds = time.perf_counter() - started
    return found


async def _open_loop(url: str, bodies: Sequence[bytes], rate: float, seconds: float) -> Found:
    """Requests at random times, whether others were answered or not."""
    found, started, chance = Found(), time.perf_counter(), random.Random(0)
    free: list[Client] = []
    running: set[asyncio.Task[None]] = set()

    async def one(number: int) -> None:
        client = free.pop() if free else Client(url)
        asked = time.perf_counter()
        status, headers, _ = await client.ask(bodies[number % len(bodies)])
        found.add(status, headers, time.perf_counter() - asked)
        free.append(client)

    due, number = 0.0, 0
    while due < seconds:
        await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
        task = asyncio.create_task(one(number))
        running.add(task)
        task.add_done_callback(running.discard)
        due, number = due + chance.expovariate(rate), number + 1
    await asyncio.gather(*running)
    found.seconds = time.perf_counter() - started
    return found


async def _slow_clients(url: str, bodies: Sequence[bytes]) -> dict[str, Any]:
    """Forty clients that never end their heads, twelve that never end their bodies, and two others meanwhile."""
    found = urlsplit(url)
    heads = {"Content-Type": FORM_TYPE, "Content-Length": "100000"}

    async def drip(start: bytes, limit: float) -> tuple[int, float]:
        reader, writer = await asyncio.open_connection(found.hostname, found.port)
        started = time.perf_counter()
        writer.write(start)
        answer = asyncio.create_task(reader.read())
        while not answer.done() and time.perf_counter() - started < limit:
            with suppress(OSError):
                writer.write(b"x")
                await writer.drain()
            await asyncio.wait([answer], timeout=0.3)
        writer.close()
        text = answer.result() if answer.done() and not answer.exception() else b""
        return (int(text.split()[1]) if text.startswith(b"HTTP") else 0), time.perf_counter() - started

    slow = [drip(b"GET /healthz HTTP/1.1\r\nX-Slow: ", 40) for _ in range(40)]
    body = request("POST", "/v1/detect", heads) + form(_image(bodies))[:200]
    slow += [drip(body, 40) for _ in range(12)]
    tasks = [asyncio.create_task(each) for each in slow]
    await asyncio.sleep(0.5)
    meanwhile = await _closed_loop(url, bodies, 2, 2.0)
    ended = await asyncio.gather(*tasks)
    statuses = {"heads": Counter(s for s, _ in ended[:40]), "bodies": Counter(s for s, _ in ended[40:])}
    return {
        **{kind: {str(status): count for status, count in counts.items()} for kind, counts in statuses.items()},
        "head_s": round(max(seconds for _, seconds in ended[:40]), 1),
        "body_s": round(max(seconds for _, seconds in ended[40:]), 1),
        "others_meanwhile": meanwhile.summary(),
    }


async def _stopped(server: Served, bodies: Sequence[bytes]) -> dict[str, Any]:
    """Twelve clients when the server is asked to stop; they go until nothing answers."""
    answers: Counter[str] = Counter()
    unanswered_before = unanswered_after = 0
    stopped_at = 0.0

    async def run(number: int) -> None:
        nonlocal unanswered_before, unanswered_after
        client = Client(server.url)
        while True:
            sent = time.perf_counter()
            status, _, body = await client.ask(bodies[number % len(bodies)])
            if status == 0:
                # A connection that the server had closed, or that it never took: nothing was accepted.
                if stopped_at and sent > stopped_at:
                    unanswered_after += 1
                    return
                unanswered_before += 1
                return
            answers[f"{status}"] += 1
            if status == 200:
                json.loads(body)
            else:
                await asyncio.sleep(0.02)

    tasks = [asyncio.create_task(run(number)) for number in range(12)]
    await asyncio.sleep(2.0)
    stopped_at = time.perf_counter()
    server.process.send_signal(signal.SIGTERM)
    await asyncio.gather(*tasks)
    return {
        "answers": dict(answers),
        "accepted_without_answer": unanswered_before,
        "connections_refused_after_the_end": unanswered_after,
    }


# --------------------------------------------------------------------------------------------------------------- server


@dataclass
class Served:
    """A server of its own process."""

    process: subprocess.Popen[str]
    url: str


@contextmanager
def _server(args: argparse.Namespace, *options: str) -> Iterator[Served]:
    words = [args.checkpoint, "--device", args.device, "--port", "0", "--json", *args.serve.split(), *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "codetr_cli", "serve", *words],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the server did not start: {text}")
            text += line
        yield Served(process, json.loads(text)["url"])
    finally:
        process.terminate()
        process.wait(60)


def _memory_mib(url: str) -> float:
    """Main memory of the server."""
    text = ask(url, request("GET", "/metrics", {"Connection": "close"})).body.decode()
    return round(float(text.partition("\ncodetr_resident_memory_bytes ")[2].split()[0]) / 2**20, 1)


def _bodies(folder: Path) -> list[bytes]:
    """A request for each image of a folder."""
    return [post(form(path.read_bytes())) for path in sorted(folder.iterdir())]


def _image(bodies: Sequence[bytes]) -> bytes:
    """The bytes of the first image."""
    return bodies[0].partition(b'.png"\r\n\r\n')[2].rpartition(b"\r\n--")[0]


def _conditions(args: argparse.Namespace, part: str) -> dict[str, Any]:
    words = [f"--parts {part}", *([f"--serve '{args.serve}'"] if args.serve else [])]
    if part == "overload":
        words.append(f"--overload-s {args.overload_s:g}")
    found = benchmark_conditions(torch.device(args.device))
    command = " ".join(["python -m benchmarks.serve_load CHECKPOINT --images DIR", *words])
    return {"command": command, "note": args.note, "threads": found["threads"], "cpu": found["cpu"],
            "cpus": found["cpus"], "versions": found["versions"]}  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
