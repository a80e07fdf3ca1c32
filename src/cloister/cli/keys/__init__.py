"""``cloister keys``: the key broker."""

from __future__ import annotations

import typer

from cloister.cli.cache import cache
from cloister.cli.keys import resources
from cloister.cli.keys.backup import backup
from cloister.cli.keys.log import audit
from cloister.cli.keys.owner import recovery, token
from cloister.cli.keys.policy import policy, reference
from cloister.cli.keys.run import serve

app = typer.Typer(help="The key broker: keeps data keys, releases them to TEEs that prove what they run.")
app.command("serve")(serve)
app.command("add")(resources.add)
app.command("list")(resources.list_keys)
app.command("show")(resources.show)
app.command("delete")(resources.delete)
app.command("revoke")(resources.revoke)
app.command("restore")(resources.restore)
app.command("minimum")(resources.minimum)
app.command("rotate")(resources.rotate)
app.command("cache")(cache)
app.add_typer(policy, name="policy")
app.add_typer(reference, name="reference")
app.add_typer(token, name="token")
app.add_typer(recovery, name="recovery")
app.add_typer(audit, name="audit")
app.add_typer(backup, name="backup")
