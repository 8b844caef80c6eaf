"""The file-system client: a JuiceFS volume as a FUSE mount, and the `jfs` command."""
