"""Ray Serve of the connected cluster: where it listens, and why an application did not start."""

import re
import socket
from typing import Final

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.context import _get_global_client
from ray.serve.schema import LoggingConfig

from fgaif_ray.errors import BrokenFileError, UserError

PROXY_MARGIN_S: Final = 30.0
"""Seconds that the proxy waits longer than an application, whose time-out has an answer."""
QUIET: Final = LoggingConfig(log_level="WARNING", enable_access_log=False)


def start_serve(host: str, port: int, app_name: str, request_timeout_s: float, section: str) -> str:
    """Have Serve listen at an address; returns the URL.

    Args:
        host: to listen on.
        port: 0 takes a free one, or the one of a Serve that runs.
        app_name: of the application; a Serve that runs elsewhere with no other one is moved.
        request_timeout_s: longest answer of the application.
        section: of the configuration, where the address can be changed.

    Raises:
        UserError: the port is taken, or Serve listens elsewhere for other applications.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is not None:
        # Where Serve listens cannot be changed while it runs.
        listens = client.http_config.host, client.http_config.port
        if listens[0] == host and port in (0, listens[1]):
            return _url(*listens)
        if set(serve.status().applications) - {app_name}:
            message = f"Serve already runs other applications on {listens[0]}:{listens[1]}: set {section}.host and"
            raise UserError(f"{message} {section}.port to these, or stop them.")
    port = _available_port(host, port, section)
    if client is not None:
        serve.shutdown()
    options = HTTPOptions(host=host, port=port, request_timeout_s=request_timeout_s + PROXY_MARGIN_S)
    serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=options, logging_config=QUIET)
    return _url(host, port)


def _available_port(host: str, port: int, section: str) -> int:
    """The port if nobody listens on it; Serve would share it with another Serve, and each get half of the requests."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            message = f"Cannot listen on {host}:{port} ({error.strerror}): set {section}.host and {section}.port to a"
            raise UserError(f"{message} free address, or {section}.port to 0.") from error
        available: int = probe.getsockname()[1]
        return available


def _url(host: str, port: int) -> str:
    if host in ("0.0.0.0", "::"):
        host = ray.util.get_node_ip_address()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def deployment_error(app_name: str, what: str) -> Exception:
    """Return the replicas' reason why an application did not start, and take it down.

    Args:
        app_name: of the application.
        what: it is, for people.
    """
    deployments = serve.status().applications[app_name].deployments.values()
    messages = "\n".join(deployment.message for deployment in deployments if deployment.message)
    serve.delete(app_name)
    for_the_user = re.search(rf"(?:{UserError.__name__}|{BrokenFileError.__name__}): (.+)", messages)
    return UserError(for_the_user[1]) if for_the_user else RuntimeError(f"{what} did not start:\n{messages}")


def shutdown_application(app_name: str) -> None:
    """Take an application down; does nothing if there is none.

    Serve itself, without an application an idle proxy, ends with Ray: what is deployed again finds it running.
    """
    if app_name in serve.status().applications:
        serve.delete(app_name)
