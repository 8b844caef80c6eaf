"""Engine `redis`: JuiceFS's keys on one Redis server (format §4.1), over our own pipelined connection."""
