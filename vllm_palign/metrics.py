"""Counters, gauges and histograms on vLLM's own ``/metrics``, all names beginning ``palign_``.

They live in prometheus-client's default registry, which vLLM exposes; with several API server processes
vLLM switches prometheus-client to files that all processes write and any of them adds up. Labels are
bounded: error codes, outcomes, and at most ``tenants.MAX_LABELS`` tenant names and ``other``.
"""

from __future__ import annotations

from typing import Literal

from prometheus_client import Counter, Gauge, Histogram

Source = Literal["cache", "store"]
Enrolled = Literal["created", "unchanged", "replaced", "refused", "failed"]
Outcome = Literal["ok", "missing", "corrupt", "unavailable"]

_requests = Counter(
    "palign_requests",
    "Requests for generation that were answered, by tenant; kind is steered or plain.",
    ("tenant", "kind"),
)
_tokens = Counter(
    "palign_tokens",
    "Tokens of finished and aborted requests, by tenant; kind is prompt or generated.",
    ("tenant", "kind"),
)
_refusals = Counter(
    "palign_refusals",
    "Requests answered with an error; code is palign's, or http_STATUS for vLLM's own.",
    ("code",),
)
_fetches = Counter(
    "palign_persona_fetches",
    "Personas looked up by content; source is cache (host memory) or store (the registry).",
    ("source", "outcome"),
)
_fetch_seconds = Histogram(
    "palign_persona_fetch_seconds",
    "Time to get one persona's content, by source.",
    ("source",),
    buckets=(0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
)
_host_cache_bytes = Gauge(
    "palign_host_cache_bytes",
    "Persona content held in host memory by all API server processes.",
    multiprocess_mode="livesum",
)
_host_cache_personas = Gauge(
    "palign_host_cache_personas",
    "Personas held in host memory by all API server processes.",
    multiprocess_mode="livesum",
)
_enrolments = Counter(
    "palign_enrolments",
    "Personas asked for by answers or trait values; outcome is created, unchanged, replaced, refused (the client's "
    "to mend) or failed.",
    ("outcome",),
)
_enrolment_seconds = Histogram(
    "palign_enrolment_seconds",
    "Time from a whole body of answers to its persona in the registry, waiting for a thread included.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 15),
)
_registry_personas = Gauge(
    "palign_registry_personas",
    "Registered personas of all tenants, as of a recent scrape.",
    multiprocess_mode="livemostrecent",
)
_registry_down = Gauge(
    "palign_registry_down",
    "1 while the registry does not answer and personas in memory are served as they were.",
    multiprocess_mode="livemax",
)
_slots = Gauge(
    "palign_slots",
    "Slots of the first engine's first worker, as of a recent scrape; state is total, in_use "
    "(distinct effects of requests it runs) or resident (rows filled, some kept for reuse).",
    ("state",),
    multiprocess_mode="livemostrecent",
)
_reloads = Counter(
    "palign_tenants_reloads",
    "Times the tenants file was read again; outcome is ok or error.",
    ("outcome",),
)
_stale = Gauge(
    "palign_tenants_stale",
    "1 while the tenants file on disk cannot be used and an older one is in force.",
    multiprocess_mode="livemax",
)


def answered(tenant: str, *, steered: bool) -> None:
    """One request for generation was answered. ``tenant`` is a bounded label, here and below."""
    _requests.labels(tenant, "steered" if steered else "plain").inc()


def tokens(tenant: str, *, prompt: int, generated: int) -> None:
    _tokens.labels(tenant, "prompt").inc(prompt)
    _tokens.labels(tenant, "generated").inc(generated)


def refused(code: str) -> None:
    _refusals.labels(code).inc()


def fetched(source: Source, outcome: Outcome, seconds: float) -> None:
    """One persona's content was looked up in ``source``, which took ``seconds``."""
    _fetches.labels(source, outcome).inc()
    _fetch_seconds.labels(source).observe(seconds)


def enrolled(outcome: Enrolled, seconds: float) -> None:
    """One body of answers came to ``outcome``, ``seconds`` after it was read."""
    _enrolments.labels(outcome).inc()
    _enrolment_seconds.observe(seconds)


def host_cache(*, size: int, personas: int) -> None:
    """What this process's host cache holds: ``size`` bytes, ``personas`` entries."""
    _host_cache_bytes.set(size)
    _host_cache_personas.set(personas)


def registry(personas: int) -> None:
    """Number of registered personas of all tenants."""
    _registry_personas.set(personas)


def registry_down(down: bool) -> None:
    """Whether this process goes by what it remembers."""
    _registry_down.set(down)


def slots(*, total: int, in_use: int, resident: int) -> None:
    """What a worker's bank holds, see ``OffsetBank.usage``."""
    for state, value in (("total", total), ("in_use", in_use), ("resident", resident)):
        _slots.labels(state).set(value)


def tenants_reloaded(*, ok: bool) -> None:
    _reloads.labels("ok" if ok else "error").inc()
    _stale.set(0 if ok else 1)
