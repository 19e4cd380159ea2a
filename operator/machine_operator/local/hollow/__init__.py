"""The hollow node: kubelet, virt-handler and storage provisioner of the local cluster, with QEMU as the hypervisor.

To the control plane it is an ordinary node: it registers itself, reports launcher pods and VMIs
with the identities and rights that the real agents have, and provisions volumes. Under the pods
there are no containers; a VMI is one QEMU process, which outlives the node's own process and is
adopted again by the next one.

`node` keeps the Node object alive, `pods` is kubelet, `instances` is virt-handler, `provisioner`
makes volumes; `guests` owns the QEMU processes (`plan` decides what runs, `qemu` spells the command
line, `qmp` talks to it).
"""
