"""The `isogloss` command: embeds and compares texts from a shell. Exit codes: 2 for wrong usage, 1 for other errors."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from isogloss.cli.arguments import InputError, Parser, UsageError, options, parser
from isogloss.cli.commands import COMMANDS
from isogloss.cli.output import Output
from isogloss.client import Client
from isogloss.errors import IsoglossError, printable

INTERRUPTED = 130  # the convention of shells: 128 + the number of the signal
BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Runs the command line `argv` and returns the exit code; for usage errors argparse exits, with code 2."""
    program = parser(environment)
    arguments = program.parse_args(argv)
    if sys.stdout is None:  # closed before the start
        return _failed("standard output is closed")
    _escape_unencodable(sys.stdout, sys.stderr)
    try:
        return _run(arguments, environment)
    except UsageError as error:
        verb: Parser = arguments.verb
        verb.error(str(error))
    except BrokenPipeError:
        return _broken_pipe()
    except (IsoglossError, InputError) as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    if arguments.command == "completion":
        sys.stdout.write(_completion_script(arguments.shell))
        return 0
    with Client(options=options(arguments, environment)) as client:
        code = COMMANDS[arguments.command](client, arguments, Output.of(sys.stdout, arguments, environment))
    sys.stdout.flush()
    return code


def _completion_script(shell: str) -> str:
    try:
        import shtab  # noqa: PLC0415 - an optional dependency, for this verb alone
    except ModuleNotFoundError:
        raise UsageError("completion requires shtab; install it with: pip install 'isogloss[completion]'") from None
    return shtab.complete(parser({}), shell)


def _failed(message: str) -> int:
    """Prints an error as one line, without control characters of the server; returns the exit code."""
    print(f"isogloss: {' '.join(printable(message).split())}", file=sys.stderr)
    return 1


def _broken_pipe() -> int:
    """Ends quietly after the reader, such as head, has closed the pipe."""
    # Python flushes stdout at exit, which would print another error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def _escape_unencodable(*streams: object) -> None:
    """Makes streams print characters outside their encoding as escapes, instead of failing."""
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
