"""`isogloss-server`: the command line, and the dispatch of its verbs. Each verb has a module of its own."""

import argparse
import contextlib
import difflib
import os
import re
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from isogloss_server import logs, system
from isogloss_server._version import __version__
from isogloss_server.cli import serve
from isogloss_server.errors import StartupError
from isogloss_server.models.catalog import KNOWN
from isogloss_server.models.model_folder import BUNDLED

PROGRAM = "isogloss-server"
EPILOG = """\
example:
  isogloss-server serve                 serves the bundled model to this machine
  isogloss-server models list           lists the known models
"""
MODELS_EPILOG = """\
MODEL is a name from `models list` or a hub id OWNER/NAME, either with @REVISION, or a folder in the
sentence-transformers layout. Models of the hub are kept in the cache of the huggingface_hub library: HF_HOME sets its
folder, HF_TOKEN gives access to gated models, HF_HUB_OFFLINE=1 forbids network access.

exit status: 0 success, 1 a model is unavailable, damaged or not faithful, 2 an unknown model, invalid arguments or
settings

example:
  isogloss-server models pull paraphrase-multilingual-MiniLM-L12-v2
"""
# verb -> help, and nargs of its MODEL: none, one ("") or several ("+")
MODELS_VERBS = {
    "list": ("list the known models, and whether they are on this disk", None),
    "show": ("show a model's properties, and its files with their digests", ""),
    "pull": ("download models", "+"),
    "verify": ("run a model's self-test, and compare its vectors with sentence-transformers' if that is installed", ""),
}


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, with a suggestion, and exits with status 2."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Prints the error and exits."""
        invalid = re.match(r"argument (\S+): invalid choice: '(.*?)'", message)
        if invalid:
            name, word = invalid.groups()
            choices = [str(choice) for action in self._actions for choice in action.choices or ()]
            message = _unknown(name, word, choices, otherwise=f"choose from {', '.join(choices)}")
        print_error(message)
        raise SystemExit(2)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses arguments; rejects unknown ones in the parser of the verb, which knows the flags that are close."""
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            flags = [flag for action in self._actions for flag in action.option_strings]
            word = rest[0].partition("=")[0]
            kind = "flag" if word.startswith("-") else "argument"
            self.error(_unknown(kind, word, flags, otherwise=f"see {self.prog} --help"))
        return namespace, rest


def _unknown(kind: str, word: str, known: Iterable[str], *, otherwise: str) -> str:
    """Returns a message on an unknown word, with the known one that is closest to it, else a hint."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"unknown {kind} {word!r}; {f'did you mean {near[0]!r}?' if near else otherwise}"


def print_error(message: str) -> None:
    """Prints one line on stderr."""
    print(f"{PROGRAM}: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201


def parser(*, models: object = None) -> argparse.ArgumentParser:
    """Returns the parser of the command line; `models` makes it one for completion, as in serve.add_flags."""
    top = Parser(
        prog=PROGRAM,
        description="Multilingual embeddings over gRPC.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, title="verbs", metavar="VERB", parser_class=Parser)
    serve_parser = verbs.add_parser(
        "serve",
        help="serve models until SIGTERM or SIGINT",
        description="Serves models over gRPC until SIGTERM or SIGINT, then drains; a second signal stops at once.",
        epilog=serve.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    serve.add_flags(serve_parser, models=models)
    _add_models(verbs, models)
    completion = verbs.add_parser(
        "completion",
        help="print a script that completes this command in a shell",
        epilog='example:\n  eval "$(isogloss-server completion bash)"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=["bash", "zsh", "fish"])
    return top


def _add_models(verbs: "argparse._SubParsersAction[Parser]", completed: object) -> None:
    models = verbs.add_parser(
        "models",
        help="list, show, pull and verify models",
        description="Models of the hub and on this disk.",
        epilog=MODELS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = models.add_subparsers(dest="models_verb", required=True, title="verbs", metavar="VERB", parser_class=Parser)
    for verb, (text, count) in MODELS_VERBS.items():
        parser = inner.add_parser(verb, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if count is None:
            parser.add_argument("--json", action="store_true", help="print all properties as JSON")
        else:
            added = parser.add_argument("model", metavar="MODEL", nargs=count or None, help="name, hub id or folder")
            serve.complete_value(added, "MODEL", completed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program.

    Args:
        arguments: The command line without the program's name; None stands for the process's own.

    Returns:
        The exit status.

    Raises:
        SystemExit: The command line is invalid, or asks for help or the version.
    """
    flags = vars(parser().parse_args(arguments))
    verb = flags.pop("verb")
    try:
        match verb:
            case "completion":
                return _print_completion(flags["shell"])
            case "models":
                from isogloss_server.cli import models  # noqa: PLC0415 - imports the hub's library, which takes long

                return models.run(flags)
            case _:
                return serve.run(flags)
    except StartupError as error:
        print_error(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        print_error("interrupted; completely downloaded files are kept")
        return 128 + signal.SIGINT


def _print_completion(shell: str) -> int:
    import shtab  # noqa: PLC0415 - only this verb needs it

    print(shtab.complete(parser(models=_completed_models()), shell))  # noqa: T201
    return 0


def _completed_models() -> dict[str, object]:
    """Returns what shtab completes a model by: the known names, and folders."""
    from isogloss_server.models.providers.catalog import PROVIDERS  # noqa: PLC0415 - only this verb needs it

    hosted = [f"{kind}:{name}" for kind, provider in PROVIDERS.items() for name in provider.models]
    names = " ".join([BUNDLED, *(model.name for model in KNOWN), *hosted])
    function = "_isogloss_server_models"
    return {
        "bash": function,
        "zsh": function,
        "fish": f"({function})",
        "preamble": {
            "bash": f'{function}() {{ compgen -W \'{names}\' -- "$1"; compgen -d -- "$1"; }}',
            "zsh": f"{function}() {{ compadd -- {names}; _files -/; }}",
            "fish": f"function {function}; string split ' ' '{names}'; __fish_complete_directories; end",
        },
    }


def run() -> None:
    """Runs the program and exits the process without waiting for threads that still work, or for a full stderr."""
    system.open_closed_streams()
    logs.queue_stderr()
    try:
        status = main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except BrokenPipeError:  # the reader of stdout, such as `head`, has what it needs
        status = 128 + signal.SIGPIPE
    except BaseException:  # noqa: BLE001 - the end of the process
        sys.excepthook(*sys.exc_info())
        status = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    logs.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
