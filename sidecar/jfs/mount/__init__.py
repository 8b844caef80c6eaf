"""A mount as a process: its options, putting the layers together, serving until it is unmounted, starting in the background."""
