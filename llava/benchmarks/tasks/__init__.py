"""One module per benchmark; each defines `BENCHMARK`.

The environment variable LLAVA_BENCHMARKS names further folders of such modules, joined like PATH.
"""

import os

__path__ += [folder for folder in os.environ.get("LLAVA_BENCHMARKS", "").split(os.pathsep) if folder]
