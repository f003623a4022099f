"""Calls replicas with the standard Python stack and the service configuration that ships: deploy/service_config.json.

    balance.py both FIRST,SECOND     both serve: calls are spread
    balance.py healthy FIRST,SECOND  the first drains: every call goes to the second, since health says so
    balance.py blind FIRST,SECOND    the first drains, nobody looks at health: what it refuses is retried at the second

The second has twice the slots of the first, which tells them apart.
"""

import collections
import json
import sys
from pathlib import Path

from pixeld.client import Client, Retry

CALLS = 20


def main(mode: str, addresses: str) -> None:
    config = json.loads((Path(__file__).parents[2] / "deploy" / "service_config.json").read_text())
    if mode == "blind":
        del config["healthCheckConfig"]
    # A list of addresses is no name that a call could be addressed to.
    options = [("grpc.service_config", json.dumps(config)), ("grpc.default_authority", "pixeld")]
    with Client(f"ipv4:{addresses}", timeout=20, retry=Retry(attempts=1), options=options) as client:
        def answered() -> int:
            """Slots of the replica that answers the next call."""
            return client.models()[0].max_running_images

        if mode != "healthy":
            # Until both are connected, one gets all calls.
            seen: set[int] = set()
            for _ in range(2000):
                seen.add(answered())
                if len(seen) == 2:
                    break
        slots = collections.Counter(answered() for _ in range(CALLS))
        if mode == "both":
            assert len(slots) == 2 and min(slots.values()) >= CALLS // 4, slots
        elif mode == "healthy":
            assert list(slots.values()) == [CALLS] and max(slots) == 8, slots
        else:
            # The first answers for its models until it ends, and refuses to draw: retries find the other.
            assert len(slots) == 2 and min(slots.values()) >= CALLS // 4, slots
        for seed in range(6):
            if seed % 2:
                answered()  # one more call between, or every second one, which draws, would go to the same replica
            assert client.sample("steady", seed=seed).images.any()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
