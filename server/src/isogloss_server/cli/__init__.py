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
  isogloss-server keys list             lists the API keys of callers
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

KEYS_EPILOG = """\
The file has the SHA-256 of each key, never a key itself. `isogloss-server serve --keys-file FILE` reads it, and reads
it again within a second of a change. A client sends its key as ISOGLOSS_API_KEY or ClientOptions.api_key.

exit status: 0 success, 2 an unknown name, invalid arguments, or a file that is invalid or cannot be written

example:
  isogloss-server keys add search --keys-file keys.json --texts-per-minute 60000
  isogloss-server keys rotate search --keys-file keys.json --overlap-hours 24
"""
# verb -> help, and that of its NAME, if it has one
KEYS_VERBS = {
    "add": ("add a key, and print it once", "name of the caller; several keys may have the same"),
    "list": ("list the keys, which cannot be printed again", ""),
    "revoke": ("remove the keys of a name, or one key by its id", "name of the caller, or id of a key"),
    "rotate": ("add a key with the rights of the newest one of a name, and let the older ones expire", "name"),
}
# flag -> its verbs, and the arguments of argparse
KEYS_FLAGS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "--model": (
        ("add",),
        {"action": "append", "default": [], "metavar": "NAME", "help": "model that it may use; repeatable (all)"},
    ),
    "--method": (
        ("add",),
        {
            "action": "append",
            "default": [],
            "metavar": "METHOD",
            "help": "method that it may call: Embed, EmbedStream or Similarity; repeatable (all)",
        },
    ),
    "--texts-per-minute": (
        ("add",),
        {"type": int, "default": 0, "metavar": "TEXTS", "help": "quota; 0 = no limit (0)"},
    ),
    "--tokens-per-minute": (
        ("add",),
        {"type": int, "default": 0, "metavar": "TOKENS", "help": "quota; 0 = no limit (0)"},
    ),
    "--calls": (("add",), {"type": int, "default": 0, "metavar": "CALLS", "help": "calls in flight; 0 = no limit (0)"}),
    "--expires-days": (
        ("add", "rotate"),
        {"type": float, "metavar": "DAYS", "help": "time after which the new key expires (never)"},
    ),
    "--overlap-hours": (
        ("rotate",),
        {"type": float, "default": 24.0, "metavar": "HOURS", "help": "time in which older keys remain valid (24)"},
    ),
    "--json": (("list",), {"action": "store_true", "help": "print all properties as JSON"}),
    "--keys-file": (tuple(KEYS_VERBS), {"metavar": "FILE", "help": "the file (ISOGLOSS_KEYS_FILE)"}),
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
    _add_keys(verbs, completed=models is not None)
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


def _add_keys(verbs: "argparse._SubParsersAction[Parser]", *, completed: bool) -> None:
    keys = verbs.add_parser(
        "keys",
        help="add, list, revoke and rotate the API keys of callers",
        description="API keys of callers, in the file that `serve --keys-file` reads.",
        epilog=KEYS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = keys.add_subparsers(dest="keys_verb", required=True, title="verbs", metavar="VERB", parser_class=Parser)
    for verb, (text, of_name) in KEYS_VERBS.items():
        parser = inner.add_parser(verb, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        if of_name:
            parser.add_argument("name", metavar="NAME", help=of_name)
        for flag, (of_verbs, options) in KEYS_FLAGS.items():
            if verb in of_verbs:
                added = parser.add_argument(flag, **options)
                serve.complete_value(added, str(options.get("metavar")), None)
                if completed and flag == "--method":
                    from isogloss_server.security.keys import METHODS  # noqa: PLC0415 - only completion needs it

                    added.choices = METHODS


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
            case "keys":
                from isogloss_server.cli import keys  # noqa: PLC0415 - imports libraries that `serve` alone needs else

                return keys.run(flags)
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
