"""The guests of local mode: images of a small Debian, made from Debian's packages, and the seeds that they read."""
