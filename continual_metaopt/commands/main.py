"""The command ``continual-metaopt``."""

import shlex
import sys

import tyro

import continual_metaopt
from continual_metaopt.analysis.files import begin_command
from continual_metaopt.commands.compare import compare
from continual_metaopt.commands.explain import explain
from continual_metaopt.commands.export import export
from continual_metaopt.commands.interrupts import NOTHING_BEGUN
from continual_metaopt.commands.listing import show_list
from continual_metaopt.commands.preview import preview_command
from continual_metaopt.commands.printing import (
    ALL_RECORDED,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_LOCKED,
    EXIT_USAGE,
    PROGRAM,
    complain,
    said,
    show,
    stop_printing,
)
from continual_metaopt.commands.report import report
from continual_metaopt.commands.reproduce import reproduce
from continual_metaopt.commands.run import run_command
from continual_metaopt.commands.status import status
from continual_metaopt.optim.registry import MissingPackageError
from continual_metaopt.study.jobs import RunsFailed, StudyInterrupted
from continual_metaopt.study.lock import StudyLocked


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments; those of the process if None.

    Returns:
        Exit status: 0, 1 if runs failed, 2 for a mistake in what was asked or a file that cannot be read or written,
        3 if another command works on the study, 130 after Ctrl-C.
    """
    arguments = begin_command(argv)
    if arguments == ["--version"]:
        show(f"{PROGRAM} {continual_metaopt.__version__}")
        return 0
    if arguments[:1] and arguments[0] in ANALYSES:  # which read their arguments themselves
        from continual_metaopt.analysis.__main__ import main as analyse

        return analyse(arguments[1:], arguments[0], f"{PROGRAM} {arguments[0]}")
    try:
        commands = {
            "compare": compare,
            "reproduce": reproduce,
            "run": run_command(arguments),
            "status": status,
            "report": report,
            "explain": explain,
            "export": export,
            "list": show_list,
            "preview": preview_command(arguments),
            **ANALYSES,
        }
        result = tyro.extras.subcommand_cli_from_dict(commands, prog=PROGRAM, description=DESCRIPTION, args=arguments)
        return int(result or 0)
    except BrokenPipeError:  # as in `… | head`, which has seen enough
        stop_printing()
        return 0
    except StudyLocked as error:
        complain(f"{PROGRAM}: {error}")
        return EXIT_LOCKED
    except RunsFailed as error:
        again = shlex.join([PROGRAM, *arguments])
        complain(f"{PROGRAM}: {error}\nThis command tries them again: {again}")
        return EXIT_FAILED
    except (ValueError, OSError, ImportError, MissingPackageError, MemoryError) as error:
        complain(f"{PROGRAM}: {said(error)}")
        return EXIT_USAGE
    except StudyInterrupted as error:
        complain(f"Interrupted. {str(error) or ALL_RECORDED}")
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        complain(NOTHING_BEGUN)
        return EXIT_INTERRUPTED


def figure() -> None:
    """Draw a figure of runs: figure NAME RUNS …; without a name, list them."""


def table() -> None:
    """Write a table of runs: table NAME RUNS …; without a name, list them."""


def test() -> None:
    """Test learners seed by seed: test NAME RUNS …; without a name, list them."""


ANALYSES = {"figure": figure, "table": table, "test": test}
DESCRIPTION = """Streams non-stationary image tasks, one sample at a time, to learners whose step sizes are fixed or
learned online, and shows what happened. `compare` without arguments runs a small study on embedded data;
`--version` prints the version."""


if __name__ == "__main__":
    sys.exit(main())
