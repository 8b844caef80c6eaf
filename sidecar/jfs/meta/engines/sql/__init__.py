"""Database servers that speak SQL: PostgreSQL, MySQL and MariaDB, in JuiceFS's tables (format §4.2)."""
