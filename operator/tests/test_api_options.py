"""The grammar of mount and format options: what the client knows passes, everything else is one sentence."""

import pytest
from jfs_api.format_options import merge_format_options, parse_format_options
from jfs_api.mount_options import normalize_path, parse_mount_options, split_mount_options, subdirectory
from jfs_api.options import Option, OptionError


def test_options_of_the_client_pass() -> None:
    texts = [
        "cache-size=100G",
        "attr-cache=1.5",
        "entry-cache=1h30m",
        "enable-xattr",
        "writeback=true",
        "subdir=/a/b",
        "ro",
        "umask=022",
    ]
    assert [str(option) for option in parse_mount_options(texts)] == texts


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cache-sise=1", "unknown mount option 'cache-sise'; is 'cache-size' meant?"),
        ("frobnicate", "unknown mount option 'frobnicate'"),
        ("cache-size", "mount option 'cache-size' needs a value: cache-size=… (a size like 512, 300M or 100G)"),
        ("cache-size=much", "mount option 'cache-size' must be a size like 512, 300M or 100G"),
        ("free-space-ratio=2", "mount option 'free-space-ratio' must be a number between 0 and 1"),
        ("atime-mode=never", "mount option 'atime-mode' must be one of noatime, relatime, strictatime"),
        ("--writeback", "mount option '--writeback': write the long name without dashes"),
        ("background", "mount option 'background': in a pod the sidecar decides this, leave it out"),
    ],
)
def test_a_bad_mount_option_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_mount_options([text])
    assert str(caught.value) == sentence


def test_contradictions_are_refused_and_repetitions_are_not() -> None:
    assert parse_mount_options(["prefetch=1", "prefetch=1"]) == [Option("prefetch", "1")]
    with pytest.raises(OptionError, match="given twice"):
        parse_mount_options(["prefetch=1", "prefetch=2"])
    with pytest.raises(OptionError, match="contradict"):
        parse_mount_options(["ro", "rw"])


def test_attribute_text_is_split_and_the_directory_normalized() -> None:
    assert split_mount_options("cache-size=1, enable-xattr  prefetch=2") == [
        "cache-size=1",
        "enable-xattr",
        "prefetch=2",
    ]
    assert subdirectory(parse_mount_options(["subdir=a//b/"])) == "/a/b"
    assert subdirectory([]) is None
    with pytest.raises(OptionError):
        normalize_path("a/../b")


def test_format_options_merge_with_the_volume_winning() -> None:
    assert merge_format_options("trash-days=1,--hash-prefix compress=lz4", {"trash-days": "0", "enable-acl": ""}) == (
        "trash-days=0,hash-prefix,compress=lz4,enable-acl"
    )


@pytest.mark.parametrize(
    "text", ["secret-key=x", "force", "ranger-rest-url=x", "blocksize=4M", "compress=gzip", "trash-days=soon"]
)
def test_a_bad_format_option_is_refused_without_its_value(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_format_options(text)
    assert "=x" not in str(caught.value)
