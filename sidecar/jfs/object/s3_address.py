"""What a bucket's URL means (format §2.5): endpoint, bucket, region, and how the two are put together in a request.

Pure functions. The rules are the real client's:
- `https://endpoint/bucket` is path style; anything behind the bucket is ignored, keys always begin with the volume's name;
- `https://bucket.endpoint` names the bucket by its first label. On Amazon the request goes to that host; on any other
  endpoint it is made in path style, which every server understands, unless JFS_S3_VHOST_STYLE is set;
- a URL without a scheme gets `http://`, on Amazon `https://`; a bare name is a bucket on Amazon;
- the region comes from an Amazon host's name, else from MINIO_REGION (minio) or AWS_REGION, AWS_DEFAULT_REGION, else us-east-1.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, quote, urlsplit

from jfs.errors import ConfigError

_AWS: Final = ".amazonaws.com"
_AWS_REGION: Final = re.compile(r"(?:^|\.)s3[.-](?:dualstack\.|accesspoint\.|fips\.)?([a-z]{2}(?:-[a-z]+)+-\d)\.")
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


@dataclass(frozen=True, slots=True)
class BucketAddress:
    """A bucket on an endpoint. *endpoint* is `host[:port]` without the bucket."""

    secure: bool
    endpoint: str
    bucket: str
    region: str
    path_style: bool
    verify: bool = True  # the server's certificate

    @property
    def scheme(self) -> str:
        return "https" if self.secure else "http"

    @property
    def host(self) -> str:
        """The Host header of a request."""
        return self.endpoint if self.path_style else f"{self.bucket}.{self.endpoint}"

    def path(self, key: str) -> str:
        """The percent-encoded path of an object, as it is signed and sent."""
        encoded = quote(key, safe="/-_.~")
        return f"/{self.bucket}/{encoded}" if self.path_style else f"/{encoded}"

    def source(self, key: str) -> str:
        """How a request for a copy names an object."""
        return f"/{self.bucket}/{quote(key, safe='/-_.~')}"

    def describe(self) -> str:
        """For messages."""
        return f"{self.scheme}://{self.endpoint}/{self.bucket}/"


def parse_bucket_url(kind: str, url: str, environment: Mapping[str, str]) -> BucketAddress:
    """The address that *url* means for storage *kind* (`s3` or `minio`); ConfigError when it names no bucket."""
    text = url.strip()
    if not text:
        raise ConfigError(f"the object storage {kind} needs a bucket URL such as https://endpoint/bucket")
    if "://" not in text:
        amazon = kind == "s3" and ("." not in text.partition("/")[0] or text.partition("/")[0].endswith(_AWS))
        text = ("https://" if amazon else "http://") + text
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https"):
        raise ConfigError(f"the bucket URL {_shown(url)} must begin with http:// or https://")
    if parts.username or parts.password:
        raise ConfigError(
            f"the bucket URL {_shown(url)} must not hold credentials; give them as access key and secret key"
        )
    host = parts.netloc.lower()
    try:
        port = parts.port
    except ValueError:
        raise ConfigError(f"the bucket URL {_shown(url)} has a port that is no number") from None
    verify = _certificate_checked(url, parts.query)
    secure = parts.scheme == "https"
    segments = [segment for segment in parts.path.split("/") if segment]
    region = environment.get("MINIO_REGION", "") if kind == "minio" else ""
    region = region or environment.get("AWS_REGION", "") or environment.get("AWS_DEFAULT_REGION", "") or "us-east-1"
    on_amazon = (parts.hostname or "").endswith((_AWS, _AWS + ".cn"))
    if on_amazon and (found := _AWS_REGION.search(host)) is not None:
        region = found.group(1)
    if segments:
        return _checked(BucketAddress(secure, host, segments[0], region, True, verify), url)
    label, _, rest = host.partition(".")
    if kind == "minio" or _is_address(parts.hostname or "") or (not rest and port is not None):
        raise ConfigError(f"the bucket URL {_shown(url)} names no bucket: write {parts.scheme}://{host}/BUCKET")
    if not rest:
        suffix = _AWS + ".cn" if region.startswith("cn-") else _AWS
        return _checked(BucketAddress(secure, f"s3.{region}{suffix}", host, region, False, verify), url)
    if on_amazon:
        # Bucket names may hold dots: the endpoint begins at the label `s3…`.
        cut = re.search(r"\.s3[.-]", host)
        if cut is None:
            raise ConfigError(
                f"the bucket URL {_shown(url)} names no bucket: write https://BUCKET.s3.REGION.amazonaws.com"
            )
        return _checked(BucketAddress(secure, host[cut.start() + 1 :], host[: cut.start()], region, False, verify), url)
    virtual = environment.get("JFS_S3_VHOST_STYLE", "").lower() not in ("", "0", "false")
    return _checked(BucketAddress(secure, rest, label, region, not virtual, verify), url)


def _checked(address: BucketAddress, url: str) -> BucketAddress:
    if not address.endpoint or not _BUCKET.fullmatch(address.bucket):
        raise ConfigError(f"the bucket URL {_shown(url)} names no valid bucket: write https://endpoint/bucket")
    return address


def _certificate_checked(url: str, query: str) -> bool:
    options = parse_qs(query, keep_blank_values=True)
    skip = options.pop("tls-insecure-skip-verify", ["false"])[-1].lower()
    if options:
        raise ConfigError(f"the bucket URL {_shown(url)} has an unknown option {next(iter(options))}")
    return skip not in ("true", "1", "")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _shown(url: str) -> str:
    """The URL without what may be secret in it."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])
