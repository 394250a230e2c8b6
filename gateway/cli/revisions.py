"""Which policies were in force, and which one shall be?   `tiergate policy status | revisions | reload | rollback`"""

from typing import Annotated, Any

import typer

from gateway.cli.output import Json, date, encoded, visible
from gateway.cli.running import HERE, Key, Url, call
from gateway.policy import Problem


def status(url: Url = HERE, admin_key: Key = None, json: Json = False) -> None:
    """What is in force in a running gateway, and what is wrong with the file. Exit status 1 when something is."""
    found = call(url, admin_key, "GET", "/admin/policy")
    wrong = found["problem"]["problems"] if found["problem"] else []
    if json:
        typer.echo(encoded(found))
    else:
        by = "a rollback" if found["source"] == "rollback" else found["file"]
        typer.echo(f"{named(found)} by {by}, since {date(found['since'])}; {len(found['tests'])} tests passed")
        if candidate := found["candidate"]:
            typer.echo(f"on trial: {named(candidate)}, canary {candidate['canary']:g}, shadow {candidate['shadow']:g}")
        if found["rollback"]:
            typer.echo(found["rollback"]["note"], err=True)
    tell(wrong)
    raise typer.Exit(int(bool(wrong)))


def revisions(
    digest: Annotated[str | None, typer.Argument(help="Print this one's text.")] = None,
    calibration: Annotated[bool, typer.Option("--calibration", help="Print its calibration's text instead.")] = False,
    url: Url = HERE,
    admin_key: Key = None,
    json: Json = False,
) -> None:
    """The policies that a running gateway can be rolled back to, the newest first."""
    if digest:
        found = call(url, admin_key, "GET", f"/admin/policy/revisions/{digest}")
        typer.echo(encoded(found) if json else found["calibration" if calibration else "text"] or "", nl=json)
        return
    known = call(url, admin_key, "GET", "/admin/policy")["revisions"]
    if json:
        typer.echo(encoded(known))
        return
    for one in known:
        typer.echo(
            f"{'*' if one['current'] else ' '} {one['digest']}  {date(one['at'])}  {one['name']} {one['revision']}"
        )


def reload(url: Url = HERE, admin_key: Key = None, json: Json = False) -> None:
    """Have a running gateway read its file again. Exit status 1, and the last good one in force, when it is wrong."""
    found = call(url, admin_key, "POST", "/admin/policy/reload")
    if json:
        typer.echo(encoded(found))
    else:
        typer.echo(f"in force: {found['digest']}")
    tell(found["problems"])
    raise typer.Exit(int(not found["ok"]))


def rollback(
    to: Annotated[str, typer.Argument(help="A digest that `policy revisions` lists, or previous.")] = "previous",
    undo: Annotated[bool, typer.Option("--undo", help="Let the file count again.")] = False,
    url: Url = HERE,
    admin_key: Key = None,
    json: Json = False,
) -> None:
    """Put an earlier policy in force, in every gateway on the store, until the file is changed or --undo."""
    method, said = ("DELETE", None) if undo else ("POST", {"to": to})
    found = call(url, admin_key, method, "/admin/policy/rollback", said)
    typer.echo(encoded(found) if json else f"in force: {found['digest']}")
    if not json:
        typer.echo(found["note"], err=True)


def tell(problems: list[dict[str, Any]]) -> None:
    for one in problems:
        typer.echo(visible(str(Problem(**one))), err=True)


def named(policy: dict[str, Any]) -> str:
    return f"{policy['name']} {policy['revision']} ({policy['digest']})"
