"""Runs the conformance suite and prints what it found of every family, as a Markdown table.

    python3 scripts/conformance.py          # `make conformance`
"""

import os
import subprocess
import sys
import tempfile
from collections import defaultdict

# Law in the suite, heading, and whether its numbers are differences, of which the largest counts, or comparisons that held.
LAWS = [
    ("step", "step = pass, nats", True),
    ("sum", "sums to 1", True),
    ("causal", "causal, steps", False),
    ("field", "sees its field, pairs", False),
    ("reference", "= PyTorch, nats", True),
    ("seeds", "same samples as PyTorch", False),
    ("crowd", "alone = crowded, steps", False),
    ("score", "score = stream, nats", True),
]
# What is not compared, and why; any other gap is a law that did not run.
GAPS = {
    ("toy", "field"): "a line of arithmetic, in no framework",
    ("toy", "reference"): "the same",
    ("toy", "seeds"): "the same",
    ("torchscript", "field"): "what somebody else's module sees is not known beforehand",
    ("multi_scale", "field"): "compared of its two models, under their own families",
}


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        found = os.path.join(scratch, "found")
        command = ["cargo", "test", "--locked", "--test", "conformance"]
        code = subprocess.run(command, env=os.environ | {"PIXELD_CONFORMANCE": found}, stdout=sys.stderr).returncode
        if code != 0:
            return code
        numbers: dict[tuple[str, str], list[float]] = defaultdict(list)
        with open(found, encoding="utf-8") as lines:
            for line in lines:
                family, law, number = line.split("\t")
                numbers[family, law].append(float(number))
    families = sorted({family for family, _ in numbers})
    missing = [(family, law) for family in families for law, _, differs in LAWS
               if not (len if differs else sum)(numbers.get((family, law), [])) and (family, law) not in GAPS]
    print("| family | " + " | ".join(heading for _, heading, _ in LAWS) + " |")
    print("| :-- |" + " --: |" * len(LAWS))
    for family in families:
        cells = []
        for law, _, differs in LAWS:
            some = numbers.get((family, law))
            cells.append("" if not some else f"{max(some):.0e}" if differs else f"{sum(some):,.0f}")
        print(f"| {family} | {' | '.join(cells)} |")
    for family, law in missing:
        print(f"conformance: nothing was compared of {family}: {law}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
