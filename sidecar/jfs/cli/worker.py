"""`jfs worker` (hidden): one mount for the sidecar's supervisor; see `jfs.mount.worker`."""


def main(arguments: list[str]) -> int:
    """Entry of the command; it takes no arguments."""
    from jfs.mount import worker

    return worker.main()
