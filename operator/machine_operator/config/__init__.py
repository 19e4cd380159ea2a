"""Settings of the programs: what may be written, and where it may be written."""
