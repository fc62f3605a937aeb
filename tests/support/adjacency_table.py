"""`python -m tests.support.adjacency_table --tries 100 [NAME…]`: right verdicts, and their time."""

import argparse
import statistics
import sys
from collections import Counter

import trio

from netsetup.adjacency import Verdict
from tests.support.adjacency_pair import built, differences, pair_on
from tests.support.adjacency_places import NETWORKS

TRIES_A_BUILD = 25  # a listening port listens for so long only


def _spread(rising_ms: list[float]) -> str:
    p95_ms = rising_ms[len(rising_ms) * 95 // 100]
    return f"p50 {statistics.median(rising_ms):6.1f} p95 {p95_ms:6.1f} max {rising_ms[-1]:6.1f} ms"


async def _table(names: list[str], tries: int) -> int:
    wrong = 0
    for name in names:
        network = NETWORKS[name]
        results: list[tuple[Verdict, float, float]] = []
        while len(results) < tries:
            with built(network) as ground:
                async with pair_on(ground) as pair:
                    await pair.probe(network)
                    more = min(TRIES_A_BUILD, tries - len(results))
                    results += [await pair.probe(network) for _ in range(more)]
        bad = Counter(text for r in results for text in differences(r[0], network.truth))
        good = sum(not differences(r[0], network.truth) for r in results)
        wrong += tries - good
        asking, whole = (sorted(r[part] * 1000 for r in results) for part in (1, 2))
        print(
            f"{name:30} {network.truth.adjacency:13} {good:3}/{tries}  "
            f"ask {_spread(asking)}  whole {_spread(whole)}",
            *(f"\n    {count}x {text}" for text, count in bad.items()),
            flush=True,
        )
    return wrong


if __name__ == "__main__":
    _parser = argparse.ArgumentParser()
    _parser.add_argument("--tries", type=int, default=3)
    _parser.add_argument("names", nargs="*")
    _options = _parser.parse_args()
    sys.exit(bool(trio.run(_table, _options.names or list(NETWORKS), _options.tries)))
