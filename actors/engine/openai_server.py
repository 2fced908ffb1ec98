"""vLLM's own OpenAI-compatible server as a child process on loopback, for the time of a job.

Run as a module, it is that child, which ends when the process that started it is gone, however that one died.
"""

import atexit
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from fgaif_ray.config import EngineConfig
from fgaif_ray.errors import UserError
from fgaif_ray.vlm.checkpoint import check_checkpoint

LOOPBACK: Final = "127.0.0.1"
START_TIMEOUT_S: Final = 600.0
STOP_TIMEOUT_S: Final = 20.0
POLL_S: Final = 0.25
LOG_LINES_SHOWN: Final = 15
SERVER_MODULE: Final = "vllm.entrypoints.openai.api_server"


@dataclass
class OpenAIServer:
    """A running server; ``stop`` it, or the end of this process does."""

    base_url: str
    """Endpoint with ``/v1``."""
    api_key: str = field(repr=False)
    log_path: str
    process: "subprocess.Popen[bytes]" = field(repr=False)

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when the server answers.

        Raises:
            UserError: it ended or did not answer in time; the message holds the last lines of its log.
        """
        health = self.base_url.removesuffix("/v1") + "/health"
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise UserError(f"The extraction server ended while it started; {self._log_excerpt()}")
            # A server that is still starting refuses the connection or answers 503.
            try:
                with urllib.request.urlopen(health, timeout=5):
                    return
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(POLL_S)
        self.stop()
        raise UserError(f"The extraction server did not answer within {timeout_s:g} s; {self._log_excerpt()}")

    def stop(self) -> None:
        """End the server and the processes it started; returns when they are gone. Calling it again does nothing."""
        atexit.unregister(self.stop)
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
        # The child leads a session of its own: its group holds nothing but the server's processes.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()

    def _log_excerpt(self) -> str:
        lines = Path(self.log_path).read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        return f"see {self.log_path}, which ends with:\n" + "\n".join(lines)


def start_openai_server(
    model: str, served_name: str, engine: EngineConfig, log_path: str, compact_json: bool = True
) -> OpenAIServer:
    """Start a server and return at once; ``wait_ready`` waits until it answers.

    Args:
        model: checkpoint folder or name.
        served_name: model name that requests give.
        engine: engine settings.
        log_path: local file that takes everything the server prints.
        compact_json: answers that are bound to a schema hold no white space between JSON tokens, which could otherwise
            be sampled until the token limit; a model that was taught to write it fails without.

    Raises:
        UserError: the model is not downloaded or broken.
    """
    check_checkpoint(model, sees_images=False)
    port = free_port()
    api_key = secrets.token_urlsafe(24)
    command = [
        sys.executable,
        "-m",
        "actors.engine.openai_server",
        *_arguments(model, served_name, engine, port, compact_json),
    ]
    environment = os.environ | {
        "VLLM_API_KEY": api_key,  # never an argument: those are shown to everyone on the machine
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Without it the CPU executor runs in a third process, which imports everything once more.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    if engine.threads is not None:
        environment["OMP_NUM_THREADS"] = str(engine.threads)
    Path(log_path).parent.mkdir(parents=True, exist_ok=True)
    with open(log_path, "wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
    server = OpenAIServer(f"http://{LOOPBACK}:{port}/v1", api_key, log_path, process)
    atexit.register(server.stop)
    return server


def _arguments(model: str, served_name: str, engine: EngineConfig, port: int, compact_json: bool) -> list[str]:
    arguments = {
        "--model": model,
        "--served-model-name": served_name,
        "--host": LOOPBACK,
        "--port": str(port),
        "--dtype": engine.dtype,
        "--max-model-len": str(engine.max_model_len),
        "--max-num-seqs": str(engine.max_num_seqs),
        "--gpu-memory-utilization": str(engine.gpu_memory_utilization),
        "--limit-mm-per-prompt": '{"image": 0}',
        "--structured-outputs-config": json.dumps({"backend": "xgrammar", "disable_any_whitespace": compact_json}),
        "--fingerprint-mode": "none",
        "--uvicorn-log-level": "warning",
    }
    flags = ["--enable-prefix-caching", "--disable-uvicorn-access-log", "--disable-log-stats"]
    if engine.kv_cache_gib is not None:
        arguments["--kv-cache-memory-bytes"] = str(int(engine.kv_cache_gib * (1 << 30)))
    if engine.block_size is not None:
        arguments["--block-size"] = str(engine.block_size)
    if engine.enforce_eager:
        flags.append("--enforce-eager")
    return [part for pair in arguments.items() for part in pair] + flags


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _end_with_parent() -> NoReturn:
    """Watch standard input, a pipe that only the parent holds: its end is the parent's end."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_TIMEOUT_S)
    os.killpg(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable: the signal ends this process too")


def _serve() -> None:
    import runpy

    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    runpy.run_module(SERVER_MODULE, run_name="__main__", alter_sys=False)


if __name__ == "__main__":
    _serve()
