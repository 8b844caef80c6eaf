"""Leaf package: what the volume format fixes and both metadata and data need (constants, the setting record, slices)."""
