"""What the live tests share: a daemon of the binary that `PIXELD` names, and a connection to it that can be cut."""

import os
import re
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).parents[2] / "models"
PIXELD = os.environ["PIXELD"]


class Daemon:
    """A daemon with the packages below `models`, at `address` once it is ready; other settings as for `--set`."""

    def __init__(self, models: Path, *settings: str, listen: str = "127.0.0.1:0") -> None:
        command = [PIXELD, "serve", "--listen", listen, "--models", str(models)]
        command += [argument for setting in settings for argument in ("--set", setting)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        listening = re.fullmatch(r"listening on (\S+)\n", line)
        assert listening, f"the daemon said {line!r}"
        self.address = listening[1]
        assert self.process.stdout.readline() == "ready\n", "the models did not load"

    def __enter__(self) -> "Daemon":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def kill(self) -> None:
        """Ends it as a fault would."""
        self.process.kill()
        self.stop()

    def stop(self) -> None:
        """Ends it, if it has not ended."""
        self.process.terminate()
        self.process.wait(timeout=60)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Proxy:
    """Passes bytes between clients and `target`, and breaks the n-th connection after `cuts[n]` bytes of answers."""

    def __init__(self, target: str, *cuts: int) -> None:
        host, port = target.split(":")
        self.target = host, int(port)
        self.cuts = list(cuts)
        self.made = 0  # cuts
        self.passed = 0  # bytes of answers
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:{}".format(self.listener.getsockname()[1])
        threading.Thread(target=self.accept, daemon=True).start()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()

    def accept(self) -> None:
        """Serves whoever comes, until the listener is closed."""
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.target)
            left = self.cuts.pop(0) if self.cuts else None
            threading.Thread(target=self.carry, args=(client, server, False, None), daemon=True).start()
            threading.Thread(target=self.carry, args=(server, client, True, left), daemon=True).start()

    def carry(self, source: Any, sink: Any, answers: bool, left: int | None) -> None:
        """One direction of a connection; ends both ends when one ends, or after `left` bytes."""
        try:
            while data := source.recv(1 << 16):
                if left is not None:
                    data, left = data[:left], left - len(data)
                sink.sendall(data)
                if answers:
                    self.passed += len(data)
                if left is not None and left <= 0:
                    # A client forgets what it has not read when a connection breaks, and shall read some of it.
                    time.sleep(0.03)
                    self.made += 1
                    break
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()
