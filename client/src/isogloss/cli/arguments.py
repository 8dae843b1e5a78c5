"""The command line of `isogloss`: its verbs and flags, and their conversion to the options of a client."""

import argparse
import difflib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn

from isogloss._arguments import MAX_UINT32, shown
from isogloss._version import __version__
from isogloss.enums import ElementType, InputType, Metric, Truncation
from isogloss.errors import printable
from isogloss.options import ClientOptions

SERVER = "localhost:50051"
SHELLS = ("bash", "zsh", "fish")
TEXT_MARK = "\0"  # no argument of a process contains it
EPILOG = """\
environment:
  ISOGLOSS_SERVER   address of the server, if --server is not given
  ISOGLOSS_API_KEY  API key; there is no flag for it, because other users of the machine can read the arguments
  ISOGLOSS_TLS      1 for --tls; also ISOGLOSS_ROOT_CERTIFICATES, ISOGLOSS_CLIENT_CERTIFICATE, ISOGLOSS_CLIENT_KEY and
                    ISOGLOSS_SERVER_NAME for the flags of these names
  NO_COLOR          disables colours, if --color is not given

exit codes: 0 for success, 2 for wrong usage, 1 for other errors, 130 after Ctrl-C

example:
  isogloss similarity "Good night" "Gute Nacht" "The stock market fell"
"""
TEXTS = "the texts; without any, or with -, each line of standard input that is not blank"
# Field of ClientOptions -> where the command line takes it from.
SOURCES = {
    "target": "--server (or ISOGLOSS_SERVER)",
    "api_key": "ISOGLOSS_API_KEY",
    "timeout_s": "--timeout-s",
    "root_certificates": "--root-certificates (or ISOGLOSS_ROOT_CERTIFICATES)",
    "client_certificate": "--client-certificate (or ISOGLOSS_CLIENT_CERTIFICATE)",
    "client_key": "--client-key (or ISOGLOSS_CLIENT_KEY)",
    "server_name": "--server-name (or ISOGLOSS_SERVER_NAME)",
}
# Flags that imply --tls, and that a variable can replace; those with a file -> its contents, for the help.
TLS_FILES = {
    "root_certificates": "certificate authorities to trust",
    "client_certificate": "certificate of this client",
    "client_key": "private key of that certificate",
}
TLS_VARIABLE = "ISOGLOSS_TLS"


class UsageError(Exception):
    """The command line is wrong in a way that argparse does not check."""


class InputError(Exception):
    """The data on standard input is invalid."""


class Parser(argparse.ArgumentParser):
    """A parser that prints errors as one line, with exit code 2, and suggests flags for unknown ones.

    Flags of a verb may stand between its texts. All arguments after -- are texts.
    """

    _parses = False  # True while argparse calls parse_known_args from parse_known_intermixed_args

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses `args`; exits with a suggestion if a flag is unknown."""
        if self._parses:
            return super().parse_known_args(args, namespace)
        if self._subparsers is not None:  # argparse does not support flags between a verb and its arguments
            parsed, unknown = super().parse_known_args(args, namespace)
        else:
            self._parses = True
            marked = _mark_texts(args)
            try:
                self._check_texts(marked)
                parsed, unknown = self.parse_known_intermixed_args(marked, namespace)
            finally:
                self._parses = False
        if unknown:
            self.error(self._unknown_message(unknown))
        return parsed, unknown

    def _check_texts(self, args: Sequence[str]) -> None:
        """Exits if a text begins with -h, which argparse would read as the flag -h with a value."""
        wrong = [argument for argument in args if argument.startswith("-h") and argument != "-h"]
        if wrong:
            self.error(self._unknown_message(wrong))

    def error(self, message: str) -> NoReturn:
        """Prints the error and exits."""
        if message.endswith("expected one argument"):
            message += "; write FLAG=VALUE if the value begins with -"
        self.exit(2, f"isogloss: {' '.join(printable(message).split())} (see {self.prog} --help)\n")

    def _unknown_message(self, unknown: Sequence[str]) -> str:
        flags = [argument.partition("=")[0] for argument in unknown if argument.startswith("-")]
        if not flags:
            return f"unexpected argument {unknown[0].removeprefix(TEXT_MARK)!r}"
        close = difflib.get_close_matches(flags[0], self._option_string_actions, n=1)
        if close:
            return f"unknown flag {flags[0]}; did you mean {close[0]}?"
        has_texts = any(action.nargs == "*" for action in self._get_positional_actions())
        return f"unknown flag {flags[0]}" + ("; write -- before texts that begin with -" if has_texts else "")


def _mark_texts(args: Sequence[str]) -> list[str]:
    """Returns `args` without the first --, and with TEXT_MARK before each argument after it.

    Versions of argparse differ in what they do with -- between flags.
    """
    if "--" not in args:
        return list(args)
    end = list(args).index("--")
    return [*args[:end], *(f"{TEXT_MARK}{text}" for text in args[end + 1 :])]


def _text(argument: str) -> str:
    text = argument.removeprefix(TEXT_MARK)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("not valid UTF-8") from None
    return text


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Prints every verb, and most flags, on one line with its help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)
        self._action_max_length = 14  # argparse does not count the second indentation of verbs


class _Verbs:
    """The verbs of the program, each with a line in the program's help and an example in its own."""

    def __init__(self, program: argparse.ArgumentParser) -> None:
        self._parsers = program.add_subparsers(
            dest="command",
            required=True,
            title="verbs",
            metavar="VERB",
            help="run isogloss VERB --help for details",
        )

    def add(self, name: str, line: str, *example: str, parents: tuple[argparse.ArgumentParser, ...] = ()) -> Any:
        """Adds a verb and returns its parser."""
        verb = self._parsers.add_parser(
            name,
            help=line,
            description=f"{line[0].upper()}{line[1:]}.",
            epilog="\n  ".join(["example:", *example]),
            formatter_class=_Formatter,
            parents=parents,
        )
        verb.set_defaults(verb=verb)  # its help is the one to see after an error
        return verb


def parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """Returns the parser of the whole command line."""
    top = Parser(
        prog="isogloss",
        description="Embed and compare texts of any language on an Isogloss server.",
        epilog=EPILOG,
        formatter_class=_Formatter,
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs, common = _Verbs(top), (_common(environment),)
    _embed(verbs, common)
    _similarity(verbs, common)
    _nearest(verbs, common)
    line = "report the server's health; exit code 1 if not serving"
    health = verbs.add("health", line, "isogloss health && echo ready", parents=common)
    health.add_argument("--model", type=_text, default="", metavar="NAME", help="report this model alone")
    health.add_argument("--wait", action="store_true", help="wait until it serves, for --timeout-s at most")
    verbs.add("models", "list the served models", "isogloss models --json", parents=common)
    line = "print a script that completes this command in a shell"
    completion = verbs.add("completion", line, "source <(isogloss completion bash)")
    completion.add_argument(
        "shell",
        type=_text,
        choices=SHELLS,
        metavar="SHELL",
        help=f"{', '.join(SHELLS)}; needs pip install 'isogloss[completion]'",
    )
    return top


def options(arguments: argparse.Namespace, environment: Mapping[str, str]) -> ClientOptions:
    """Returns the client's options.

    Raises:
        UsageError: A value is out of range; the message names its flag or variable.
        OSError: A file of TLS cannot be read.
    """
    files = {name: getattr(arguments, name) for name in TLS_FILES}
    contents = {name: file.read_bytes() for name, file in files.items() if file is not None}
    try:
        return ClientOptions(
            target=arguments.server,
            tls=arguments.tls or bool(contents) or arguments.server_name is not None,
            **contents,
            server_name=arguments.server_name,
            api_key=environment.get("ISOGLOSS_API_KEY") or None,
            timeout_s=arguments.timeout_s,
        )
    except ValueError as error:
        raise UsageError(" ".join(SOURCES.get(word, word) for word in str(error).split(" "))) from None


def model_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments that all verbs about texts pass to the client."""
    return {
        "model": arguments.model,
        "dimensions": arguments.dimensions,
        "truncation": arguments.truncation,
        "timeout_s": arguments.timeout_s,
    }


def _common(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    common = Parser(add_help=False)
    group = common.add_argument_group("server and output")
    server = environment.get("ISOGLOSS_SERVER") or SERVER
    group.add_argument("--server", default=server, metavar="HOST:PORT", help="its address (default: %(default)s)")
    tls = environment.get(TLS_VARIABLE, "") not in {"", "0"}
    group.add_argument("--tls", action="store_true", default=tls, help="encrypt, and check the server's certificate")
    for name, contents in TLS_FILES.items():
        flag, file = f"--{name.replace('_', '-')}", environment.get(f"ISOGLOSS_{name.upper()}") or None
        help_text = f"{contents}, in PEM; implies --tls"
        _complete_files(group.add_argument(flag, type=Path, default=file, metavar="FILE", help=help_text))
    server_name = environment.get("ISOGLOSS_SERVER_NAME") or None
    line = "name in the server's certificate, if it is not the host of --server; implies --tls"
    group.add_argument("--server-name", default=server_name, metavar="NAME", help=line)
    group.add_argument(
        "--timeout-s",
        type=_number,
        default=60.0,
        metavar="SECONDS",
        help="time limit per call; long input takes several calls (default: %(default)g)",
    )
    group.add_argument("--json", action="store_true", help="print JSON")
    group.add_argument(
        "--color",
        choices=["auto", "always", "never"],
        default="auto",
        help="auto: on a terminal, unless NO_COLOR is set (default: %(default)s)",
    )
    return common


def _embed(verbs: _Verbs, common: tuple[argparse.ArgumentParser, ...]) -> None:
    examples = ['isogloss embed "Good morning" "おはよう"', "isogloss embed --npy vectors.npy < sentences.txt"]
    verb = verbs.add("embed", "embed texts as vectors", *examples, parents=common)
    _texts(verb, "texts", TEXTS)
    npy = verb.add_argument(
        "--npy",
        type=_output_file,
        metavar="FILE",
        help="write float32 [texts, dimensions] for numpy.load; an error leaves the file unchanged",
    )
    _complete_files(npy)
    verb.add_argument("--jsonl", action="store_true", help="print one JSON object per text, while embedding")
    _model(verb)
    verb.add_argument(
        "--input-type", choices=_values(InputType), default="similarity", help="use of the texts (default: %(default)s)"
    )
    verb.add_argument(
        "--element-type",
        choices=_values(ElementType),
        default="float32",
        help="number format in transit (default: %(default)s)",
    )


def _similarity(verbs: _Verbs, common: tuple[argparse.ArgumentParser, ...]) -> None:
    example = 'isogloss similarity "Good night" "Gute Nacht" "The stock market fell"'
    verb = verbs.add("similarity", "compare texts with each other", example, parents=common)
    _texts(verb, "texts", TEXTS)
    verb.add_argument(
        "--candidate",
        action="append",
        type=_text,
        metavar="TEXT",
        help="compare the texts with this one, instead of with each other; repeatable",
    )
    verb.add_argument(
        "--pairwise", action="store_true", help="compare the first text with the first --candidate, and so on"
    )
    _model(verb)
    _metric(verb)


def _nearest(verbs: _Verbs, common: tuple[argparse.ArgumentParser, ...]) -> None:
    example = 'isogloss nearest "Where is the station?" -k 3 < sentences.txt'
    verb = verbs.add("nearest", "find the texts nearest to a query", example, parents=common)
    verb.add_argument("query", type=_text, metavar="QUERY", help="the text to find neighbours of")
    _texts(verb, "candidates", TEXTS.replace("the texts", "the texts to search", 1))
    verb.add_argument("-k", type=_neighbours, default=10, help="maximum number of neighbours (default: %(default)d)")
    verb.add_argument("--min-score", type=_number, metavar="SCORE", help="minimum score of a neighbour")
    _model(verb)
    _metric(verb)


def _texts(verb: argparse.ArgumentParser, name: str, explanation: str) -> None:
    # The default makes argparse treat the argument as optional when it lists missing ones.
    verb.add_argument(name, nargs="*", type=_text, default=[], metavar="TEXT", help=explanation)


def _model(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--model", type=_text, default="", metavar="NAME", help="name of the model (default: the server's default)"
    )
    verb.add_argument(
        "--dimensions",
        type=_dimensions,
        default=0,
        metavar="D",
        help="length of each vector (default: the model's own)",
    )
    verb.add_argument(
        "--truncation",
        choices=_values(Truncation),
        help="treatment of texts that are too long (default: end, or error if the model does not support end)",
    )


def _metric(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--metric",
        choices=_values(Metric),
        default="cosine",
        help="higher scores are nearer for all metrics (default: %(default)s)",
    )


def _values(kind: type[StrEnum]) -> list[str]:
    """Returns the values of an enum; argparse would print its members as <Truncation.END: 'end'>."""
    return [member.value for member in kind]


def _complete_files(action: argparse.Action) -> None:
    """Makes the completion scripts of shtab complete file names for the flag."""
    action.complete = "file"  # type: ignore[attr-defined]


def _output_file(text: str) -> Path:
    if text == "-":
        raise argparse.ArgumentTypeError("standard output (-) is not supported; name a file")
    if not text:
        raise argparse.ArgumentTypeError("must name a file")
    return Path(text)


def _neighbours(text: str) -> int:
    return _whole_number(text, 1)


def _dimensions(text: str) -> int:
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {shown(text)}") from None
    if not least <= number <= MAX_UINT32:
        raise argparse.ArgumentTypeError(f"must be between {least} and {MAX_UINT32}, not {shown(number)}")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {shown(text)}") from None
