"""Who listens, and to whom: a scan of a process of its own and all that it starts."""

from __future__ import annotations

import os
import subprocess
import sys

_SCAN = """
import ipaddress, psutil
def scan():
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        for socket in process.net_connections("inet"):
            if socket.status == psutil.CONN_LISTEN:
                address = ipaddress.ip_address(socket.laddr.ip)
                address = getattr(address, "ipv4_mapped", None) or address
                print("loopback" if address.is_loopback else "open", process.name(), address, socket.laddr.port)
"""


def assert_listens_to_this_machine_alone(code: str) -> list[str]:
    """Run code that calls ``scan()`` where it is to be looked; return the names of the processes that listen."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", _SCAN + code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()
    assert [line for line in found if not line.startswith("loopback")] == []
    return [line.split()[1] for line in found]
