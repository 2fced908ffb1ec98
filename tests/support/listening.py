"""Who listens where: the processes of a Ray that this test has started, and the table of docs/operations.md."""

import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path

import psutil

HEADING = "## What listens where"
KINDS = {
    "gcs_server": r"/gcs_server ",
    "raylet": r"/raylet/raylet ",
    "DashboardAgent": r"ray::DashboardAgent|/dashboard/agent\.py",
    "RuntimeEnvAgent": r"ray::RuntimeEnvAgent|/runtime_env/agent/main\.py",
    "dashboard": r"/dashboard/dashboard\.py|ray-dashboard",
    "monitor": r"/autoscaler/\S*monitor\.py",
    "client server": r"ray\.util\.client\.server",
    "ProxyActor": r"ray::ProxyActor",
    "ServeReplica": r"ray::ServeReplica:",
}
"""What the command lines of Ray's processes hold; all others are workers."""


def listening_sockets(folder: str, root: int | None = None) -> set[tuple[str, str]]:
    """Kind of process and interface of every socket on which a Ray listens.

    Args:
        folder: of the Ray, which stands in the command lines of what it starts.
        root: a process that belongs to it with all its descendants.
    """
    roots = [one for one in psutil.process_iter() if one.pid == root or folder in _command(one)]
    found = set()
    for process in {one.pid: one for start in roots for one in _with_descendants(start)}.values():
        try:
            sockets = process.net_connections(kind="inet")
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        kind = next((name for name, form in KINDS.items() if re.search(form, _command(process))), "worker")
        found |= {(kind, _interface(one.laddr.ip)) for one in sockets if one.status == psutil.CONN_LISTEN}
    return found


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) + " "
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return ""


def _with_descendants(process: psutil.Process) -> Iterable[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _interface(address: str) -> str:
    ip = ipaddress.ip_address(address)
    ip = (ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None) or ip
    return "loopback" if ip.is_loopback else "every interface" if ip.is_unspecified else "the node's address"


def documented_sockets(repository: Path, column: str) -> set[tuple[str, str]]:
    """The same of the documentation, in one of the columns of its table."""
    text = (repository / "docs" / "operations.md").read_text()
    section = text[text.index(HEADING) :].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    place = lines[0].index(column)
    return {
        (process.strip(), interface.strip())
        for row in lines[2:]
        for process in row[0].replace("`", "").split(",")
        for interface in row[place].split(",")
    }
