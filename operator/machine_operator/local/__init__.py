"""The local cluster: a real control plane as plain processes on loopback, and a hollow node that runs the VMs.

`cluster` is what the command line calls (up, down, status); `supervisor` is the process behind it; `components`
says what runs and with which flags; `bringup` puts the objects there; `hollow` is the node; `guest` makes images.
"""
