"""Between Machines and KubeVirt, without I/O: builders (Machine -> VM, disk, seed) and readers (VM, VMI -> views)."""
