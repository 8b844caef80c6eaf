"""The `jfs` command line. `main.py` dispatches by name; every command is a module of its own, imported only when it runs."""
