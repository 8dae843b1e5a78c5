"""What the command line takes, and how it is turned into a client's options."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from isogloss._version import __version__
from isogloss.cli.completion import SHELLS
from isogloss.enums import ElementType, InputType, Metric, Truncation
from isogloss.options import ClientOptions

SERVER = "localhost:50051"
EPILOG = """\
environment:
  ISOGLOSS_SERVER   the server, where --server is not given
  ISOGLOSS_API_KEY  the key to send; there is no flag for it, because other users of the machine can read arguments
  NO_COLOR          no colours, where --color is not given

exit codes: 0, 2 for wrong usage, 1 for any other error, 130 after Ctrl-C

example:
  isogloss similarity "Good night" "Gute Nacht" "The stock market fell"
"""
TEXTS = "the texts; without any, or for -, the lines of standard input that are not blank"


LARGEST = 2**32 - 1


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Writes the line and ends the program."""
        self.exit(2, f"isogloss: {' '.join(message.split())} (see {self.prog} --help)\n")


class UsageError(Exception):
    """The command line is wrong in a way that argparse cannot see."""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps every verb and most flags on one line with their help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)
        self._action_max_length = 14  # argparse forgets that verbs are indented twice


class _Verbs:
    """The verbs of the program, each with its line in the program's help and an example at the end of its own."""

    def __init__(self, program: argparse.ArgumentParser) -> None:
        self._parsers = program.add_subparsers(
            dest="command", required=True, title="verbs", metavar="VERB", help="isogloss VERB --help tells more"
        )

    def add(self, name: str, line: str, *example: str, parents: tuple[argparse.ArgumentParser, ...] = ()) -> Any:
        """Returns the parser of a new verb."""
        return self._parsers.add_parser(
            name,
            help=line,
            description=f"{line[0].upper()}{line[1:]}.",
            epilog="\n  ".join(["example:", *example]),
            formatter_class=_Formatter,
            parents=parents,
        )


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
    line = "say whether the server can serve; exit code 1 if not"
    health = verbs.add("health", line, "isogloss health && echo ready", parents=common)
    health.add_argument("--model", default="", metavar="NAME", help="ask about this model alone")
    verbs.add("models", "list the models that the server offers", "isogloss models --json", parents=common)
    line = "print a script that lets a shell complete this command"
    completion = verbs.add("completion", line, "source <(isogloss completion bash)")
    completion.add_argument("shell", choices=list(SHELLS), help="which shell")
    return top


def options(arguments: argparse.Namespace, environment: Mapping[str, str]) -> ClientOptions:
    """Returns the client's options; raises UsageError where a value is out of its range, OSError for a missing file."""
    authorities = arguments.root_certificates
    try:
        return ClientOptions(
            target=arguments.server,
            tls=arguments.tls or authorities is not None,
            root_certificates=None if authorities is None else authorities.read_bytes(),
            api_key=environment.get("ISOGLOSS_API_KEY") or None,
            timeout_s=arguments.timeout_s,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def model_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what every verb about texts gives to the client."""
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
    group.add_argument("--server", default=server, metavar="HOST:PORT", help="where it listens (default: %(default)s)")
    group.add_argument("--tls", action="store_true", help="encrypt, and check the server's certificate")
    group.add_argument(
        "--root-certificates", type=Path, metavar="FILE", help="authorities to trust, in PEM; implies --tls"
    )
    group.add_argument(
        "--timeout-s",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="for a call; long input is sent in several (default: %(default)g)",
    )
    group.add_argument("--json", action="store_true", help="print JSON")
    group.add_argument(
        "--color", choices=["auto", "always", "never"], default="auto", help="default: on a terminal, unless NO_COLOR"
    )
    return common


def _embed(verbs: _Verbs, common: tuple[argparse.ArgumentParser, ...]) -> None:
    examples = ['isogloss embed "Good morning" "おはよう"', "isogloss embed --npy vectors.npy < sentences.txt"]
    verb = verbs.add("embed", "turn texts into vectors", *examples, parents=common)
    _texts(verb, "texts", TEXTS)
    verb.add_argument(
        "--npy", type=Path, metavar="FILE", help="write float32 [texts, dimensions] for numpy.load, whole or not at all"
    )
    verb.add_argument("--jsonl", action="store_true", help="print a JSON object for each text as soon as it is there")
    _model(verb)
    verb.add_argument("--input-type", choices=list(InputType), default="similarity", help="what the texts are for")
    verb.add_argument("--element-type", choices=list(ElementType), default="float32", help="how vectors travel")


def _similarity(verbs: _Verbs, common: tuple[argparse.ArgumentParser, ...]) -> None:
    example = 'isogloss similarity "Good night" "Gute Nacht" "The stock market fell"'
    verb = verbs.add("similarity", "compare texts with each other", example, parents=common)
    _texts(verb, "texts", TEXTS)
    verb.add_argument(
        "--candidate", action="append", metavar="TEXT", help="compare with these, not with each other; repeatable"
    )
    verb.add_argument("--pairwise", action="store_true", help="score each text with the --candidate of the same place")
    _model(verb)
    _metric(verb)


def _nearest(verbs: _Verbs, common: tuple[argparse.ArgumentParser, ...]) -> None:
    example = 'isogloss nearest "Where is the station?" -k 3 < sentences.txt'
    verb = verbs.add("nearest", "find the texts nearest to one", example, parents=common)
    verb.add_argument("query", metavar="QUERY", help="the text to find neighbours of")
    _texts(verb, "candidates", "the texts to search; without any, or for -, the lines of standard input")
    verb.add_argument("-k", type=_neighbours, default=10, help="how many neighbours at most (default: %(default)d)")
    verb.add_argument("--min-score", type=float, metavar="SCORE", help="leave out what scores lower")
    _model(verb)
    _metric(verb)


def _whole(text: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"must be from {least} to {most}, not {number}")
    return number


def _neighbours(text: str) -> int:
    return _whole(text, 1, LARGEST)


def _dimensions(text: str) -> int:
    return _whole(text, 0, LARGEST)


def _texts(verb: argparse.ArgumentParser, name: str, explanation: str) -> None:
    verb.add_argument(name, nargs="*", metavar="TEXT", help=explanation)


def _model(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--model", default="", metavar="NAME", help="its name (default: the server's default model)")
    verb.add_argument(
        "--dimensions",
        type=_dimensions,
        default=0,
        metavar="D",
        help="how many numbers of a vector (default: the model's)",
    )
    verb.add_argument(
        "--truncation",
        choices=list(Truncation),
        help="what becomes of texts too long (default: end, or error for a model that does not offer end)",
    )


def _metric(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--metric", choices=list(Metric), default="cosine", help="greater is nearer for all of them")
