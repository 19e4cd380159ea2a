"""The gateway: machines over HTTP. `dcs/` is the DCS REST dialect; everything else here is what dialects share."""
