"""vLLM's OffloadingConnector with host memory that a CPU can copy to: its own copies are CUDA calls.

Named by ``kv_connector_extra_config`` as vLLM loads specs of others; which blocks are offloaded, under
which hash, and when they come back stays vLLM's.
"""

from __future__ import annotations

import torch
from vllm.v1.kv_offload.base import (
    BlockIDsLoadStoreSpec,
    CanonicalKVCaches,
    GPULoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class HostMemory(OffloadingWorker):
    """One block of the engine is one chunk here."""

    def __init__(self, caches: CanonicalKVCaches, chunks: int) -> None:
        self.engine = [cache.tensor for cache in caches.tensors]
        self.host = [
            torch.empty(chunks, cache.shape[1], dtype=cache.dtype) for cache in self.engine
        ]
        self.finished: list[TransferResult] = []

    def submit_store(
        self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: BlockIDsLoadStoreSpec
    ) -> bool:
        return self._copy(job_id, self.engine, src_spec, self.host, dst_spec)

    def submit_load(
        self, job_id: int, src_spec: BlockIDsLoadStoreSpec, dst_spec: GPULoadStoreSpec
    ) -> bool:
        return self._copy(job_id, self.host, src_spec, self.engine, dst_spec)

    def _copy(
        self,
        job_id: int,
        sources: list[torch.Tensor],
        src: BlockIDsLoadStoreSpec,
        targets: list[torch.Tensor],
        dst: BlockIDsLoadStoreSpec,
    ) -> bool:
        for source, target in zip(sources, targets, strict=True):
            target[torch.from_numpy(dst.block_ids)] = source[torch.from_numpy(src.block_ids)]
        self.finished.append(TransferResult(job_id, success=True))
        return True

    def get_finished(self) -> list[TransferResult]:
        finished, self.finished = self.finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        pass  # Copies are done when they are submitted.


class HostMemorySpec(CPUOffloadingSpec):
    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        return HostMemory(kv_caches, self.num_chunks)
