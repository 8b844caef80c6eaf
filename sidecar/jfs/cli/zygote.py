"""`jfs zygote` (hidden): the process that the sidecar's workers are forked from; see `jfs.mount.zygote`."""


def main(arguments: list[str]) -> int:
    """Entry of the command; it takes no arguments."""
    from jfs.mount import zygote

    return zygote.main()
