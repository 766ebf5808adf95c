"""vLLM's own speech routes on a server whose model has no ear: /v1/realtime, a WebSocket, and
/v1/audio/transcriptions, which takes forms. vLLM attaches them by the model's tasks; here an endpoint plugin does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_METADATA = "Metadata-Version: 2.1\nName: palign-test-speech\nVersion: 0\n"
_ENTRY_POINT = "[vllm.endpoint_plugins]\nspeech = tests.http.speech:Speech\n"


def install(folder: Path) -> dict[str, str]:
    """Put the plugin's entry point into ``folder``; returns what a server finds it by, if VLLM_PLUGINS names it."""
    info = folder / "palign_test_speech-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(_METADATA)
    (info / "entry_points.txt").write_text(_ENTRY_POINT)
    root = Path(__file__).parents[2]
    paths = (root, root / "tools", root / "benchmarks", folder)
    return {"PYTHONPATH": ":".join(map(str, paths))}


class Speech:
    name = "speech"
    required_tasks = None

    def attach_router(self, app: Any) -> None:
        from vllm.entrypoints.speech_to_text.realtime.api_router import router as realtime
        from vllm.entrypoints.speech_to_text.transcription.api_router import router as transcription

        app.include_router(realtime)
        app.include_router(transcription)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        from vllm.entrypoints.speech_to_text.realtime.serving import OpenAIServingRealtime

        state.openai_serving_realtime = OpenAIServingRealtime(
            engine_client, state.openai_serving_models, request_logger=None
        )
        state.openai_serving_transcription = None  # as of a model that hears nothing
