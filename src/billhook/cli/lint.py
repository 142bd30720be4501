"""`billhook lint`: find what is wrong with a schedule heuristic."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def command() -> None:
    """Analyse dispatch heuristics."""


@command.command(short_help="Find what is wrong with Machete's schedule rules.")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def heuristic(ctx: click.Context, file: Path | None, as_json: bool) -> None:
    """Analyse the schedule rules in FILE (TOML), or those vLLM's Machete carries.

    Reports unreachable and duplicate rules, contradictions, gaps, schedules that are compiled but
    never chosen, and constants that look like slips. Exact for all sizes. Exit code 1 if anything is found.
    """
    from ..vllm import rule_file
    from ..vllm.heuristic_lint import lint

    path = file or rule_file.DEFAULT
    rules = rule_file.load_rules(path)
    findings = lint(rules)
    shown = str(path) if file else path.name
    if as_json:
        import msgspec

        report = {"file": shown, "rules": len(rules), "findings": findings}
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        for one in findings:
            place = f"{shown}:{one.line}:{one.column}" if one.line else shown
            number = f"rule {one.rule}: " if one.rule else ""
            click.echo(f"{place}: {one.severity}: {number}{one.message} [{one.code}]")
        click.echo(f"{shown}: {len(rules)} rules, {len(findings)} findings")
    ctx.exit(1 if findings else 0)
