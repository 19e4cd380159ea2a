"""Everything that talks to kube-apiserver: client, errors, informer, port-forward."""
