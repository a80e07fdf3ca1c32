"""Cloister from its settings as JSON, with the profile of the frontend in PROFILE if that is set."""

from __future__ import annotations

import cProfile
import json
import os
import sys

from cloister.serve.server import run_server
from cloister.settings import load_settings

if __name__ == "__main__":
    settings = load_settings(None, {}, json.loads(sys.argv[1]))
    if "PROFILE" in os.environ:
        profile = cProfile.Profile()
        try:
            profile.runcall(run_server, settings)
        finally:
            profile.dump_stats(os.environ["PROFILE"])
    else:
        run_server(settings)
