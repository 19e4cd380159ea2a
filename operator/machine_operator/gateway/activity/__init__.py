"""Activity: that machines are used is written into their status, so that they do not sleep."""
