"""`isogloss-server`: argv -> Settings -> serve, or one of the smaller verbs."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from isogloss_server import logs
from isogloss_server._version import __version__
from isogloss_server.cli.serve import add_flags
from isogloss_server.errors import StartupError
from isogloss_server.settings.declarations import SettingsError
from isogloss_server.settings.sources import load, silence_grpc, unknown_variables

PROGRAM = "isogloss-server"


EPILOG = """\
example:
  isogloss-server serve                 the bundled model, for this machine alone
  isogloss-server models list           the models that have a name
"""


SERVE_EPILOG = """\
A setting is its flag, else its variable, else its key in the TOML file that --config names, else the default.

exit status: 0 drained, 1 could not start, 2 wrong settings, 128 + signal stopped at once

example:
  isogloss-server serve --host 0.0.0.0 --port 50051 --log-format json --drain-delay-s 5
"""


MODELS_EPILOG = """\
MODEL is a name of the list, a hub id OWNER/NAME, either with @REVISION, or a folder in the sentence-transformers
layout. Models of the hub lie in the cache of its own library: HF_HOME says where, HF_TOKEN opens gated ones,
HF_HUB_OFFLINE=1 forbids to ask.

exit status: 0 well, 1 a model cannot be had or is not as it should be, 2 wrong words or settings

example:
  isogloss-server models pull paraphrase-multilingual-MiniLM-L12-v2
"""


# verb -> help, and what its MODEL is: nothing, one, or several
MODELS_VERBS = {
    "list": ("the models that have a name, and whether they are on this disk", None),
    "show": ("what is known of a model, and its files with their digests", ""),
    "pull": ("download models", "+"),
    "verify": (
        "load a model, and hold its vectors against those of sentence-transformers, where that is installed",
        "",
    ),
}


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line; exit status 2."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Writes the line and ends the program."""
        print_error(message)
        raise SystemExit(2)


def print_error(message: str) -> None:
    """Writes one line on stderr."""
    print(f"{PROGRAM}: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201


def parser() -> argparse.ArgumentParser:
    """Returns the command line's grammar."""
    top = Parser(
        prog=PROGRAM,
        description="Multilingual embeddings over gRPC.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, title="verbs", metavar="VERB", parser_class=Parser)
    serve = verbs.add_parser(
        "serve",
        help="serve models until SIGTERM or SIGINT",
        description="Serves models over gRPC until SIGTERM or SIGINT, then drains; a second signal stops at once.",
        epilog=SERVE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(serve)
    _add_models(verbs)
    completion = verbs.add_parser(
        "completion",
        help="print a script that completes this command in a shell",
        epilog='example:\n  eval "$(isogloss-server completion bash)"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=["bash", "zsh", "fish"])
    return top


def _add_models(verbs: "argparse._SubParsersAction[Parser]") -> None:
    models = verbs.add_parser(
        "models",
        help="list, show, pull and verify models",
        description="Models on the hub and on this disk.",
        epilog=MODELS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = models.add_subparsers(dest="models_verb", required=True, title="verbs", metavar="VERB", parser_class=Parser)
    for verb, (text, count) in MODELS_VERBS.items():
        parser = inner.add_parser(verb, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if count is None:
            parser.add_argument("--json", action="store_true", help="as JSON, with all that is known of each")
        else:
            parser.add_argument("model", metavar="MODEL", nargs=count or None, help="name, hub id or folder")


def print_completion(shell: str) -> int:
    """Prints the script of a shell; returns the exit status."""
    import shtab  # noqa: PLC0415 - for this verb alone

    print(shtab.complete(parser(), shell))  # noqa: T201
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    flags = vars(parser().parse_args(arguments))
    match flags.pop("verb"):
        case "completion":
            return print_completion(flags["shell"])
        case "models":
            return run_models(flags)
        case _:
            return run_server(flags)


def run_models(flags: dict[str, Any]) -> int:
    """Runs a verb of `models`; returns the exit status."""
    from isogloss_server.cli import models  # noqa: PLC0415 - with the hub's library, which the server starts without

    try:
        return models.run(flags)
    except StartupError as error:
        print_error(str(error))
        return 1
    except SettingsError as error:
        print_error(str(error))
        return 2
    except KeyboardInterrupt:
        print_error("stopped; what arrived whole is kept")
        return 128 + signal.SIGINT


def run_server(flags: dict[str, Any]) -> int:
    """Serves until it is stopped; returns the exit status."""
    try:
        loaded = load(flags)
    except SettingsError as error:
        print_error(str(error))
        return 2
    logs.configure(loaded.log_level, loaded.log_format)
    for line in unknown_variables():
        logs.warning(line)
    silence_grpc()
    try:
        # Only now: wrong settings are told at once, before gRPC and numpy are loaded.
        import uvloop  # noqa: PLC0415

        from isogloss_server.app import serve  # noqa: PLC0415

        return uvloop.run(serve(loaded))
    except StartupError as error:
        print_error(str(error))
        return 1
    except KeyboardInterrupt:  # before the signals are ours
        return 128 + signal.SIGINT


def run() -> None:
    """Runs the program and ends the process, whatever its threads still do: nobody waits for them any more."""
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
