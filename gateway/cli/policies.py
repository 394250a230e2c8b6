"""What is there under `tiergate policy`?"""

from gateway.cli.calibrate import calibrate
from gateway.cli.policy import app as policy
from gateway.cli.replay import diff, replay
from gateway.cli.revisions import reload, revisions, rollback, status

for command in (calibrate, replay, diff, status, reload, revisions, rollback):
    policy.command()(command)
