"""What is there under `tiergate policy`?   What is not of one file alone is imported when it is asked for."""

from typing import Any

from typer.core import TyperGroup

from gateway.cli.command import command
from gateway.cli.policy import app as policy

ROOMS = {
    "calibrate": "calibrate",
    "replay": "replay",
    "diff": "replay",
    "status": "revisions",
    "reload": "revisions",
    "revisions": "revisions",
    "rollback": "revisions",
}


class Policies(TyperGroup):
    """The commands of one file, then those of ROOMS."""

    def __init__(self, **given: Any) -> None:
        more: dict[str, Any] = dict.fromkeys(ROOMS)
        super().__init__(**given | {"commands": given["commands"] | more})

    def get_command(self, ctx: Any, name: str) -> Any:
        return command(ROOMS[name], name) if name in ROOMS else super().get_command(ctx, name)


policy.info.cls = Policies
