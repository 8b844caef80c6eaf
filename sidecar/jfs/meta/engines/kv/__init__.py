"""Ordered key-value databases: etcd and TiKV, in JuiceFS's TKV layout (format §4.3)."""
