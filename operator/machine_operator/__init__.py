"""Machine Operator: persistent Linux VMs on Kubernetes that cost nothing while nobody uses them."""

__version__ = "0.1.0"
