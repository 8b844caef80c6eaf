"""One package per metadata engine; each maps the typed records to a layout. Only here are database drivers imported."""
