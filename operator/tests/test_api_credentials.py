"""Credentials: every key checked, no value ever shown."""

import base64

import pytest
from jfs_api.credentials import Credentials, CredentialsError
from jfs_api.sources import resolve, secret_names
from jfs_api.volume import SpecError, parse_secret_spec

VALUES = {
    "name": "demo",
    "metaurl": "redis://user:hunter2@redis:6379/1",
    "storage": "s3",
    "bucket": "http://s3:8333/demo",
    "access-key": "AKIA",
    "secret-key": "s3cr3t-key",
    "token": "t0ken",
    "format-options": "trash-days=0",
    "envs": '{"META_PASSWORD": "env-secret", "N": 3}',
    "passphrase": "open-sesame",
}


def encoded(values: dict[str, str]) -> dict[str, str]:
    return {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}


def test_a_secret_becomes_the_documents_of_the_command_and_of_the_node() -> None:
    credentials = Credentials.from_secret(encoded({**VALUES, "unrelated": "x"}))
    assert credentials.document() == {
        "name": "demo",
        "metaurl": "redis://user:hunter2@redis:6379/1",
        "storage": "s3",
        "bucket": "http://s3:8333/demo",
        "access-key": "AKIA",
        "secret-key": "s3cr3t-key",
        "token": "t0ken",
        "passphrase": "open-sesame",
        "envs": {"META_PASSWORD": "env-secret", "N": "3"},
    }
    again = Credentials.from_secret(credentials.secret_data())
    assert again == credentials.model_copy(update={"format_options": ""})


def test_the_private_key_is_for_formatting_only() -> None:
    credentials = Credentials.from_values({**VALUES, "encrypt_rsa_key": "-----BEGIN pem"})
    assert credentials.document()["encrypt_rsa_key"] == "-----BEGIN pem"
    assert "encrypt_rsa_key" not in credentials.secret_data()
    assert "passphrase" in credentials.secret_data()
    assert "-----BEGIN pem" in credentials.secrets()
    assert "BEGIN" not in repr(credentials)


def test_no_value_is_ever_shown() -> None:
    credentials = Credentials.from_values(VALUES)
    assert {"hunter2", "s3cr3t-key", "t0ken", "env-secret", "open-sesame"} <= credentials.secrets()
    for secret in credentials.secrets() - {"3"}:
        assert secret not in repr(credentials)
        assert secret not in str(credentials)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": ""}, "KeyMissing"),
        ({"metaurl": " "}, "KeyMissing"),
        ({"name": "De"}, "KeyInvalid"),
        ({"metaurl": "hunter2"}, "KeyInvalid"),
        ({"metaurl": "sqlite3:///var/hunter2.db"}, "LocalEngine"),
        ({"storage": "file"}, "LocalStorage"),
        ({"envs": "{hunter2"}, "KeyInvalid"),
        ({"envs": '["hunter2"]'}, "KeyInvalid"),
        ({"format-options": "hunter2"}, "FormatOptionInvalid"),
    ],
)
def test_bad_keys_are_one_sentence_with_a_reason(change: dict[str, str], reason: str) -> None:
    with pytest.raises(CredentialsError) as caught:
        Credentials.from_values({**VALUES, **change})
    assert caught.value.reason == reason
    if reason != "FormatOptionInvalid":  # an option's name is shown, its value is not
        assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused_by_key() -> None:
    with pytest.raises(CredentialsError, match="key metaurl does not hold text"):
        Credentials.from_secret({"metaurl": base64.b64encode(b"\xff\xfe").decode()})


SPEC = {
    "name": {"value": "demo"},
    "metaURL": {"valueFrom": {"secretKeyRef": {"name": "meta", "key": "url"}}},
    "secretKey": {"valueFrom": {"secretKeyRef": {"name": "s3", "key": "secret"}}},
}


def test_references_are_resolved() -> None:
    fields = parse_secret_spec(SPEC)
    assert secret_names(fields) == {"meta", "s3"}
    credentials = resolve(fields, {"meta": encoded({"url": "redis://r/1"}), "s3": encoded({"secret": "k"})})
    assert (credentials.metaurl, credentials.secret_key) == ("redis://r/1", "k")


def test_references_that_lead_nowhere_say_where() -> None:
    fields = parse_secret_spec(SPEC)
    with pytest.raises(CredentialsError, match="Secret 's3' does not exist") as caught:
        resolve(fields, {"meta": encoded({"url": "redis://r/1"}), "s3": None})
    assert caught.value.reason == "SecretNotFound"
    with pytest.raises(CredentialsError, match="Secret 's3' has no key 'secret'"):
        resolve(fields, {"meta": encoded({"url": "redis://r/1"}), "s3": {}})


def test_a_secret_written_where_a_reference_belongs_is_not_echoed() -> None:
    with pytest.raises(SpecError) as caught:
        parse_secret_spec({**SPEC, "secretKey": {"value": "hunter2"}})
    assert "hunter2" not in str(caught.value)
    with pytest.raises(SpecError, match="exactly one"):
        parse_secret_spec({**SPEC, "name": {}})
