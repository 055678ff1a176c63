"""`make bench`: every benchmark of a few minutes, one after the other.

The long ones are run by name: `python -m benchmarks.ranks`.
"""

import os

from benchmarks import kd_step, loader, pixels, starts
from benchmarks.machine import describe

print(describe())
starts.main()
kd_step.main()
if "RETORT_DATA" in os.environ:
    pixels.main()
    loader.main()
else:
    print("pixels, loader: skipped, RETORT_DATA names no folder with imagenet-sample")
