"""The one line that the demo ends with: `demo_line.py SAMPLE_JSON SCORE_JSON`."""

import json
import sys
from pathlib import Path

sample = json.loads(Path(sys.argv[1]).read_text())
score = json.loads(Path(sys.argv[2]).read_text().splitlines()[-1])
totals = sample["totals"]
print(
    f"{totals['images']} images, {totals['values']} values, {totals['values_per_second']:.0f} values/s; "
    f"{score['items']} held-out digits at {score['mean_bits_per_dim']:.4f} bits/dim; see out/demo.png"
)
