"""gRPC plumbing without generated service code: a table of methods becomes a handler; `Refusal` becomes a status.

Every call is logged once with its duration and outcome – never with its request, which carries secrets – and counted.
Anything unexpected becomes INTERNAL with a short text, and one traceback in the log.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias

import grpc

log = logging.getLogger(__name__)


class Refusal(Exception):
    """A call ends with this status and sentence, which the kubelet shows to the pod's owner."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid(message: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, message)


class Message(Protocol):
    """What protobuf's generated classes have in common, as far as it matters here."""

    @staticmethod
    def FromString(data: bytes, /) -> Any: ...


Handler = Callable[[Any], Awaitable[Any]]
Observer = Callable[[str, str, float], None]
# Generic in the type stubs only.
RpcHandler: TypeAlias = "grpc.GenericRpcHandler[Any, Any]"


def service(name: str, methods: dict[str, tuple[type[Message], Handler]], observe: Observer) -> RpcHandler:
    """A handler for the service: method name → (request class, coroutine taking the request, giving the response).

    `observe(method, status code, seconds)` is told of each call.
    """
    handlers = {
        method: grpc.unary_unary_rpc_method_handler(
            _guard(method, handler, observe),
            request_deserializer=request.FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )
        for method, (request, handler) in methods.items()
    }
    return grpc.method_handlers_generic_handler(name, handlers)


def _guard(method: str, handler: Handler, observe: Observer) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call(request: Any, context: Any) -> Any:
        started = time.monotonic()
        code, message = grpc.StatusCode.OK, ""
        try:
            return await handler(request)
        except Refusal as refusal:
            code, message = refusal.code, str(refusal)
        except OSError as error:
            code, message = grpc.StatusCode.INTERNAL, f"{method} failed on the node: {error}."
            log.exception("%s failed.", method)
        except Exception:
            code, message = grpc.StatusCode.INTERNAL, f"{method} failed; the node service's log says why."
            log.exception("%s failed.", method)
        finally:
            seconds = time.monotonic() - started
            observe(method, code.name, seconds)
            level = logging.DEBUG if code is grpc.StatusCode.OK else logging.WARNING
            log.log(level, "%s: %s in %.1f ms. %s", method, code.name, seconds * 1000, message)
        await context.abort(code, message)
        raise AssertionError("abort returns")

    return call
