"""A Ray cluster of one's own on this machine, with our application on it: started for a benchmark or a test.

What happens here is what a user types: `serve run FILE`, and `serve deploy FILE` for an update.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import yaml

HOME = Path(__file__).resolve().parent.parent
APPLICATION = HOME / "deploy" / "ray" / "app.yaml"
SERVE = [sys.executable, "-m", "ray.serve.scripts"]
DASHBOARD = re.compile(r"http://[0-9.]+:[0-9]+")
FAILED = "Failed to update the deployments"  # as Serve says when a replica cannot start
STOP_TIMEOUT_S = 60.0


class RayClusterError(RuntimeError):
    """The application did not start; the text is what Ray said."""


def application(
    flags: Sequence[str] = (), replicas: int = 1, router: str = "", model: str = "mock", **of_rings: Any
) -> dict[str, Any]:
    """The content of deploy/ray/app.yaml, for so many rings of the mock, on a free port and on a small machine.

    `router` is another class for Serve's request router, as module:Class; `of_rings` are more settings of the rings'
    deployment, in place of those in the file.
    """
    config: dict[str, Any] = yaml.safe_load(APPLICATION.read_text())
    config["http_options"]["port"] = _free_port()
    config["logging_config"] = {"enable_access_log": False}
    app = config["applications"][0]
    app["args"] = {"model": model, "flags": list(flags)}
    door, rings = app["deployments"]
    del rings["autoscaling_config"]
    rings |= {"num_replicas": replicas, **of_rings}
    for deployment in (door, rings):
        deployment["ray_actor_options"] = {"num_cpus": 0.01}  # they share what there is
    if router:
        rings["request_router_config"] = {"request_router_class": router}
    return config


class RayCluster:
    """`serve run` in a process of its own, until the application is ready.

    with RayCluster(application(["--mock-profile=linear"], replicas=3)) as cluster:
        requests.get(cluster.url + "/ready")
    """

    def __init__(self, config: Mapping[str, Any], start_timeout_s: float = 300.0) -> None:
        self.log: list[str] = []
        self.http_options = config["http_options"]
        self.url = "http://{host}:{port}".format(**self.http_options)
        self._config = config
        self._timeout_s = start_timeout_s
        self._dashboard = ""
        # Ray makes sockets in this folder, and their paths may not be long.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self._env = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            "RAY_TMPDIR": str(self._folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else Ray makes one, and leaves it in the home folder
            "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(100 << 20),
            "RAY_USAGE_STATS_ENABLED": "0",
            # On a busy machine Serve's proxy starts for longer than Serve has patience, and is killed while it does.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
        }

    def __enter__(self) -> RayCluster:
        file = self._write(self._config)
        self.process = subprocess.Popen(
            [*SERVE, "run", "--address=local", str(file)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self._env, cwd=HOME,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Have the application become what this configuration says; returns when Serve has taken it in."""
        file = self._write(config)
        done = subprocess.run(
            [*SERVE, "deploy", f"--address={self._dashboard}", str(file)],
            capture_output=True, text=True, env=self._env, cwd=HOME,
        )  # fmt: skip
        if done.returncode:
            raise RayClusterError(done.stdout + done.stderr)

    def replicas(self, deployment: str = "Ring") -> list[psutil.Process]:
        """The processes of a deployment's replicas."""
        title = f"ray::ServeReplica:quintet:{deployment}"
        return [child for child in self._children() if _title(child).startswith(title)]

    def rings(self) -> list[psutil.Process]:
        """The processes of all rings."""
        return [child for child in self._children() if _title(child).startswith("quintet: ")]

    def stop(self) -> None:
        """End the application and the cluster; nothing of them is left behind."""
        everybody = self._children()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
        _, alive = psutil.wait_procs(everybody, timeout=5.0)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        while not self._is_ready():
            said = "".join(self.log)
            if self.process.poll() is not None or FAILED in said or time.monotonic() > deadline:
                raise RayClusterError(f"the application is not ready: {said}")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/ready", timeout=5) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def _write(self, config: Mapping[str, Any]) -> Path:
        file = self._folder / "app.yaml"
        file.write_text(yaml.safe_dump(dict(config)))
        return file

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line)
            if "dashboard" in line and (found := DASHBOARD.search(line)):
                self._dashboard = found[0]


def _title(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:  # it has died since it was listed
        return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
