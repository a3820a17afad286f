"""This benchmark measures how long it is from the command to the first step: `python benchmarks/start.py --layers 50`.

It takes any flags of modeling.py. It prints the seconds until the first batch is ready in a new process, and the most memory
that the process holds until the end of the first step.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path

if "--began" not in sys.argv:
    raise SystemExit(subprocess.call([sys.executable, __file__, "--began", str(time.time()), *sys.argv[1:]]))

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch

import modeling
from settings.arguments import parse

began, flags = float(sys.argv[2]), sys.argv[3:]
run = modeling.start(parse([*flags, "--quiet"]))
run.model.train()
inputs, targets = next(run.batches(0))
ready = time.time() - began
run.move_masks(0, 0)
modeling.train_step(run, inputs, targets)
unit = 1 if sys.platform == "darwin" else 1024
held = f"{unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9:.2f} GB of the process"
if run.engine.device == "cuda":
    held += f", {torch.cuda.max_memory_allocated() / 1e9:.2f} GB on the device"
print(f"{run.settings.network.arch}: first step after {ready:.2f} s; {held}")
