"""The HTTP side: `/mutate` and `/validate` over TLS for the API server, `/healthz`, `/readyz` and `/metrics` in the clear for
the kubelet.

Turns a request into Review → skip → resolve → inject → answer, or, of the pod as it is to be stored, Review → skip → complaint →
answer. Invariant: every request gets an answer whose text is
one sentence; a stack trace goes to the log only. Without certainty the pod is refused, never admitted half-made.
Concurrency: handlers run side by side and share only the reader's cache and the metrics.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from jfs_webhook.api import ApiError
from jfs_webhook.inject import InjectionRefused, inject
from jfs_webhook.metrics import Metrics
from jfs_webhook.modes import ModeRefused
from jfs_webhook.resolve import Reader, resolve
from jfs_webhook.review import MalformedReview, Review, allowed, parse_review, refused
from jfs_webhook.settings import JsonObject, Settings
from jfs_webhook.skip import reason_to_skip
from jfs_webhook.trust import Trust
from jfs_webhook.validate import complaint

# An object is at most 1.5 MiB in etcd; a review of a creation holds one.
BODY_LIMIT = 3 * 1024 * 1024
# The API server gives up after five seconds: an answer of ours before that says why.
ANSWER_SECONDS = 4.5

log = logging.getLogger("jfs_webhook")


class Webhook:
    """The handlers, over what they need."""

    def __init__(self, reader: Reader, settings: Settings, trust: Trust) -> None:
        self._reader = reader
        self._settings = settings
        self._trust = trust
        self.metrics = Metrics()
        # Set at the end of the process: Kubernetes stops sending, requests under way are finished.
        self.draining = False

    def admission(self) -> web.Application:
        """The application of the TLS port."""
        application = web.Application(client_max_size=BODY_LIMIT)
        application.router.add_post("/mutate", self._mutate)
        application.router.add_post("/validate", self._validate)
        return application

    def health(self) -> web.Application:
        """The application of the plain port."""
        application = web.Application()
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/metrics", self._metrics)
        return application

    async def _mutate(self, request: web.Request) -> web.Response:
        return await self._review(request, self._answer)

    async def _validate(self, request: web.Request) -> web.Response:
        return await self._review(request, self._judgement)

    async def _review(
        self, request: web.Request, answerer: Callable[[Review], Awaitable[tuple[JsonObject, str]]]
    ) -> web.Response:
        started = time.monotonic()
        try:
            if request.content_length is not None and request.content_length > BODY_LIMIT:
                return self._rejected(413, f"the request body is larger than {BODY_LIMIT} bytes")
            if request.content_type != "application/json":
                return self._rejected(415, "send the AdmissionReview as application/json")
            try:
                review = parse_review(await request.read())
            except web.HTTPRequestEntityTooLarge:
                return self._rejected(413, f"the request body is larger than {BODY_LIMIT} bytes")
            except MalformedReview as error:
                return self._rejected(400, str(error))
            answer, result = await answerer(review)
            self.metrics.reviews.labels(result).inc()
            return web.json_response(answer)
        finally:
            self.metrics.seconds.observe(time.monotonic() - started)

    async def _judgement(self, review: Review) -> tuple[JsonObject, str]:
        if review.pod is None or reason_to_skip(review.pod, review.namespace, self._settings) is not None:
            return allowed(review), "skipped"
        sentence = complaint(review.pod, self._settings.driver)
        if sentence is None:
            return allowed(review), "valid"
        log.info("%s refused: %s", review.described, sentence)
        return refused(review, 422, sentence), "refused"

    async def _answer(self, review: Review) -> tuple[JsonObject, str]:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._decide(review)
        except (InjectionRefused, ModeRefused) as error:
            log.info("%s refused: %s", review.described, error)
            return refused(review, 422, str(error)), "refused"
        except ApiError as error:
            log.warning("%s refused: %s", review.described, error)
            return refused(review, 503, f"the pod's volumes cannot be looked up ({error}); try again"), "failed"
        except TimeoutError:
            log.warning("%s refused: the API server is too slow", review.described)
            return refused(review, 504, "looking up the pod's volumes took too long; try again"), "failed"
        except Exception:
            log.exception("%s refused because of an error of the webhook", review.described)
            return refused(review, 500, "internal error of the webhook; its log says more"), "failed"

    async def _decide(self, review: Review) -> tuple[JsonObject, str]:
        if review.pod is None:
            return allowed(review), "skipped"
        reason = reason_to_skip(review.pod, review.namespace, self._settings)
        if reason is not None:
            log.info("%s left alone: %s", review.described, reason)
            return allowed(review), "skipped"
        resolution = await resolve(review.pod, review.namespace, self._reader, self._settings)
        patch = inject(review.pod, resolution.volumes, self._settings, resolution.mode)
        if resolution.volumes or resolution.warnings:
            log.info(
                "%s %s: volumes %s%s",
                review.described,
                "injected" if patch else "unchanged",
                ", ".join(volume.name for volume in resolution.volumes) or "none",
                "".join(f"; {warning}" for warning in resolution.warnings),
            )
        return allowed(review, patch, resolution.warnings), "injected" if patch else "unchanged"

    def _rejected(self, status: int, sentence: str) -> web.Response:
        log.warning("request rejected: %s", sentence)
        self.metrics.reviews.labels("malformed").inc()
        response = web.Response(status=status, text=f"{sentence}\n")
        if status == 413:
            response.force_close()  # the rest of the body is not worth reading
        return response

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        if self.draining:
            return web.Response(status=503, text="shutting down\n")
        if not self._trust.ready:
            return web.Response(status=503, text=f"not ready: {self._trust.complaint}\n")
        return web.Response(text="ok\n")

    async def _metrics(self, _request: web.Request) -> web.Response:
        ends = self._trust.certificate_ends
        self.metrics.certificate_ends.set(ends.timestamp() if ends else 0)
        return web.Response(body=generate_latest(self.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
