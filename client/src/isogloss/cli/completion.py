"""`isogloss completion`: scripts that let a shell complete the command line, made from its parser."""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

BASH = """\
_{name}() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words="" IFS=$' \\t\\n'
    [[ $current == "=" ]] && current=""
    [[ $previous == "=" ]] && previous="${{COMP_WORDS[COMP_CWORD-2]}}"
    COMPREPLY=()
    if (( COMP_CWORD == 1 )); then
        words="{top}"
    else
        case "${{COMP_WORDS[1]}} $previous" in
{values}
        esac
        case "${{COMP_WORDS[1]}}" in
{flags}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -F _{name} {name}
"""
BASH_FILES = "IFS=$'\\n'; COMPREPLY=($(compgen -f -- \"$current\")); compopt -o filenames 2>/dev/null"
BASH_WORDS = 'COMPREPLY=($(compgen -W "{words}" -- "$current"))'

ZSH = """\
#compdef {name}
_{name}() {{
    local curcontext="$curcontext" state line
    local -a verbs=(
{verbs}
    )
    _arguments -C {top} '1: :->verb' '*:: :->rest'
    case $state in
        verb) _describe verb verbs ;;
        rest)
            case $words[1] in
{cases}
            esac
            ;;
    esac
}}
if [[ $funcstack[1] == _{name} ]]; then _{name} "$@"; else compdef _{name} {name}; fi
"""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: its spellings, and what it takes: nothing, one of `words`, a file, or any value."""

    names: tuple[str, ...]
    help: str
    takes: str  # the name of its value, empty where it takes none
    words: tuple[str, ...]
    is_file: bool
    repeats: bool


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb, or the program itself: its flags, and the words that may stand without one."""

    name: str
    help: str
    flags: tuple[Flag, ...]
    words: tuple[str, ...]

    @property
    def spellings(self) -> str:
        """All that may stand where no value is due."""
        return " ".join([*self.words, *(name for flag in self.flags for name in flag.names)])


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """Returns the completion script for one of SHELLS."""
    top, verbs = _grammar(parser)
    return SHELLS[shell](parser.prog, top, verbs)


def _grammar(parser: argparse.ArgumentParser) -> tuple[Verb, list[Verb]]:
    # argparse offers no other way to look into a parser; the generators of scripts that there are do the same.
    [verbs] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]  # noqa: SLF001
    helps = {choice.dest: choice.help or "" for choice in verbs._get_subactions()}  # noqa: SLF001
    return _verb("", "", parser), [_verb(name, helps[name], found) for name, found in verbs.choices.items()]


def _verb(name: str, explanation: str, parser: argparse.ArgumentParser) -> Verb:
    actions = parser._actions  # noqa: SLF001
    flags = tuple(_flag(action, parser) for action in actions if action.option_strings)
    words = tuple(str(word) for action in actions if not action.option_strings for word in action.choices or ())
    return Verb(name, explanation, flags, words)


def _flag(action: argparse.Action, parser: argparse.ArgumentParser) -> Flag:
    takes = "" if action.nargs == 0 else str(action.metavar or action.dest)
    return Flag(
        names=tuple(action.option_strings),
        help=parser._get_formatter()._expand_help(action) if action.help else "",  # noqa: SLF001
        takes=takes,
        words=tuple(map(str, action.choices or ())),
        is_file=action.type is Path,
        repeats=isinstance(action, argparse._AppendAction),  # noqa: SLF001
    )


def _bash(name: str, top: Verb, verbs: list[Verb]) -> str:
    patterns: defaultdict[str, list[str]] = defaultdict(list)  # what completes a value -> the flags that take it
    for verb in verbs:
        for flag in (flag for flag in verb.flags if flag.takes):
            completes = BASH_FILES if flag.is_file else BASH_WORDS.format(words=" ".join(flag.words))
            patterns[completes] += [_quoted(f"{verb.name} {spelling}") for spelling in flag.names]
    values = [f"            {'|'.join(found)}) {completes}; return ;;" for completes, found in patterns.items()]
    flags = [f'            {verb.name}) words="{verb.spellings}" ;;' for verb in verbs]
    return BASH.format(name=name, top=top.spellings, values="\n".join(values), flags="\n".join(flags))


def _zsh(name: str, top: Verb, verbs: list[Verb]) -> str:
    def described(flag: Flag) -> Iterator[str]:
        """Yields what _arguments takes for each spelling of a flag."""
        value = "_files" if flag.is_file else f"({' '.join(flag.words)})" if flag.words else ""
        for spelling in flag.names:
            shown = f"{'*' * flag.repeats}{spelling}{'=' if flag.takes and spelling.startswith('--') else ''}"
            takes = f":{_escaped(flag.takes.lower(), ':')}:{value}" if flag.takes else ""
            yield _quoted(f"{shown}[{_escaped(flag.help, ':[]')}]{takes}")

    cases = []
    for verb in verbs:
        rest = f"*: :({' '.join(verb.words)})" if verb.words else "*: :"
        parts = [*(part for flag in verb.flags for part in described(flag)), _quoted(rest)]
        cases.append(f"                {verb.name}) _arguments {' '.join(parts)} ;;")
    names = [f"        {_quoted(f'{verb.name}:{_escaped(verb.help, chr(58))}')}" for verb in verbs]
    flags = " ".join(part for flag in top.flags for part in described(flag))
    return ZSH.format(name=name, verbs="\n".join(names), top=flags, cases="\n".join(cases))


def _fish(name: str, top: Verb, verbs: list[Verb]) -> str:
    def line(condition: str, rest: str, explanation: str) -> str:
        """Returns one completion."""
        return f"complete -c {name} -n {_quoted(condition)} {rest} -d {_quoted(explanation)}"

    def flag_lines(condition: str, verb: Verb) -> Iterator[str]:
        """Yields a completion for each flag."""
        for flag in verb.flags:
            names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in flag.names)
            value = " -r -F" if flag.is_file else " -x" if flag.takes else ""
            words = f" -a {_quoted(' '.join(flag.words))}" if flag.words else ""
            yield line(condition, f"{names}{value}{words}", flag.help)

    lines = [f"complete -c {name} -f", *flag_lines("__fish_use_subcommand", top)]
    for verb in verbs:
        lines.append(line("__fish_use_subcommand", f"-a {verb.name}", verb.help))
        condition = f"__fish_seen_subcommand_from {verb.name}"
        lines += [line(condition, f"-a {word}", "") for word in verb.words]
        lines += flag_lines(condition, verb)
    return "\n".join(lines) + "\n"


SHELLS: Mapping[str, Callable[[str, Verb, list[Verb]], str]] = MappingProxyType(
    {"bash": _bash, "zsh": _zsh, "fish": _fish}
)


def _quoted(text: str) -> str:
    # What all three shells read as one word, for no text here has a backslash that fish would take for an escape.
    return "'" + text.replace("'", r"'\''") + "'"


def _escaped(text: str, special: str) -> str:
    return "".join(f"\\{character}" if character in special else character for character in text)
