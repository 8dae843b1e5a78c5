"""The `isogloss` command: embeds and compares texts from a shell. Exit codes: 2 for usage, 1 for other errors."""

import os
import sys
from collections.abc import Mapping, Sequence

from isogloss.cli.arguments import UsageError, options, parser
from isogloss.cli.commands import COMMANDS
from isogloss.cli.completion import script
from isogloss.cli.output import Output
from isogloss.client import Client
from isogloss.errors import IsoglossError

INTERRUPTED = 130  # as shells count: 128 and the signal's number
BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Runs the command that `argv` spells and returns its exit code; argparse exits by itself, 2 for wrong usage."""
    parsing = parser(environment)
    arguments = parsing.parse_args(argv)
    if sys.stdout is None:  # closed before the start
        return _failed("standard output is closed")
    _make_tolerant(sys.stdout, sys.stderr)
    try:
        if arguments.command == "completion":
            sys.stdout.write(script(arguments.shell, parser({})))
            return 0
        with Client(options=options(arguments, environment)) as client:
            code = COMMANDS[arguments.command](client, arguments, Output.of(sys.stdout, arguments, environment))
        sys.stdout.flush()
    except UsageError as error:
        parsing.error(str(error))
    except BrokenPipeError:
        return _pipe_closed()
    except (IsoglossError, OSError, UnicodeDecodeError) as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _failed(message: str) -> int:
    print(f"isogloss: {' '.join(message.split())}", file=sys.stderr)
    return 1


def _pipe_closed() -> int:
    # The reader, such as head, has seen enough. Python would complain again when it flushes stdout at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def _make_tolerant(*streams: object) -> None:
    """Lets characters that a terminal's encoding lacks be printed as escapes, instead of failing."""
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
