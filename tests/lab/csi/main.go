// A CSI driver for a node with btrfs: a volume is a subvolume, a snapshot of it a read-only one, taken in one moment.
// It tells the kubelet of itself, as node-driver-registrar does for others.
//
//	csi --root DIR --node NAME --endpoint SOCKET [--registration SOCKET]
//
// Absent: limits of size, blocks, clones, expansion, topology.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const name = "btrfs.csi.lifeboat.lab"

type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
	sync.Mutex
	root, node, endpoint string
}

// What is known of a volume or of a snapshot, beside it.
type facts struct {
	Name     string    `json:"name"`
	Size     int64     `json:"size"`
	Snapshot string    `json:"snapshot,omitempty"` // that a volume was made of
	Volume   string    `json:"volume,omitempty"`   // that a snapshot was taken of
	Taken    time.Time `json:"taken"`
}

const (
	volumes   = "volumes"
	snapshots = "snapshots"
)

func main() {
	var d driver
	flag.StringVar(&d.root, "root", "", "directory on btrfs")
	flag.StringVar(&d.node, "node", "", "name of this node")
	flag.StringVar(&d.endpoint, "endpoint", "", "socket to serve at")
	registry := flag.String("registration", "", "socket at which the kubelet asks for this driver")
	flag.Parse()
	for _, kind := range []string{volumes, snapshots} {
		if err := os.MkdirAll(filepath.Join(d.root, kind), 0o755); err != nil {
			log.Fatal(err)
		}
	}
	if *registry != "" {
		kubelet := grpc.NewServer()
		registration.RegisterRegistrationServer(kubelet, &registrar{endpoint: d.endpoint})
		go serve(kubelet, *registry)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(logged))
	csi.RegisterIdentityServer(server, &d)
	csi.RegisterControllerServer(server, &d)
	csi.RegisterNodeServer(server, &d)
	serve(server, d.endpoint)
}

func serve(server *grpc.Server, socket string) {
	_ = os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err == nil {
		err = server.Serve(listener)
	}
	log.Fatal(err)
}

func logged(ctx context.Context, in any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	out, err := next(ctx, in)
	if err != nil {
		log.Printf("%s: %v", info.FullMethod, err)
	}
	return out, err
}

type registrar struct {
	registration.UnimplementedRegistrationServer
	endpoint string
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: name, Endpoint: r.endpoint, SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (r *registrar) NotifyRegistrationStatus(_ context.Context, in *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	log.Printf("registered: %t %s", in.PluginRegistered, in.Error)
	return &registration.RegistrationStatusResponse{}, nil
}

// Identity

func (d *driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: name, VendorVersion: "1"}, nil
}

func (d *driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	controller := &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE}
	return &csi.GetPluginCapabilitiesResponse{
		Capabilities: []*csi.PluginCapability{{Type: &csi.PluginCapability_Service_{Service: controller}}},
	}, nil
}

func (d *driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

// Controller

func (d *driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	out := &csi.ControllerGetCapabilitiesResponse{}
	for _, kind := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
	} {
		rpc := &csi.ControllerServiceCapability_RPC{Type: kind}
		out.Capabilities = append(out.Capabilities, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{Rpc: rpc}})
	}
	return out, nil
}

func (d *driver) CreateVolume(_ context.Context, in *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if in.Name == "" {
		return nil, status.Error(codes.InvalidArgument, "no name")
	}
	if err := mountable(in.VolumeCapabilities); err != nil {
		return nil, err
	}
	if err := noParameters(in.Parameters); err != nil {
		return nil, err
	}
	wanted := facts{Name: in.Name, Size: in.CapacityRange.GetRequiredBytes()}
	if in.VolumeContentSource != nil {
		wanted.Snapshot = in.VolumeContentSource.GetSnapshot().GetSnapshotId()
		if wanted.Snapshot == "" {
			return nil, status.Error(codes.InvalidArgument, "volumes are made of snapshots only")
		}
	}
	d.Lock()
	defer d.Unlock()
	id := identify(in.Name)
	there, err := d.read(volumes, id)
	if err == nil && (there.Size != wanted.Size || there.Snapshot != wanted.Snapshot) {
		return nil, status.Error(codes.AlreadyExists, "it was made with another size or of another snapshot")
	}
	if err != nil {
		make := []string{"create"}
		if wanted.Snapshot != "" {
			if _, err := d.read(snapshots, wanted.Snapshot); err != nil {
				return nil, err
			}
			make = []string{"snapshot", d.path(snapshots, wanted.Snapshot)}
		}
		if err := d.add(volumes, id, wanted, make...); err != nil {
			return nil, err
		}
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{
		VolumeId: id, CapacityBytes: wanted.Size, ContentSource: in.VolumeContentSource,
	}}, nil
}

func (d *driver) DeleteVolume(_ context.Context, in *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	return &csi.DeleteVolumeResponse{}, d.remove(volumes, in.VolumeId)
}

func (d *driver) ValidateVolumeCapabilities(_ context.Context, in *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if in.VolumeId == "" {
		return nil, status.Error(codes.InvalidArgument, "no volume")
	}
	if err := mountable(in.VolumeCapabilities); err != nil {
		return nil, err
	}
	if _, err := d.read(volumes, in.VolumeId); err != nil {
		return nil, err
	}
	confirmed := &csi.ValidateVolumeCapabilitiesResponse_Confirmed{VolumeCapabilities: in.VolumeCapabilities}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: confirmed}, nil
}

func (d *driver) CreateSnapshot(_ context.Context, in *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if in.Name == "" || in.SourceVolumeId == "" {
		return nil, status.Error(codes.InvalidArgument, "no name, or no volume")
	}
	if err := noParameters(in.Parameters); err != nil {
		return nil, err
	}
	d.Lock()
	defer d.Unlock()
	id := identify(in.Name)
	taken, err := d.read(snapshots, id)
	if err == nil && taken.Volume != in.SourceVolumeId {
		return nil, status.Error(codes.AlreadyExists, "it was taken of another volume")
	}
	if err != nil {
		volume, err := d.read(volumes, in.SourceVolumeId)
		if err != nil {
			return nil, err
		}
		// Before it is taken: it holds all that was written until then.
		taken = facts{Name: in.Name, Size: volume.Size, Volume: in.SourceVolumeId, Taken: time.Now()}
		if err := d.add(snapshots, id, taken, "snapshot", "-r", d.path(volumes, in.SourceVolumeId)); err != nil {
			return nil, err
		}
	}
	return &csi.CreateSnapshotResponse{Snapshot: &csi.Snapshot{
		SnapshotId: id, SourceVolumeId: taken.Volume, SizeBytes: taken.Size, CreationTime: timestamppb.New(taken.Taken), ReadyToUse: true,
	}}, nil
}

func (d *driver) DeleteSnapshot(_ context.Context, in *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	return &csi.DeleteSnapshotResponse{}, d.remove(snapshots, in.SnapshotId)
}

// Node

func (d *driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{}, nil
}

func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.node}, nil
}

func (d *driver) NodePublishVolume(_ context.Context, in *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if in.VolumeId == "" || in.TargetPath == "" {
		return nil, status.Error(codes.InvalidArgument, "no volume, or no path")
	}
	if err := mountable([]*csi.VolumeCapability{in.VolumeCapability}); err != nil {
		return nil, err
	}
	if _, err := d.read(volumes, in.VolumeId); err != nil {
		return nil, err
	}
	d.Lock()
	defer d.Unlock()
	if mounted(in.TargetPath) {
		return &csi.NodePublishVolumeResponse{}, nil
	}
	err := os.MkdirAll(in.TargetPath, 0o755)
	if err == nil {
		err = unix.Mount(d.path(volumes, in.VolumeId), in.TargetPath, "", unix.MS_BIND, "")
	}
	if err == nil && in.Readonly {
		err = unix.Mount("", in.TargetPath, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
	}
	return &csi.NodePublishVolumeResponse{}, internal("mount", err)
}

func (d *driver) NodeUnpublishVolume(_ context.Context, in *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if in.VolumeId == "" || in.TargetPath == "" {
		return nil, status.Error(codes.InvalidArgument, "no volume, or no path")
	}
	d.Lock()
	defer d.Unlock()
	var err error
	if mounted(in.TargetPath) {
		err = unix.Unmount(in.TargetPath, 0)
	}
	if err == nil {
		err = os.Remove(in.TargetPath)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return &csi.NodeUnpublishVolumeResponse{}, internal("unmount", err)
}

// A mount point lies on another device than the directory that it is in.
func mounted(path string) bool {
	var inside, outside unix.Stat_t
	return unix.Stat(path, &inside) == nil && unix.Stat(filepath.Dir(path), &outside) == nil && inside.Dev != outside.Dev
}

// Names are anybody's; identifiers are file names.
func identify(name string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(name)))[:32] }

func (d *driver) path(kind, id string) string { return filepath.Join(d.root, kind, filepath.Base(id)) }

func (d *driver) read(kind, id string) (known facts, err error) {
	text, err := os.ReadFile(d.path(kind, id) + ".json")
	if errors.Is(err, fs.ErrNotExist) {
		return known, status.Errorf(codes.NotFound, "there is no %s in %s", id, kind)
	}
	if err == nil {
		err = json.Unmarshal(text, &known)
	}
	return known, internal("read", err)
}

// The facts come last: without them there is nothing.
func (d *driver) add(kind, id string, known facts, make ...string) error {
	path := d.path(kind, id)
	if err := btrfs(append(make, path)...); err != nil {
		return err
	}
	text, err := json.Marshal(known)
	if err == nil {
		err = os.WriteFile(path+".json", text, 0o644)
	}
	return internal("write", err)
}

func (d *driver) remove(kind, id string) error {
	if id == "" {
		return status.Error(codes.InvalidArgument, "no identifier")
	}
	d.Lock()
	defer d.Unlock()
	path := d.path(kind, id)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := btrfs("delete", path); err != nil {
		return err
	}
	return internal("remove", os.Remove(path+".json"))
}

func btrfs(arguments ...string) error {
	said, err := exec.Command("btrfs", append([]string{"subvolume"}, arguments...)...).CombinedOutput()
	if err != nil {
		return status.Errorf(codes.Internal, "btrfs subvolume %s: %v: %s", arguments[0], err, said)
	}
	return nil
}

func internal(what string, err error) error {
	if err == nil {
		return nil
	}
	return status.Errorf(codes.Internal, "%s: %v", what, err)
}

func mountable(capabilities []*csi.VolumeCapability) error {
	if len(capabilities) == 0 {
		return status.Error(codes.InvalidArgument, "no capabilities")
	}
	for _, capability := range capabilities {
		if capability.GetMount() == nil {
			return status.Error(codes.InvalidArgument, "there are no block devices here, only what is mounted")
		}
	}
	return nil
}

func noParameters(given map[string]string) error {
	for parameter := range given {
		return status.Errorf(codes.InvalidArgument, "there is no parameter %s", parameter)
	}
	return nil
}
