"""Whether the Hugging Face hub can be reached: without it libraries try for half a minute, file by file."""

import os
import socket
from functools import cache
from urllib.parse import urlsplit

from rlora.system.screen import say

_SECONDS = 4.0  # for the name and the connection; a slow line needs one


@cache
def is_hub_reachable() -> bool:
    """Return whether the hub answers, asked once a process; that it does not is said.

    False where HF_HUB_OFFLINE forbids to ask. Behind a proxy nothing is asked, and it counts as reachable.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((host, port), timeout=_SECONDS).close()
    except OSError as error:
        say(f"{host} cannot be reached ({error.strerror or error}): only what is in the cache is looked for.")
        return False
    return True
