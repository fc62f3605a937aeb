"""``qmigrate completion SHELL``: a script for bash, zsh or fish; names come live from qmigrate.

Guest names come from other machines, and a shell is quick to run what it is given (bash's
``compgen -W`` expands ``$(…)`` in its word list): only words of harmless letters are offered, and
no list is ever expanded. Anything else can be typed.
"""

import argparse
import importlib
import sys
from types import ModuleType

from qmigrate.cli.context import Context

NAME = "completion"
HELP = "a completion script for your shell, with the names of guests and hosts"
EXAMPLES = """\
eval "$(qmigrate completion bash)"                       in ~/.bashrc
qmigrate completion zsh > ~/.zfunc/_qmigrate             a directory of $fpath
qmigrate completion fish > ~/.config/fish/completions/qmigrate.fish"""

SHELLS = ("bash", "zsh", "fish")

# --config and --ssh-config, which decide what names there are, are handed on from the line.

PREAMBLES = {
    "bash": r"""
_qmigrate_words() {
  local word; local -a options=(); local i
  for ((i = 1; i < COMP_CWORD - 1; i++)); do
    case ${COMP_WORDS[i]} in --config | --ssh-config)
      options+=("${COMP_WORDS[i]}" "${COMP_WORDS[i + 1]}") ;;
    esac
  done
  while IFS= read -r word; do
    [[ $word == "$2"* && $word =~ ^[A-Za-z0-9_.@:/+-]+$ ]] && printf '%s\n' "$word"
  done < <(qmigrate "$1" --names "${options[@]}" 2>/dev/null)
}
_qmigrate_guests() { _qmigrate_words list "$1"; }
_qmigrate_hosts() { _qmigrate_words hosts "$1"; }
""",
    "zsh": r"""
_qmigrate_words() {
  # $words lacks the options that _arguments has taken out; $options is zsh's own.
  local word; local -a names passed typed=("${(@Q)${(z)LBUFFER}}"); local -i i
  for ((i = 1; i < $#typed; i++)); do
    case ${typed[i]} in --config | --ssh-config) passed+=("${typed[i]}" "${typed[i + 1]}") ;; esac
  done
  while IFS= read -r word; do
    [[ $word =~ '^[A-Za-z0-9_.@:/+-]+$' ]] && names+=("$word")
  done < <(qmigrate $1 --names $passed 2>/dev/null)
  compadd -a names
}
_qmigrate_guests() { _qmigrate_words list }
_qmigrate_hosts() { _qmigrate_words hosts }
""",
    "fish": r"""
function _qmigrate_words
  set -l options
  set -l tokens (commandline -opc)
  for i in (seq 2 (math (count $tokens) - 1))
    if contains -- $tokens[$i] --config --ssh-config
      set -a options $tokens[$i] $tokens[(math $i + 1)]
    end
  end
  qmigrate $argv[1] --names $options 2>/dev/null | string match -r '^[A-Za-z0-9_.@:/+-]+$'
end
function _qmigrate_guests; _qmigrate_words list; end
function _qmigrate_hosts; _qmigrate_words hosts; end
""",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument of this command."""
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def run(context: Context, args: argparse.Namespace) -> int:
    """Write the script; not under trio: a shell's start waits for it."""
    context.out.write(script(args.shell) + "\n")
    return 0


def script(shell: str) -> str:
    """Return the completion script for `shell`, made from the parser itself."""
    from qmigrate.cli.main import COMMANDS  # it imports this module
    from qmigrate.cli.parser import build

    root, _ = build(COMMANDS)
    text: str = _shtab().complete(root, shell, root_prefix="qmigrate", preamble=PREAMBLES[shell])
    if shell == "zsh":
        # shtab 1.13 writes a positional with nargs="*" so that the first excludes all the others.
        text = text.replace('"(*)::', '"*:')
    return text


def _shtab() -> ModuleType:
    """Import shtab without importlib.metadata: 25 of its 35 ms, to read its own version.

    A shell's start waits for us. Should shtab come to need more of it, it gets the real one.
    """
    real = sys.modules.get("importlib.metadata")
    stand_in = ModuleType("importlib.metadata")
    stand_in.__dict__.update(version=lambda _: "", PackageNotFoundError=ModuleNotFoundError)
    sys.modules["importlib.metadata"] = real or stand_in
    try:
        return importlib.import_module("shtab")
    except (ImportError, AttributeError):
        sys.modules.pop("importlib.metadata")
        return importlib.import_module("shtab")
    finally:
        if real is None:
            sys.modules.pop("importlib.metadata", None)
