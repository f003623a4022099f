#!/usr/bin/env python3
"""Three replicas behind a proxy, under load: are calls spread, and what do clients see when a replica is killed, vanishes,
drains, or all are replaced one by one?

    replicas.py [--binary PATH] [--proxy envoy|haproxy] [--hosts namespaces|loopback] [--seconds N] [--clients N]

With `namespaces` (as root; the default there) each replica, the proxy and the clients are hosts of their own, network
namespaces on one bridge, which are made and removed here; with `loopback` they are ports. Every image that comes back is
compared with what one undisturbed replica drew for the same seed. Prints a table; ends with 1 if anything was not as it
should be. Nothing that it started is left. Needs grpcio and numpy (`make replicas` sees to that), and Envoy from PyPI
(fetched by scripts/setup.py) or HAProxy from Debian.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent
REPOSITORY = DEPLOY.parent
MODEL = "digits"
CLASSES = 10
IMAGES = 64  # of a request: four times what a replica draws at once
SEEDS = 12  # different requests, which are made again and again
GRPC, METRICS, PROXY = 50051, 9464, 50050
PATIENCE = 180  # seconds, after which something hangs
STREAM = 'method="/pixeld.v1.GenerationService/StreamGenerateImages"'


class Wrong(Exception):
    """Something was not as it should be."""


# --- Hosts


class Hosts:
    """Where each party listens, and how a program is started there."""

    names = ("client", "proxy", "1", "2", "3")

    def __init__(self, prefix: str | None) -> None:
        self.prefix = prefix
        if prefix:
            self.address = {name: f"198.18.0.{i + 1}" for i, name in enumerate(self.names)}
        else:
            self.address = dict.fromkeys(self.names, "127.0.0.1")

    def port(self, name: str, base: int) -> int:
        """`base`, or another where all share one address."""
        return base if self.prefix else base + 10 * self.names.index(name)

    def command(self, name: str, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", f"{self.prefix}-{name}", *command] if self.prefix else command

    def link(self, name: str, state: str) -> None:
        """Pulls the cable of a host, or plugs it in again."""
        ip("-netns", f"{self.prefix}-lan", "link", "set", f"to-{name}", state)

    def make(self) -> None:
        lan = f"{self.prefix}-lan"
        ip("netns", "add", lan)
        ip("-netns", lan, "link", "add", "bridge", "type", "bridge")
        ip("-netns", lan, "link", "set", "bridge", "up")
        for name in self.names:
            host = f"{self.prefix}-{name}"
            ip("netns", "add", host)
            ip("-netns", lan, "link", "add", f"to-{name}", "type", "veth", "peer", "name", "lan", "netns", host)
            ip("-netns", lan, "link", "set", f"to-{name}", "master", "bridge", "up")
            ip("-netns", host, "address", "add", f"{self.address[name]}/24", "dev", "lan")
            ip("-netns", host, "link", "set", "lan", "up")
            ip("-netns", host, "link", "set", "lo", "up")

    def remove(self) -> None:
        for name in ("lan", *self.names):
            subprocess.run(["ip", "netns", "delete", f"{self.prefix}-{name}"], check=False, stderr=subprocess.DEVNULL)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


# --- What runs


class Replica:
    """One daemon, which can be started again."""

    def __init__(self, hosts: Hosts, name: str, binary: Path, models: Path, out: Path,
                 settings: tuple[str, ...] = ()) -> None:
        self.hosts, self.name, self.binary, self.models, self.settings = hosts, name, binary, models, settings
        self.target = f"{hosts.address[name]}:{hosts.port(name, GRPC)}"
        self.metrics = f"{hosts.address[name]}:{hosts.port(name, METRICS)}"
        self.log = open(out / f"replica-{name}.log", "ab")
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        settings = [f"metrics.listen={self.metrics}", "models.embedded=false", "engine.shards=1", "engine.slots=16",
                    "server.drain_timeout=60s", "log.filter=warn,pixeld::app=info", *self.settings]
        command = [str(self.binary), "serve", "--listen", self.target, "--models", str(self.models)]
        command += [word for setting in settings for word in ("--set", setting)]
        self.process = subprocess.Popen(self.hosts.command(self.name, command), stdout=subprocess.PIPE,
                                        stderr=self.log, text=True)
        for line in self.process.stdout:
            if line.strip() == "ready":
                return
        raise Wrong(f"replica {self.name} ended before it was ready: {self.log.name}")

    def stop(self, signal_number: int) -> float:
        """Sends a signal and waits for the end; seconds from one to the other. A drain must end by itself, with 0."""
        began = time.monotonic()
        self.process.send_signal(signal_number)
        code = self.process.wait(PATIENCE)
        if code != (0 if signal_number == signal.SIGTERM else -signal_number):
            raise Wrong(f"replica {self.name} ended with {code}")
        return time.monotonic() - began

    def read(self, series: str) -> float:
        """The sum of the samples whose name and labels begin with `series`; 0 while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=2) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return 0.0
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(series))

    def drawn(self) -> float:
        return self.read(f'pixeld_values_sampled_total{{model="{MODEL}"}}')


def envoy() -> str:
    """Where Envoy is, fetched before if it is not there: that takes the network, which the clients' namespace has not."""
    setup = [sys.executable, str(REPOSITORY / "scripts" / "setup.py"), "--print", "envoy"]
    return subprocess.run(setup, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def start_proxy(kind: str, hosts: Hosts, replicas: list[Replica], out: Path) -> subprocess.Popen[bytes]:
    """Runs the configuration that ships, with the addresses of these hosts put into it."""
    file = DEPLOY / "proxy" / {"envoy": "envoy.yaml", "haproxy": "haproxy.cfg"}[kind]
    text, port = file.read_text(), str(hosts.port("proxy", PROXY))

    def put(pattern: str, new: str) -> None:
        nonlocal text
        text, times = re.subn(pattern, lambda _: new, text, flags=re.MULTILINE)
        if times != 1:
            raise Wrong(f"{file.name} has {pattern} {times} times, expected once")

    if kind == "envoy":
        endpoint = "              - endpoint: {{address: {{socket_address: {{address: {0}, port_value: {1}}}}}}}"
        put(r"^ +- endpoint: .*pixeld-headless.*$",
            "\n".join(endpoint.format(*replica.target.split(":")) for replica in replicas))
        put(r"STRICT_DNS", "STATIC")
        put(r"port_value: 50050", f"port_value: {port}")
        command = [f"{envoy()}/envoy/_bin/envoy", "--log-level", "warn", "--concurrency", "1", "--base-id",
                   str(os.getpid() % 30000), "-c"]
    else:
        server = "    server replica-{0} {1} port {2}"
        put(r"^ +server-template .*$", "\n".join(
            server.format(replica.name, replica.target, replica.metrics.split(":")[1]) for replica in replicas))
        put(r"^resolvers dns\n(    .*\n)+", "")
        put(r":50050 ", f":{port} ")
        put(r"check port 9464 ", "check ")
        haproxy = shutil.which("haproxy") or "/usr/sbin/haproxy"
        command = [haproxy, "-db", "-f"]
    written = out / file.name
    written.write_text(text)
    log = open(out / "proxy.log", "ab")
    return subprocess.Popen(hosts.command("proxy", [*command, str(written)]), stdout=log, stderr=log)


# --- Load


class Load:
    """Clients that ask for the same requests again and again, and compare what comes with `expected`.

    Those that are `plain` never ask again: they show what the daemon and the proxy let through.
    """

    def __init__(self, target: str, clients: int, plain: int, expected: dict, options: list | None = None) -> None:
        self.target, self.expected, self.options = target, expected, options
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self.count = collections.Counter()
        self.errors: list[str] = []
        self.threads = [threading.Thread(target=self.work, args=(i, i >= clients), daemon=True)
                        for i in range(clients + plain)]

    def __enter__(self) -> "Load":
        self.before, self.began = AGAIN.total, time.monotonic()
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(PATIENCE)
        self.took = time.monotonic() - self.began
        if any(thread.is_alive() for thread in self.threads):
            self.errors.append("a client hangs")
        self.again = AGAIN.total - self.before

    def work(self, index: int, plain: bool) -> None:
        from pixeld.client import Client, Retry

        choose = random.Random(index)
        with Client(self.target, timeout=PATIENCE, retry=Retry(attempts=1) if plain else Retry(attempts=12),
                    options=self.options) as client:
            while not self.stopping.is_set():
                seed = choose.randrange(SEEDS)
                try:
                    outcome = "requests" if draw(client, seed) == self.expected[seed] else "differ"
                    error = None
                except Exception as caught:  # whatever a client can see counts
                    outcome, error = "failed", f"{type(caught).__name__}: {caught}"
                with self.lock:
                    self.count[("plain " if plain else "") + outcome] += 1
                    if error and not plain:
                        self.errors.append(error)
                    elif error:
                        self.count[f"plain {error[:100]}"] += 1

    def wait(self, requests: int) -> None:
        """Until so many requests more were answered."""
        upto = self.done() + requests
        until(lambda: self.done() >= upto, f"{requests} requests")

    def done(self) -> int:
        with self.lock:
            return self.count["requests"] + self.count["plain requests"]


class Again:
    """How often clients had to ask again."""

    total = 0


AGAIN = Again()


def count_again() -> None:
    """The client does not tell of the calls that it makes again: its waits are counted where it makes them."""
    from pixeld.client.retry import Backoff

    after = Backoff.after

    def counted(self: Backoff, error: Exception) -> float:
        wait = after(self, error)
        AGAIN.total += 1
        return wait

    Backoff.after = counted


def draw(client: object, seed: int) -> tuple[bytes, bytes]:
    made = client.sample(MODEL, IMAGES, classes=seed % CLASSES, seed=seed)  # of one class, hence one call
    return made.images.tobytes(), made.log_likelihoods.tobytes()


def until(holds, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise Wrong(f"waited {PATIENCE} s for {what}")
        time.sleep(0.02)


# --- The trial


class Trial:
    def __init__(self, arguments: argparse.Namespace, hosts: Hosts, scratch: Path) -> None:
        self.arguments, self.hosts = arguments, hosts
        self.out = REPOSITORY / "out" / "replicas"
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        models = scratch / "models"
        shutil.copytree(REPOSITORY / "models" / MODEL, models / MODEL)
        # Envoy asks another replica when one refuses; HAProxy cannot, and has to see in time that one is about to.
        settings = ("server.drain_delay=5s",) if arguments.proxy == "haproxy" else ()
        self.replicas = [Replica(hosts, name, arguments.binary, models, self.out, settings) for name in "123"]
        self.proxy: subprocess.Popen[bytes] | None = None
        self.target = f"{hosts.address['proxy']}:{hosts.port('proxy', PROXY)}"
        self.rows: list[list[str]] = []
        self.faults: list[str] = []

    def run(self) -> None:
        from pixeld.client import Client

        count_again()
        for replica in self.replicas:
            replica.start()
        with Client(self.replicas[0].target) as client:
            self.expected = {seed: draw(client, seed) for seed in range(SEEDS)}
        self.proxy = start_proxy(self.arguments.proxy, self.hosts, self.replicas, self.out)
        with Client(self.target, timeout=PATIENCE) as client:
            client.model(MODEL)
            if draw(client, 0) != self.expected[0]:
                raise Wrong("the proxy changes images")
        self.spread()
        self.client_side()
        self.kill()
        if self.hosts.prefix:
            self.vanish()
        self.drain()
        self.roll()

    def load(self, options: list | None = None, target: str | None = None) -> Load:
        clients = self.arguments.clients
        return Load(target or self.target, clients, max(1, clients // 4), self.expected, options)

    def spread(self) -> None:
        before = [replica.drawn() for replica in self.replicas]
        with self.load() as load:
            time.sleep(self.arguments.seconds)
        shares = [replica.drawn() - old for replica, old in zip(self.replicas, before)]
        self.row(f"spread by {self.arguments.proxy}", load, shares, plain=0)
        if min(shares) < 0.5 * sum(shares) / 3:
            self.faults.append(f"calls are spread unevenly: {shares} values")

    def client_side(self) -> None:
        """Without the proxy: what clients do that are given all addresses and deploy/service_config.json."""
        config = (DEPLOY / "service_config.json").read_text()
        target = "ipv4:" + ",".join(replica.target for replica in self.replicas)
        before = [replica.drawn() for replica in self.replicas]
        # A list of addresses is no name that a call could be addressed to; that of a service is, and needs no such option.
        options = [("grpc.service_config", config), ("grpc.default_authority", "pixeld")]
        with self.load(options, target) as load:
            time.sleep(self.arguments.seconds)
        shares = [replica.drawn() - old for replica, old in zip(self.replicas, before)]
        self.row("spread by clients", load, shares, plain=0)
        if min(shares) < 0.5 * sum(shares) / 3:
            self.faults.append(f"clients spread calls unevenly: {shares} values")

    def kill(self) -> None:
        victim = self.replicas[1]
        with self.load() as load:
            load.wait(5)
            until(lambda: victim.read("pixeld_images_running") > 0, "images in the making on replica 2")
            victim.stop(signal.SIGKILL)
            load.wait(20)
            victim.start()
            load.wait(5)
        self.row("one killed", load)
        if load.again == 0:
            self.faults.append("a replica was killed, and no client had to ask again: it had nothing to do")

    def vanish(self) -> None:
        """No process ends and no connection is closed: packets are lost, as when a machine loses power."""
        victim = self.replicas[2]
        with self.load() as load:
            load.wait(5)
            until(lambda: victim.read("pixeld_images_running") > 0, "images in the making on replica 3")
            self.hosts.link(victim.name, "down")
            load.wait(20)
            time.sleep(10)  # longer than the proxy takes to give up on what it waits for
            self.hosts.link(victim.name, "up")
            load.wait(10)
        self.row("one unplugged", load)
        # HAProxy lets streams wait for a machine that is gone until TCP gives up on it, which here is never.
        if load.again == 0 and self.arguments.proxy == "envoy":
            self.faults.append("a replica was unplugged, and no client had to ask again: it had nothing to do")

    def drain(self) -> None:
        victim = self.replicas[0]
        with self.load() as load:
            load.wait(5)
            until(lambda: victim.read("pixeld_images_running") > 0, "images in the making on replica 1")
            took = victim.stop(signal.SIGTERM)
            load.wait(10)
        self.row(f"one drained in {took:.1f} s", load, plain=0)
        victim.start()

    def roll(self) -> None:
        with self.load() as load:
            load.wait(5)
            for replica in self.replicas:
                replica.stop(signal.SIGTERM)
                load.wait(5)
                # Proxies look twice before they believe that one is gone; a process that is back before that loads its
                # models in their sight. A new pod is slower than this, and has another address.
                time.sleep(3)
                replica.start()
                load.wait(5)
        self.row("rolling restart", load, plain=0)

    def row(self, what: str, load: Load, shares: list[float] | None = None, plain: int | None = None) -> None:
        """Adds what came of a load to the table. plain: failures allowed to clients that never ask again, if bounded."""
        count = load.count
        done = count["requests"] + count["plain requests"]
        failed, differ = count["failed"], count["differ"] + count["plain differ"]
        seen = f"{count['plain failed']} of {count['plain requests'] + count['plain failed'] + count['plain differ']}"
        spread = " ".join(f"{share / max(sum(shares), 1):.0%}" for share in shares) if shares else ""
        self.rows.append([what, f"{load.took:.0f}", str(done), f"{done * IMAGES / load.took:.0f}", str(failed),
                          str(differ), str(load.again), seen, spread])
        print("  ".join(self.rows[-1]), file=sys.stderr, flush=True)
        for error in sorted(set(load.errors)):
            self.faults.append(f"{what}: {error}")
        if differ:
            self.faults.append(f"{what}: {differ} answers with other bytes")
        if plain is not None and count["plain failed"] > plain:
            errors = {name: n for name, n in count.items() if name.startswith("plain ") and ":" in name}
            self.faults.append(f"{what}: clients that never ask again saw {errors}")

    def table(self) -> str:
        head = ["", "s", "requests", "images/s", "failed", "other bytes", "asked again", "failed unaided",
                "share of replicas"]
        lines = [head, [":--", *["--:"] * 6, ":--", ":--"], *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def end(self) -> None:
        for process in [self.proxy, *(replica.process for replica in self.replicas)]:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = Path(os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target")
    built = [target / profile / "pixeld" for profile in ("release", "debug")]
    parser.add_argument("--binary", type=Path, default=next((path for path in built if path.is_file()), built[0]))
    parser.add_argument("--proxy", choices=["envoy", "haproxy"], default="envoy")
    parser.add_argument("--hosts", choices=["namespaces", "loopback"],
                        default="namespaces" if os.geteuid() == 0 else "loopback")
    parser.add_argument("--seconds", type=float, default=15, help="of the load that shows how calls are spread")
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # started by itself, in the namespace of the clients
    return parser.parse_args()


def main() -> None:
    arguments = arguments_of()
    if not arguments.binary.is_file():
        sys.exit(f"replicas: there is no {arguments.binary}: make build")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if arguments.proxy == "envoy":
        envoy()
    if arguments.hosts == "namespaces" and not arguments.inside:
        hosts = Hosts(f"pixeld-{os.getpid()}")
        try:
            hosts.make()
            again = [sys.executable, __file__, *sys.argv[1:], "--inside", hosts.prefix]
            child = subprocess.Popen(hosts.command("client", again))
            try:
                sys.exit(child.wait())
            finally:
                child.terminate()
                child.wait()
        finally:
            hosts.remove()
    with tempfile.TemporaryDirectory(prefix="pixeld-replicas-") as scratch, contextlib.ExitStack() as stack:
        trial = Trial(arguments, Hosts(arguments.inside), Path(scratch))
        stack.callback(trial.end)
        try:
            trial.run()
        except Exception as error:  # whatever it is, the table says how far it came
            trial.faults.append(f"{type(error).__name__}: {error}")
        print(trial.table())
        facts = {"binary": str(arguments.binary.relative_to(REPOSITORY)) if arguments.binary.is_relative_to(REPOSITORY)
                 else arguments.binary.name, "proxy": arguments.proxy, "hosts": arguments.hosts,
                 "clients": arguments.clients, "images of a request": IMAGES}
        print(json.dumps(facts))
    if trial.faults:
        sys.exit("\n".join(["replicas: not as it should be:", *trial.faults]))


if __name__ == "__main__":
    main()
