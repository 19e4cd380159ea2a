"""What runs in a local cluster, with which flags, in which order it starts.

The flags are those of a production cluster but for what loopback and one node make different; admission, RBAC, the
Node authorizer, aggregation and garbage collection are all on.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from machine_operator.local.certificates import key_pair
from machine_operator.local.paths import ClusterPaths
from machine_operator.local.settings import ClusterSettings

__all__ = ["Component", "components"]

_LOOPBACK = "127.0.0.1"

_CONTROLLERS = (
    # Each is there for a reason: without serviceaccount-controller no launcher pod is admitted; without
    # node-lifecycle the not-ready taint stays; without resourcequota quotas are not enforced; without
    # clusterrole-aggregation admin/edit/view are empty; the persistent-volume ones bind and protect home disks.
    "serviceaccount-controller",
    "node-lifecycle-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "resourcequota-controller",
    "clusterrole-aggregation-controller",
    "pod-garbage-collector-controller",
    "taint-eviction-controller",
    "disruption-controller",
    "persistentvolume-binder-controller",
    "persistentvolume-protection-controller",
    "persistentvolumeclaim-protection-controller",
)


@dataclass(frozen=True, slots=True)
class Component:
    """One supervised process.

    Attributes:
        name: as in logs and `local status`.
        command: argv.
    """

    name: str
    command: tuple[str, ...]


def components(settings: ClusterSettings, paths: ClusterPaths) -> dict[str, Component]:
    """All components by name, in the order of their start."""
    everything = [
        _etcd(settings, paths),
        _apiserver(settings, paths),
        _virt_api(settings, paths),
        _scheduler(settings, paths),
        _controller_manager(settings, paths),
        _virt_controller(settings, paths),
        _hollow_node(paths),
    ]
    if settings.controller:
        everything.append(_controller(settings, paths))
    if settings.gateway:
        everything.append(_gateway(settings, paths))
    return {component.name: component for component in everything}


def _etcd(settings: ClusterSettings, paths: ClusterPaths) -> Component:
    client = f"https://{_LOOPBACK}:{settings.ports['etcd']}"
    peer = f"https://{_LOOPBACK}:{settings.ports['etcd-peer']}"
    pair, authority = key_pair(paths.pki, "etcd"), paths.pki / "etcd-ca.crt"
    return Component(
        "etcd",
        (
            f"{settings.binaries}/etcd",
            f"--data-dir={paths.data}/etcd",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--client-cert-auth",
            f"--trusted-ca-file={authority}",
            f"--cert-file={pair.certificate}",
            f"--key-file={pair.key}",
            "--peer-client-cert-auth",
            f"--peer-trusted-ca-file={authority}",
            f"--peer-cert-file={pair.certificate}",
            f"--peer-key-file={pair.key}",
            # A power cut may lose the last seconds of a local cluster; in return it starts in half the time.
            "--unsafe-no-fsync=true",
            "--log-level=warn",
        ),
    )


def _apiserver(settings: ClusterSettings, paths: ClusterPaths) -> Component:
    pki = paths.pki
    serving, proxy = key_pair(pki, "kube-apiserver"), key_pair(pki, "front-proxy")
    etcd = key_pair(pki, "etcd-client")
    return Component(
        "kube-apiserver",
        (
            f"{settings.binaries}/kube-apiserver",
            f"--etcd-servers=https://{_LOOPBACK}:{settings.ports['etcd']}",
            f"--etcd-cafile={pki}/etcd-ca.crt",
            f"--etcd-certfile={etcd.certificate}",
            f"--etcd-keyfile={etcd.key}",
            f"--bind-address={_LOOPBACK}",
            f"--secure-port={settings.ports['kube-apiserver']}",
            # A loopback address may not be advertised; with the reconciler off, this one is never written anywhere.
            "--advertise-address=192.0.2.1",
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={pki}/cluster-ca.crt",
            f"--requestheader-client-ca-file={pki}/front-proxy-ca.crt",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={proxy.certificate}",
            f"--proxy-client-key-file={proxy.key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki}/service-account.pub",
            f"--service-account-signing-key-file={pki}/service-account.key",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--anonymous-auth=false",
            "--allow-privileged=true",
            "--profiling=false",
        ),
    )


def _identity(paths: ClusterPaths, name: str) -> tuple[str, ...]:
    file = paths.kubeconfigs / f"{name}.yaml"
    return (
        f"--kubeconfig={file}",
        f"--authentication-kubeconfig={file}",
        f"--authorization-kubeconfig={file}",
    )


def _controller_manager(settings: ClusterSettings, paths: ClusterPaths) -> Component:
    return Component(
        "kube-controller-manager",
        (
            f"{settings.binaries}/kube-controller-manager",
            *_identity(paths, "controller-manager"),
            f"--bind-address={_LOOPBACK}",
            f"--secure-port={settings.ports['kube-controller-manager']}",
            f"--cert-dir={paths.data}/kube-controller-manager",
            "--leader-elect=false",
            f"--root-ca-file={paths.pki}/cluster-ca.crt",
            f"--service-account-private-key-file={paths.pki}/service-account.key",
            # Under RBAC its own user has next to no rights; each controller has its service account.
            "--use-service-account-credentials=true",
            f"--controllers={','.join(_CONTROLLERS)}",
        ),
    )


def _scheduler(settings: ClusterSettings, paths: ClusterPaths) -> Component:
    return Component(
        "kube-scheduler",
        (
            f"{settings.binaries}/kube-scheduler",
            *_identity(paths, "scheduler"),
            f"--bind-address={_LOOPBACK}",
            f"--secure-port={settings.ports['kube-scheduler']}",
            f"--cert-dir={paths.data}/kube-scheduler",
            "--leader-elect=false",
        ),
    )


def _virt_api(settings: ClusterSettings, paths: ClusterPaths) -> Component:
    serving = key_pair(paths.pki, "virt-api-serving")
    handler = key_pair(paths.pki, "handler-client")
    return Component(
        "virt-api",
        (
            f"{settings.binaries}/virt-api",
            f"--kubeconfig={paths.kubeconfigs}/virt-api.yaml",
            f"--listen={_LOOPBACK}",
            f"--port={settings.ports['virt-api']}",
            f"--console-server-port={settings.ports['virt-handler']}",
            "--subresources-only",
            "--externally-managed=true",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-key-file={serving.key}",
            f"--handler-cert-file={handler.certificate}",
            f"--handler-key-file={handler.key}",
            "-v=2",
        ),
    )


def _virt_controller(settings: ClusterSettings, paths: ClusterPaths) -> Component:
    serving = key_pair(paths.pki, "virt-controller-serving")
    return Component(
        "virt-controller",
        (
            f"{settings.binaries}/virt-controller",
            f"--kubeconfig={paths.kubeconfigs}/virt-controller.yaml",
            f"--listen={_LOOPBACK}",
            f"--port={settings.ports['virt-controller']}",
            "--launcher-image=virt-launcher:local",
            "--exporter-image=virt-exporter:local",
            f"--prom-cert-file={serving.certificate}",
            f"--prom-key-file={serving.key}",
            "-v=2",
        ),
    )


def _hollow_node(paths: ClusterPaths) -> Component:
    return Component(
        "hollow-node",
        (sys.executable, "-m", "machine_operator.local.hollow", f"--config={paths.data}/node.json"),
    )


def _controller(settings: ClusterSettings, paths: ClusterPaths) -> Component:
    return Component(
        "controller",
        (
            sys.executable,
            "-m",
            "machine_operator.cli.main",
            "controller",
            f"--kubeconfig={paths.kubeconfigs}/operator.yaml",
            f"--default-image={settings.default_image}",
            f"--ssh-port={settings.ssh_port}",
            f"--ssh-user-ca={paths.pki}/ssh-user-ca.pub",
            f"--ssh-host-ca={paths.pki}/ssh-host-ca",
            # The supervisor never runs two of them, so a new one need not wait for the old one's lease to expire.
            "--identity=local",
            f"--metrics-address={_LOOPBACK}:{settings.ports['controller']}",
        ),
    )


def _gateway(settings: ClusterSettings, paths: ClusterPaths) -> Component:
    return Component(
        "gateway",
        (
            sys.executable,
            "-m",
            "machine_operator.cli.main",
            "gateway",
            f"--kubeconfig={paths.kubeconfigs}/gateway.yaml",
            f"--address={_LOOPBACK}:{settings.ports['gateway']}",
            f"--gateway-metrics-address={_LOOPBACK}:{settings.ports['gateway-metrics']}",
            f"--database=sqlite:///{paths.data}/gateway.db",
            f"--credentials={paths.pki}",
            f"--guest-port={settings.ssh_port}",
            f"--artifacts=file://{paths.data}/artifacts",
            f"--ssh-address={_LOOPBACK}:{settings.ports['gateway-ssh']}",
            # All names below localhost are loopback, for browsers and for many resolvers.
            f"--preview-domain=previews.localhost:{settings.ports['gateway']}",
        ),
    )
