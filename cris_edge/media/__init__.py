"""What a command or a server is pointed at, and the files it writes."""
