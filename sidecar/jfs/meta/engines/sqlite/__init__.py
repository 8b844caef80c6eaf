"""Engine `sqlite3`: JuiceFS's SQL tables in an SQLite file (format §4.2), used in the event-loop thread."""
