"""The Machine kind: models, phases, conditions, durations, and the CRD made from them. No I/O."""
