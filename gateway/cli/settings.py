"""Which settings hold, and where does each come from?   `tiergate config show`"""

import json
import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, NamedTuple

import typer
from pydantic import ValidationError

from gateway.cli.output import Json
from gateway.settings import Settings
from gateway.store import where

config = typer.Typer(no_args_is_help=True)
SECRET = {"api_key", "admin_key"}
ALIKE = 0.8  # of what two names have in common, from 0 to 1


class InvalidSettings(Exception):
    """Settings that fail their checks. `problems`: what is wrong, by the setting's name; values are never repeated."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("\n".join(f"{variable(name)}: {told}" for name, told in problems.items()))
        self.problems = problems


class Setting(NamedTuple):
    """`value` as it may be shown; `origin`: flag, environment or default."""

    name: str
    value: Any
    origin: str


def variable(name: str) -> str:
    return f"GATEWAY_{name.upper()}"


def read_settings(flags: Mapping[str, object], without: Iterable[str] = ()) -> Settings:
    """The settings from `flags` (None: the flag was not given) and the environment; those in `without` have their
    defaults instead. Raises InvalidSettings."""
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    given |= {name: Settings.model_fields[name].default for name in without}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise InvalidSettings(
            {str(one["loc"][0]): one["msg"].removeprefix("Value error, ") for one in error.errors(include_input=False)}
        ) from None


def misspelt(names: Iterable[str]) -> list[tuple[str, str]]:
    """What to tell of each variable that is spelt nearly as a setting, and that setting. Others may be meant
    for somebody else, such as those that Kubernetes sets.
    """
    known = [*map(variable, Settings.model_fields), "GATEWAY_URL"]
    near = {name: get_close_matches(name.upper(), known, 1, ALIKE) for name in names if name.upper() not in known}
    return [(f"{name} is no setting", one[0]) for name, one in near.items() if one]


def merged(settings: Settings, environment: Mapping[str, str]) -> list[Setting]:
    """Every setting with its value, as `shown`, and where that comes from."""
    upper = {name.upper(): value for name, value in environment.items()}
    return [
        Setting(
            variable(name),
            shown(name, getattr(settings, name)),
            f"environment {variable(name)}" if upper.get(variable(name)) else "default",
        )
        for name in Settings.model_fields
    ]


def shown(name: str, value: Any) -> Any:
    """A setting's value as JSON data: of a secret only its length, of the store's URL where that is."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if name in SECRET:
        return f"({len(value)} characters)"
    if name == "redis_url" and "://" in value:
        return f"{value.partition('://')[0]}://{'***@' if '@' in value else ''}{where(value)}"
    return list(value) if isinstance(value, tuple) else str(value)


@config.callback()
def main() -> None:
    """Settings of this program; what is routed where stands in the policy."""


@config.command()
def show(
    only_set: Annotated[bool, typer.Option("--set", help="Leave out what has its default.")] = False,
    as_json: Json = False,
) -> None:
    """Every setting as `serve` would have it, without secrets, and where it comes from. Flags of `serve` go before."""
    try:
        found = merged(read_settings({}), os.environ)
    except InvalidSettings as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    found = [one for one in found if not only_set or one.origin != "default"]
    if as_json:
        typer.echo(json.dumps([one._asdict() for one in found], indent=2))
        return
    for one in found:
        typer.echo(f"{one.name:<23}  {'-' if one.value is None else one.value!s:<28}  {one.origin}")
