"""A Prometheus endpoint of each process: what it did last and where its time went, for whoever watches many runs."""

import errno
import logging
from collections.abc import Mapping
from typing import Any

import jax

from omnihuman_jax.telemetry.metrics import LoggingConfig

logger = logging.getLogger(__name__)

# Processes of one machine share the port that the config names: each takes the next free one.
_TRIES = 64


class Exporter:
    """Serves gauges at http://HOST:PORT/metrics, each with the labels `run` and `process`; does nothing with port 0."""

    def __init__(self, config: LoggingConfig, run: str):
        self.port = 0
        if not config.prometheus_port:
            return
        from prometheus_client import CollectorRegistry, Gauge, start_http_server

        registry = CollectorRegistry()
        self._labels = {"run": run, "process": str(jax.process_index())}

        def gauge(name: str, text: str, *labels: str) -> Any:
            return Gauge(f"omnihuman_{name}", text, ("run", "process", *labels), registry=registry)

        self._step = gauge("step", "finished steps")
        self._values = gauge("metric", "the newest line of metrics.jsonl, by name", "name")
        self._seconds = gauge("seconds", "seconds of this attempt, by kind", "kind")
        self._hosts = gauge(
            "host_step_seconds", "a host's own seconds a step, devices left out (process 0 has all)", "host"
        )
        for port in range(config.prometheus_port, config.prometheus_port + _TRIES):
            try:
                self._server, self._thread = start_http_server(port, addr=config.prometheus_host, registry=registry)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise ValueError(
                        f"logging.prometheus_host {config.prometheus_host} port {port}: {error.strerror}"
                    ) from error
                continue
            self.port = port
            logger.info("metrics for Prometheus at http://%s:%d/metrics", config.prometheus_host, port)
            return
        raise ValueError(
            f"logging.prometheus_port: {config.prometheus_port} and the {_TRIES - 1} ports above it are in use"
        )

    def update(
        self, done: int, line: Mapping[str, Any] | None, seconds: Mapping[str, float], hosts: Mapping[str, float]
    ) -> None:
        """The newest values; `line` only where one was logged."""
        if not self.port:
            return
        self._step.labels(**self._labels).set(done)
        for kind, value in seconds.items():
            self._seconds.labels(**self._labels, kind=kind).set(value)
        for host, value in hosts.items():
            self._hosts.labels(**self._labels, host=host).set(value)
        for name, value in (line or {}).items():
            if isinstance(value, int | float):
                self._values.labels(**self._labels, name=name).set(value)

    def close(self) -> None:
        """Stops serving."""
        if self.port:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
