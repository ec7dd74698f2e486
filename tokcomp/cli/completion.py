"""Completion with the tab key: commands, options, strategies after vision=, settings after vision., values.

  tokcomp completion bash >> ~/.bashrc
  tokcomp completion zsh >> ~/.zshrc

A new shell has it."""

from __future__ import annotations

import argparse

__all__ = ["add_arguments", "execute"]

_BASH = r"""# completion of tokcomp's command line
_tokcomp() {
    local IFS=$'\n'
    COMPREPLY=($("$1" completion bash --line "${COMP_LINE:0:COMP_POINT}" --breaks "$COMP_WORDBREAKS" 2>/dev/null))
}
complete -o nospace -o default -F _tokcomp tokcomp
"""

_ZSH = r"""# completion of tokcomp's command line
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
_tokcomp() {
    local -a found whole begun
    found=("${(@f)$(${words[1]} completion zsh --line "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    whole=("${(@)${(M)found:#* }% }")
    begun=("${(@)found:#* }")
    (( $#whole + ${#begun[1]} )) || { _files; return; }
    [[ -n $whole[1] ]] && compadd -Q -- $whole
    [[ -n $begun[1] ]] && compadd -Q -S '' -- $begun
}
compdef _tokcomp tokcomp
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=sorted(SCRIPTS), help="whose script is printed")
    parser.add_argument("--line", metavar="TEXT", help="what stands before the cursor: print what may come next")
    parser.add_argument(
        "--breaks", metavar="CHARACTERS", default="", help="where the shell breaks words, beside spaces"
    )


def execute(options: argparse.Namespace) -> int:
    if options.line is None:
        print(SCRIPTS[options.shell], end="")
        return 0
    import shlex

    from tokcomp.cli.completing import candidates
    from tokcomp.cli.main import COMMANDS

    try:
        words = shlex.split(options.line)
    except ValueError:  # a quotation that is not closed yet
        return 0
    if options.line[-1:].isspace():
        words.append("")
    if len(words) < 2:
        return 0
    # The shell puts what it gets behind the last break in the word.
    broken = max((words[-1].rfind(mark) + 1 for mark in options.breaks if not mark.isspace()), default=0)
    for found in candidates(words[1:], tuple(COMMANDS)):
        print(found[broken:])
    return 0
