"""Credentials never leave in sentences."""

import pytest
from jfs_csi.control.redaction import redact


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("redis://:top-secret@db:6379/1", "top-secret"),
        ("redis://user:p%40ssword@db/1", "p%40ssword"),
        ("redis://user:p%40ssword@db/1", "p@ssword"),
        ("mysql://root:with:colon@(db:3306)/jfs", "with:colon"),
        ("postgres://u:pa@ss@db/jfs", "pa@ss"),
    ],
)
def test_passwords_of_metadata_urls(url: str, password: str) -> None:
    text = redact(f"Connecting to {url} failed: {password} is wrong.", {"metaurl": url})
    assert password not in text
    assert "failed" in text


def test_values_of_secret_keys_and_environments() -> None:
    secrets = {"secret-key": "hush-hush", "token": "tok-123", "envs": {"KEY": "env-secret"}, "bucket": "http://s3/b"}
    text = redact("hush-hush tok-123 env-secret at http://s3/b", secrets)
    assert text == "*** *** *** at http://s3/b"


def test_nothing_to_hide() -> None:
    assert redact("No such host.", {"metaurl": "redis://db/1", "name": "host", "token": ""}) == "No such host."
    assert redact("No such host.", None) == "No such host."
