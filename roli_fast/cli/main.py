"""``roli-fast``: finds the subcommand and turns a user's mistake into one line and exit code 2."""

import argparse
import importlib
import sys
from typing import NoReturn

from .. import __version__
from .errors import RunError, UserError

# A subcommand is a module of this package with add_arguments(parser) and run(arguments). It is imported
# when it is asked for: doctor must run where the ops cannot be imported.
_COMMANDS = {
    "bench": "measure our attack against every peer that is installed, side by side",
    "demo": "train on real digits, from a probed head and from a random one, and show what it buys",
    "doctor": "say what a bug report needs: versions, devices, and which backends run",
    "eval": "clean and robust accuracy of a trained model, overall and per class",
    "train": "probe and finetune a robust backbone adversarially, or either",
    "report": "write one page about finished runs: curves, robustness, cost, checks, examples, comparison",
    "transfer": "estimate how much robustness a backbone hands on: sensitivity, bounds, probe or finetune",
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    command = argv[0] if argv else ""
    try:
        arguments = _parse(argv, command)
        arguments.run(arguments)
    except (UserError, ImportError) as error:
        print(f"roli-fast {command}: {error}", file=sys.stderr)
        return 2
    except (RunError, OSError) as error:  # a full disk, a file that goes
        print(f"roli-fast {command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _parse(argv: list[str], command: str) -> argparse.Namespace:
    parser = _Parser(prog="roli-fast", description="Adversarial attacks and training, fast.")
    parser.add_argument("--version", action="version", version=f"roli-fast {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, summary in _COMMANDS.items():
        subparser = commands.add_parser(name, help=summary, description=summary)
        if name == command:
            module = importlib.import_module(f".{name}", __package__)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
