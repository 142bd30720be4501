"""`billhook emit`: write a model's kernels as a C++ library."""

from __future__ import annotations

import hashlib
from pathlib import Path

import click

from .options import Request, parse_sizes, plan_request, request_options


@click.command()
@request_options
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="Folder to write.")
def command(*, request: Request, out: Path) -> None:
    """Write every kernel that MODEL needs as a C++ library with a C interface and a test program.

    MODEL is a Hugging Face config.json, or a folder that holds one. `make -C OUT -j` compiles the library
    with nvcc; `make -C OUT test` runs it on a GPU, without Python. A later run touches only what changed.
    """
    from ..build.headers import included_headers
    from ..emit.cpp import emit_cpp, kernel_sources
    from ..emit.writer import require_writable, write

    require_writable(out)
    loaded, plan = plan_request(request)
    headers: dict[str, str] = {}
    for source in kernel_sources(plan):
        headers |= included_headers(source.text)
    options: dict[str, object] = {
        "arch": list(plan.archs),
        "tp": parse_sizes(request.tp),
        "max_tokens": plan.max_tokens,
        "act": request.act,
        "narrow_activations": request.narrow,
        "fused": not request.unfused,
        "within": request.within,
        "multiprocessors": plan.multiprocessors,
        "rules": request.rules,
    }
    inputs = {model.file.name: hashlib.sha256(model.file.read_bytes()).hexdigest() for model in loaded}
    changes = write(out, emit_cpp(plan, headers), options, inputs)
    click.echo(
        f"{out}: {len(plan.kernels)} kernels for {', '.join(plan.archs)}; {len(changes.added)} files added, "
        f"{len(changes.changed)} changed, {len(changes.removed)} removed, {len(changes.unchanged)} unchanged"
    )
    click.echo(f"next: make -C {out} -j && make -C {out} test")
