"""The command line: one module per command, imported only when that command runs."""

from __future__ import annotations

import importlib
import os
import sys

import click

from .. import __version__
from ..errors import BillhookError

# command -> one line of help; the module is billhook.cli.COMMAND and holds `command`.
COMMANDS = {
    "inspect": "Show how a checkpoint's layers are stored, and which kernels serve them.",
    "pack": "Write a checkpoint with its weights as kernels read them.",
    "plan": "Show which kernels a model needs, and why.",
    "build": "Compile a model's kernels into a bundle.",
    "emit": "Write a model's kernels as a C++ library.",
    "verify": "Run every kernel of a bundle on the GPU against the reference.",
    "bench": "Measure kernels and installed peers side by side.",
    "explain": "Tell which kernel serves a problem, and why the others do not.",
    "doctor": "Show what was found on this machine, and what is missing for what.",
    "generate": "Write a vLLM source tree's generated kernel files.",
    "vllm": "Install our generators into a vLLM source tree, or remove them.",
    "lint": "Analyse dispatch heuristics.",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="billhook")
def main_group() -> None:
    """Generate, compile, tune and run mixed-precision GEMM kernels for NVIDIA GPUs."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    try:
        result = main_group.main(args=argv, prog_name="billhook", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        print("billhook: interrupted; finished work is kept", file=sys.stderr)
        return 130
    except BillhookError as error:
        print(f"billhook: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.filename is None:  # stdout: where it leads is full or gone
            _forget_output()
            print(f"billhook: error: cannot write the output: {error.strerror}", file=sys.stderr)
        else:
            print(f"billhook: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1


def _forget_output() -> None:
    """Lead stdout nowhere, so that Python does not fail again on what is left to write when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
