"""tiergate: the command line."""

import typer

from gateway.cli.backends import backends
from gateway.cli.cache import cache
from gateway.cli.calibrate import calibrate
from gateway.cli.demo import demo
from gateway.cli.keys import keys
from gateway.cli.policy import app as policy
from gateway.cli.replay import diff, replay
from gateway.cli.serve import serve, sim
from gateway.cli.usage import usage

ALL_FLAGS = {"ignore_unknown_options": True, "allow_extra_args": True}  # they go to another program
app = typer.Typer(
    help="One OpenAI-compatible endpoint in front of a fast and a strong model.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
app.command()(serve)
app.command()(demo)
app.command(context_settings=ALL_FLAGS)(sim)
app.command(context_settings=ALL_FLAGS, add_help_option=False)(backends)
policy.command()(calibrate)
policy.command()(replay)
policy.command()(diff)
app.add_typer(policy, name="policy")
app.add_typer(keys, name="keys")
app.command()(usage)
app.add_typer(cache, name="cache")


def main() -> None:
    app(prog_name="tiergate")
