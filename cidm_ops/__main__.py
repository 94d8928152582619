"""The command line: `cidm` or `python -m cidm_ops`. What can go wrong is one line on stderr and exit code 2."""

import argparse
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from .cli import bank, bench, benchmark, cluster, contrast, demo, doctor, doodle, edit, evaluate, generate, train, weave, wish
from .printable import one_line
from .training.stops import end_as_interrupts

COMMANDS = {
    "demo": (demo, "learn three Doodle concepts, paint and score them, write a report"),
    "train": (train, "learn a concept from a folder of pictures into a bank"),
    "contrast": (contrast, "tell the words of new concepts apart from each other and from those of a bank, before training"),
    "generate": (generate, "paint prompts with the concepts of a bank"),
    "edit": (edit, "paint things of a bank into a photo, each where a mask is"),
    "weave": (weave, "weave concepts into a picture, which keeps its layout and its background"),
    "wish": (wish, "paint what somebody would like to see, by a picture of it or a bank, and keep the best of some"),
    "evaluate": (evaluate, "paint every concept in every prompt, score the pictures, write a report"),
    "benchmark": (benchmark, "learn ten concepts in order by every method, score them, compare"),
    "doctor": (doctor, "what a file, a folder, a bank or a checkpoint is, what of it would be used, and why the rest not"),
    "bench": (bench, "compare sides in one run, in turns, on full-size models with random weights"),
}
GROUPS = {
    "bank": (bank, "look into a concept bank and keep it"),
    "cluster": (cluster, "many concepts, pictures and scores on the machines of a Ray cluster"),
    "doodle": (doodle, "the model that ships with the pack"),
}
CLUSTER = ("ray", "fsspec")  # what comes with the extra `cluster` alone


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 2 for an input that cannot work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack a letter of a person's text
    options = arguments().parse_args(argv)
    try:
        with end_as_interrupts():
            options.run(options)
    except ModuleNotFoundError as error:
        extra = "cluster" if (error.name or "").partition(".")[0] in CLUSTER else "headless"
        return refuse(f"{error}: install it with pip install 'cidm[{extra}]'")
    except KeyError as error:
        return refuse(error.args[0])
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        return refuse(error)
    except RuntimeError as error:
        from .training.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return refuse(f"memory is short: paint or train at a smaller size, or free memory ({str(error).splitlines()[0]})")
    except KeyboardInterrupt:
        return refuse("stopped; what was finished before is on disk")
    return 0


def refuse(reason: object) -> int:
    """Prints why a command did not run, in one line on stderr, and returns the exit code for that."""
    said = one_line(reason) or ("there is not enough memory" if isinstance(reason, MemoryError) else type(reason).__name__)
    print(f"cidm: {said}", file=sys.stderr)
    return 2


def arguments() -> argparse.ArgumentParser:
    """The parser of the whole command line; what it gives has the command to call as ``run``."""
    parser = argparse.ArgumentParser("cidm", description="Learn one concept after another into a bank, and paint them.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=module.run)
        module.add_arguments(command)
    for name, (module, text) in GROUPS.items():
        group = commands.add_parser(name, help=text)
        module.add_commands(group.add_subparsers(required=True, metavar="COMMAND"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
