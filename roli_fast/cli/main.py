"""``roli-fast``: finds the subcommand and turns a user's mistake into one line and exit code 2."""

import argparse
import sys

from . import demo, doctor
from .errors import UserError

_COMMANDS = (demo, doctor)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="roli-fast", description="Adversarial attacks and training, fast.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in _COMMANDS:
        name = module.__name__.rpartition(".")[2]
        summary = (module.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except UserError as error:
        print(f"roli-fast {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
