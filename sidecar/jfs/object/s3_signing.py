"""AWS Signature Version 4 of single requests with an unsigned payload (Amazon's "Authenticating Requests: header").

Pure computation; a signer caches the day's key. Bodies are not hashed into the signature: that would cost more than
everything else about a block's request. Their integrity is the Crc32c metadata's business (format §6.3).
"""

import hashlib
import hmac
import time
from typing import NamedTuple

PAYLOAD = "UNSIGNED-PAYLOAD"


class Credentials(NamedTuple):
    """A key pair, and the session token that temporary ones have."""

    access_key: str
    secret_key: str
    token: str = ""


class Signer:
    """Signs requests for one region."""

    def __init__(self, region: str) -> None:
        self.region = region
        self._key: tuple[str, str, bytes] = ("", "", b"")  # day, secret, derived key

    def sign(
        self,
        credentials: Credentials,
        method: str,
        host: str,
        path: str,
        headers: dict[str, str],
        now: float | None = None,
        *,
        query: str = "",
    ) -> None:
        """Add what makes the request authentic to *headers*, whose `x-amz-…` (lower case) become part of the signature; *path* is
        percent-encoded; *now* in unix seconds; *query* is what follows it, in the canonical form."""
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        day = moment[:8]
        headers["x-amz-content-sha256"] = PAYLOAD
        headers["x-amz-date"] = moment
        if credentials.token:
            headers["x-amz-security-token"] = credentials.token
        signed = {"host": host} | {name: value for name, value in headers.items() if name.startswith("x-amz-")}
        names = sorted(signed)
        listed = ";".join(names)
        canonical = "\n".join(
            (method, path, query, *(f"{name}:{signed[name].strip()}" for name in names), "", listed, PAYLOAD)
        )
        scope = f"{day}/{self.region}/s3/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{digest}"
        signature = hmac.digest(self._day_key(credentials.secret_key, day), text.encode(), "sha256").hex()
        headers["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={listed}, Signature={signature}"
        )

    def _day_key(self, secret: str, day: str) -> bytes:
        if self._key[:2] != (day, secret):
            key = b"AWS4" + secret.encode()
            for part in (day, self.region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key = (day, secret, key)
        return self._key[2]
