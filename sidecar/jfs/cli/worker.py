"""`jfs worker` (hidden): one mount for the sidecar's supervisor; see `jfs.mount.worker`. With `--zygote` the process that workers are
forked from (`jfs.mount.zygote`)."""


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    if arguments == ["--zygote"]:
        from jfs.mount import zygote

        return zygote.main()
    from jfs.mount import worker

    return worker.main()
