"""The entry: which command, and how a failure is told.

Nothing here imports torch: `geom --help` is to be quick, so each command imports what it needs when it runs.
"""

import os
import sys
from collections.abc import Callable, Sequence

import tyro

from geom.cli.classify import classify
from geom.cli.demo import demo
from geom.cli.doctor import doctor
from geom.cli.register import register
from geom.cli.rig import bind, solve
from geom.cli.rods import fit, predict, simulate
from geom.cli.serialize import serialize
from geom.cli.skin import skin
from geom.cli.view import view
from geom.cli.warmup import warmup
from geom.errors import GeomError

__all__ = ["main"]

_COMMANDS: tuple[Callable[..., int], ...] = (register, skin, serialize, classify, view, demo, doctor, warmup)
_GROUPS: dict[str, tuple[Callable[..., int], ...]] = {"rods": (fit, predict, simulate), "rig": (bind, solve)}
_ABOUT = (
    "3D geometry from the command line. Lengths in metres, angles in degrees. `geom --version` prints the version. "
    "More: `geom rods --help` (elastic rods: fit, predict, simulate), `geom rig --help` (characters: bind, solve)."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `geom` with the arguments `argv` (without the program's name; None: those of the process).

    Returns: the exit code: 0; 1 where `doctor` finds something essential broken; 2 for wrong arguments, files or data,
    after one line on stderr; 130 after Ctrl-C; 141 where the reader of stdout went away.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        import geom

        print(f"geom {geom.__version__}")
        return 0
    group = arguments.pop(0) if arguments and arguments[0] in _GROUPS else ""
    try:
        code = tyro.extras.subcommand_cli_from_dict(
            {command.__name__: command for command in _GROUPS.get(group, _COMMANDS)},
            prog=f"geom {group}".strip(),
            description=_ABOUT,
            args=arguments,
            config=(tyro.conf.DisallowNone, tyro.conf.PositionalMetavarFromFieldName),
        )
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # tyro: 0 after --help, 2 for arguments that do not parse
        return stop.code if isinstance(stop.code, int) else 2 * (stop.code is not None)
    except KeyboardInterrupt:
        print("geom: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it closes stdout
        return 141
    except (GeomError, OSError) as error:
        print(f"geom: {_line(error)}", file=sys.stderr)
        return 2


def _line(error: Exception) -> str:
    """One line, the file first: "scan.ply: No such file or directory"."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fspath(error.filename)}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
