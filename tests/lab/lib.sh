# The lab's names, places and words; sourced by its scripts.
# shellcheck shell=bash
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=${LIFEBOAT_LAB:-${XDG_STATE_HOME:-$HOME/.local/state}/lifeboat/lab}
cache=${LIFEBOAT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lifeboat}
[[ $cache == /* ]] || cache=$PWD/$cache
# A number each, so that any of them can run side by side. The tests have their own: they do not disturb the user's.
clusters=(region-a region-b test-a test-b test-c test-d test-e test-f)
# In the order of their start.
components=(containerd etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy)
export PATH=$PATH:/usr/sbin:/sbin

say() { printf 'lab: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# cluster NAME: sets what is the cluster's own.
cluster() {
    local index
    name=${1:-} number=
    for index in "${!clusters[@]}"; do
        [[ ${clusters[index]} != "$name" ]] || number=$((index + 1))
    done
    [[ -n $number ]] || die "there is no cluster '$name'; there are: ${clusters[*]}"
    state=$root/$name
    bin=$state/bin etc=$state/kubernetes pki=$etc/pki logs=$state/logs run=$state/run
    host_ip=10.201.$number.1 node_ip=10.201.$number.2 pods=10.202.$number.0/24
    # Seen from inside only, and kept in the cluster's own objects: the same, so that one can be restored as another.
    services=10.203.0.0/24 api_ip=10.203.0.1 dns_ip=10.203.0.10
    link=lifeboat-$number cgroup=lifeboat-$name
    containerd_socket=$run/containerd.sock
    export KUBECONFIG=$etc/admin.conf
}

# The process that holds the cluster's namespaces, if it lives.
holder() {
    local pid
    pid=$(cat "$state/holder" 2>/dev/null) || return 1
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "/lab/init $name " && printf '%s\n' "$pid"
}

# Ends every process of the cluster. The namespaces' first one is the holder's child, and the last to disappear.
end_processes() {
    local pid process processes
    pid=$(holder) || return 0
    mapfile -t processes < <(grep -l -E "^PPid:[[:space:]]+$pid\$" /proc/[0-9]*/status 2>/dev/null | cut -d/ -f3)
    kill -KILL "${processes[@]}" "$pid" 2>/dev/null || true
    for process in "${processes[@]}" "$pid"; do
        until_true 30 "the end of $name's processes" test ! -e "/proc/$process" || return 1
    done
}

# authority NAME: an authority for certificates, NAME.key and NAME.crt; ECDSA P-256, valid for a year.
authority() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj "/CN=$1" -keyout "$1.key" \
        -out "$1.crt" -addext keyUsage=critical,keyCertSign,cRLSign -addext basicConstraints=critical,CA:TRUE 2>/dev/null
}

# certificate NAME AUTHORITY SUBJECT USAGE [ALTERNATIVE-NAMES]: NAME.key and NAME.crt.
certificate() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$3" -keyout "$1.key" -out "$1.csr" 2>/dev/null
    openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -set_serial "0x$(openssl rand -hex 8)" -days 365 \
        -out "$1.crt" -extfile <(
            printf 'basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=%s\n' "$4"
            [[ -z ${5:-} ]] || printf 'subjectAltName=%s\n' "$5"
        ) 2>/dev/null
    rm "$1.csr"
}

# inside COMMAND…: runs it in the cluster's namespaces.
inside() {
    local pid
    pid=$(holder) || { say "the cluster $name is not up (tests/lab/up $name)"; return 1; }
    nsenter --mount="/proc/$pid/ns/mnt" --net="/proc/$pid/ns/net" --uts="/proc/$pid/ns/uts" --ipc="/proc/$pid/ns/ipc" \
        --pid="/proc/$pid/ns/pid_for_children" -- "$@"
}

# cgroups make|remove: the one below which the cluster's pods live, in every hierarchy.
cgroups() {
    local level hierarchy hierarchies=(/sys/fs/cgroup/*/)
    [[ ! -e /sys/fs/cgroup/cgroup.controllers ]] || hierarchies=(/sys/fs/cgroup/)
    for hierarchy in "${hierarchies[@]}"; do
        if [[ $1 == remove ]]; then
            [[ ! -d $hierarchy$cgroup ]] || find "$hierarchy$cgroup" -depth -type d -exec rmdir {} + || return 1
            continue
        fi
        # Beside the others, it has no controllers; runc leaves directories in it all the same.
        [[ $hierarchy != */unified/ ]] || continue
        mkdir -p "$hierarchy$cgroup"
        if [[ -e $hierarchy/cgroup.subtree_control ]]; then
            # All that the kernel has, since the kubelet wants each of those that it knows; from above to below.
            for level in "$hierarchy" "$hierarchy$cgroup/"; do
                sed 's/[^ ]*/+&/g' "$hierarchy/cgroup.controllers" >"${level}cgroup.subtree_control"
            done
        elif [[ -e $hierarchy/cpuset.cpus ]]; then
            # A new one has none of its own.
            cat "$hierarchy/cpuset.cpus" >"$hierarchy$cgroup/cpuset.cpus"
            cat "$hierarchy/cpuset.mems" >"$hierarchy$cgroup/cpuset.mems"
        fi
    done
}

# until_true SECONDS WHAT COMMAND…
until_true() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [[ $SECONDS -lt $deadline ]] || { say "not in time: $what"; return 1; }
        sleep 0.2
    done
}

etcdctl() {
    "$bin/etcdctl" --endpoints "https://$node_ip:2379" --cacert "$pki/etcd-ca.crt" --cert "$pki/etcd-client.crt" \
        --key "$pki/etcd-client.key" --command-timeout 3s "$@"
}

kubectl() { "$bin/kubectl" --request-timeout 5s "$@"; }

ready() {
    case $1 in
        containerd) inside ctr --address "$containerd_socket" version ;;
        etcd) etcdctl endpoint health ;;
        kube-apiserver) kubectl get --raw /readyz ;;
        kube-controller-manager) inside curl -sf --max-time 3 --cacert "$pki/ca.crt" https://localhost:10257/healthz ;;
        kube-scheduler) inside curl -sf --max-time 3 --cacert "$pki/ca.crt" https://localhost:10259/healthz ;;
        kubelet) [[ $(kubectl get node "$name" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}') == True ]] ;;
        kube-proxy) inside curl -sf --max-time 3 http://localhost:10256/healthz ;;
        coredns) kubectl -n kube-system wait deployment/coredns --for=condition=Available --timeout=1s ;;
        *) false ;;
    esac >/dev/null 2>&1
}

# Every workload of the cluster, what it shall have of pods and what is ready of them: NAMESPACE/KIND/NAME WANTED READY.
workloads() {
    "$bin/kubectl" --request-timeout 20s get deployments,statefulsets,daemonsets -A -o go-template='{{range .items}}{{if ne .metadata.namespace "kube-system"}}{{.metadata.namespace}}/{{.kind}}/{{.metadata.name}} {{or .spec.replicas .status.desiredNumberScheduled 0}} {{or .status.readyReplicas .status.numberReady 0}}{{"\n"}}{{end}}{{end}}'
}
