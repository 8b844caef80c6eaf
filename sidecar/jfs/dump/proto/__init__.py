"""Messages of the binary dump (format §9.4)."""
