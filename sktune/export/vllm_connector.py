"""Puts trained prefixes into the KV cache of a vLLM server: a KV connector of vLLM's, loaded by its module's path.

This file is sktune's, copied beside the prefix it is for; it runs inside vLLM (tried with 0.32 on a CPU), started as
README.md says. A request names its prefix (`kv_transfer_params`), begins with as many placeholder tokens as the prefix
has positions, and has a `cache_salt` of the prefix's own, so that no other request shares its blocks; `client.py` does
all that.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata

KEY = "sktune_prefix"


@dataclass
class _Load:
    """Positions from `first` on of a prefix, and the slots of the cache that they belong into."""

    name: str
    first: int
    slots: torch.Tensor


@dataclass
class _Loads(KVConnectorMetadata):
    loads: list[_Load] = field(default_factory=list)


class PrefixConnector(KVConnectorBase_V1):
    """Keys and values of prefixes, by name; `kv_connector_extra_config: {"prefixes": {name: folder}}`."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        parallel = vllm_config.parallel_config
        if parallel.tensor_parallel_size > 1 or parallel.pipeline_parallel_size > 1:
            raise RuntimeError("PrefixConnector: a prefix is not split over GPUs; start vLLM with one for each server")
        self._dtype = vllm_config.model_config.dtype
        self._block_size = vllm_config.cache_config.block_size
        folders = self._kv_transfer_config.get_from_extra_config("prefixes", {})
        self._prefixes = {name: load_file(Path(folder) / "prefix.safetensors") for name, folder in folders.items()}
        self._salts = {
            name: json.loads((Path(folder) / "client.json").read_text(encoding="utf-8"))["salt"]
            for name, folder in folders.items()
        }
        self._waiting: dict[str, tuple[Any, int]] = {}

    # -- in the scheduler -------------------------------------------------------------------------------------------

    def _prefix(self, request: Any) -> tuple[str, int] | None:
        """Name and length of the prefix that a request asks for; None for any that this server does not have."""
        asked = (request.kv_transfer_params or {}).get(KEY) or {}
        name = str(asked.get("name"))
        if name not in self._prefixes or asked.get("salt") != self._salts[name]:
            return None
        return name, len(self._prefixes[name]["layers.0.key"])

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        found = self._prefix(request)
        return (0 if found is None else max(0, found[1] - num_computed_tokens)), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens > 0:
            self._waiting[request.request_id] = request, num_external_tokens

    def build_connector_meta(self, scheduler_output: Any) -> _Loads:
        blocks = {new.req_id: new.block_ids[0] for new in scheduler_output.scheduled_new_reqs}
        cached = scheduler_output.scheduled_cached_reqs
        for number, request_id in enumerate(cached.req_ids):
            if request_id in cached.resumed_req_ids:
                blocks[request_id] = cached.new_block_ids[number][0]
        found = _Loads()
        for request_id in [request_id for request_id in self._waiting if request_id in blocks]:
            request, count = self._waiting.pop(request_id)
            prefix = self._prefix(request)
            assert prefix is not None
            name, length = prefix
            places, ids = torch.arange(length - count, length), torch.tensor(blocks[request_id])
            slots = ids[places // self._block_size] * self._block_size + places % self._block_size
            found.loads.append(_Load(name, length - count, slots))
        return found

    def request_finished(self, request: Any, block_ids: Any) -> tuple[bool, dict[str, Any] | None]:
        """Tells the client that its prefix was there."""
        found = self._prefix(request)
        return False, None if found is None else {KEY: {"name": found[0], "positions": found[1]}}

    # -- in the worker ----------------------------------------------------------------------------------------------

    def start_load_kv(self, forward_context: Any, **_: Any) -> None:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, _Loads)
        for load in metadata.loads:
            tensors = self._prefixes[load.name]
            for name, layer in forward_context.no_compile_layers.items():
                cache, found = getattr(layer, "kv_cache", None), re.search(r"layers\.(\d+)\.", name)
                if cache is None or found is None:
                    continue
                key, value = (
                    tensors[f"layers.{found.group(1)}.{kind}"][load.first :].to(cache.device, self._dtype).contiguous()
                    for kind in ("key", "value")
                )
                # The backend's own writing, whatever the layout of its cache.
                layer.impl.do_kv_cache_update(layer, key, value, cache, load.slots.to(cache.device))

    def wait_for_layer_load(self, layer_name: str) -> None:
        """All layers are loaded at once."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **_: Any) -> None:
        """Nothing is saved."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""
