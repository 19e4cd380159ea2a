// Command manifests prints the objects that KubeVirt's control plane needs
// before virt-api and virt-controller can run: CRDs, RBAC, webhook
// configurations and APIServices, as one JSON List on standard output.
//
// On a real cluster virt-operator makes these objects. It is not run here,
// because it would also install Deployments and DaemonSets that want a
// container runtime; the functions it calls are public, so they are called
// from here instead. What points at the in-cluster Service (webhooks and
// APIServices) is printed as KubeVirt makes it: the reader redirects it.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	extv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/components"
	"kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/rbac"
)

// namespace is where KubeVirt's service accounts and roles live.
const namespace = "kubevirt"

// crds lists every kind that virt-api or virt-controller watches: a missing
// one keeps their informers from ever syncing.
var crds = []func() (*extv1.CustomResourceDefinition, error){
	components.NewVirtualMachineInstanceCrd,
	components.NewVirtualMachineCrd,
	components.NewPresetCrd,
	components.NewReplicaSetCrd,
	components.NewVirtualMachineInstanceMigrationCrd,
	components.NewKubeVirtCrd,
	components.NewVirtualMachinePoolCrd,
	components.NewVirtualMachineSnapshotCrd,
	components.NewVirtualMachineSnapshotContentCrd,
	components.NewVirtualMachineRestoreCrd,
	components.NewVirtualMachineExportCrd,
	components.NewVirtualMachineBackupCrd,
	components.NewVirtualMachineBackupTrackerCrd,
	components.NewVirtualMachineInstancetypeCrd,
	components.NewVirtualMachineClusterInstancetypeCrd,
	components.NewVirtualMachinePreferenceCrd,
	components.NewVirtualMachineClusterPreferenceCrd,
	components.NewMigrationPolicyCrd,
	components.NewVirtualMachineCloneCrd,
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kubevirt-manifests:", err)
		os.Exit(1)
	}
}

func run() error {
	objects, err := objects()
	if err != nil {
		return err
	}
	items := make([]map[string]any, 0, len(objects))
	for _, object := range objects {
		item, err := plain(object)
		if err != nil {
			return err
		}
		items = append(items, item)
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"apiVersion": "v1",
		"kind":       "List",
		"items":      items,
	})
}

// objects returns everything in an order in which it can be created.
func objects() ([]any, error) {
	var all []any
	for _, newCRD := range crds {
		crd, err := newCRD()
		if err != nil {
			return nil, fmt.Errorf("making a CRD: %w", err)
		}
		all = append(all, crd)
	}
	all = appendEach(all, rbac.GetAllApiServer(namespace))
	all = appendEach(all, rbac.GetAllController(namespace, false)) // no Multus here
	all = appendEach(all, rbac.GetAllHandler(namespace))
	all = appendEach(all, rbac.GetAllCluster())
	all = append(all,
		components.NewVirtAPIMutatingWebhookConfiguration(namespace),
		components.NewVirtAPIValidatingWebhookConfiguration(namespace),
		components.NewVirtLauncherPodMutatingWebhookConfiguration(namespace),
	)
	return appendEach(all, components.NewVirtAPIAPIServices(namespace)), nil
}

func appendEach[T any](all []any, more []T) []any {
	for _, object := range more {
		all = append(all, object)
	}
	return all
}

// plain turns a typed object into what is to be sent. `status` goes: the Go
// types serialise it empty, and a CRD's empty status is refused by validation.
func plain(object any) (map[string]any, error) {
	data, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", object, err)
	}
	var item map[string]any
	if err := json.Unmarshal(data, &item); err != nil {
		return nil, fmt.Errorf("decoding %T: %w", object, err)
	}
	delete(item, "status")
	if item["kind"] == nil || item["apiVersion"] == nil {
		return nil, fmt.Errorf("%T has no kind or apiVersion", object)
	}
	return item, nil
}
