"""One process of a training for `test_processes.py`: `stopping.py STEP ARGUMENTS`, ended as by Ctrl-C before it takes step STEP + 1.

`{rank}` in an argument is the number of the process.
"""

import os
import sys

from cidm_ops.__main__ import main
from cidm_ops.training.trainer import Trainer

advance = Trainer.advance


def advance_or_end(trainer: Trainer) -> float:
    if trainer.step == int(sys.argv[1]):
        raise KeyboardInterrupt
    return advance(trainer)


Trainer.advance = advance_or_end  # type: ignore[method-assign]
sys.exit(main([argument.replace("{rank}", os.environ.get("RANK", "0")) for argument in sys.argv[2:]]))
