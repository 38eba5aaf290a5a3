"""Set up torch's process group of a private session, whose store listens on loopback alone.

Ray Train lets the first worker start torch's key-value store on all addresses, without a password. Here that worker
binds the socket itself, and all of them join as clients.
"""

import os
import socket
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch.config import (
    TorchConfig,
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)

_HOST = "127.0.0.1"
_stores: list[Any] = []
"""Of this process, so that it lives as long."""


class LoopbackTorchConfig(TorchConfig):  # type: ignore[misc]
    """:class:`ray.train.torch.TorchConfig` for workers that are all on this machine."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Return the backend that starts the store on loopback."""
        return _LoopbackBackend


class _LoopbackBackend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Start the store in the first worker, then the process group in all."""
        uses_gpu = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        # The store exists before any worker looks for it.
        port = worker_group.execute_single(0, _serve_store, backend_config.timeout_s)
        worker_group.execute(_set_store, port)
        worker_group.execute(_set_torch_distributed_env_vars)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    _setup_torch_process_group,
                    backend=backend_config.backend or ("nccl" if uses_gpu else "gloo"),
                    world_rank=rank,
                    world_size=len(worker_group),
                    init_method="env://",
                    timeout_s=backend_config.timeout_s,
                )
                for rank in range(len(worker_group))
            ]
        )


def _serve_store(timeout_s: float) -> int:
    """Start a store that listens on loopback; returns its port."""
    from datetime import timedelta

    # Bound here, since TCPStore would listen on all addresses.
    listener = socket.create_server((_HOST, 0))
    port: int = listener.getsockname()[1]
    store = dist.TCPStore(  # type: ignore[attr-defined]
        _HOST,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listener.detach(),  # the store closes it
    )
    _stores.append(store)
    return port


def _set_store(port: int) -> None:
    """Let torch's ``env://`` join that store instead of starting one."""
    os.environ.update(MASTER_ADDR=_HOST, MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
