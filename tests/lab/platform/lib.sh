# The words of the platform's scripts; sourced by them with a cluster's name.
# shellcheck shell=bash
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
cluster "${1:-}"
[[ -e $state/complete ]] && holder >/dev/null || die "the cluster $name is not up (tests/lab/up $name)"
platform=$here/platform
# What Lifeboat's pods have below /etc/lifeboat: a directory for each Secret.
secrets=$state/secrets
# What only people have.
safe=$state/safe
mkdir -p -m 700 "$secrets" "$safe"
tools() { "$here/../tools/build" "$@"; }
# Built for the images, all but tofu.
programs=$(tools --path)
exec </dev/null

# word FILE: a password, made once.
word() {
    [[ -s $1 ]] || { mkdir -p "${1%/*}" && printf %s "$(openssl rand -hex 16)" >"$1"; }
}

# tls DIRECTORY NAME…: a certificate of these names, by the platform's authority, made once: ca.crt, tls.crt, tls.key.
tls() {
    [[ ! -s $1/tls.crt ]] || return 0
    local names
    printf -v names 'DNS:%s,' "${@:2}"
    mkdir -p "$1"
    [[ -s $safe/ca.crt ]] || (cd "$safe" && authority ca)
    cp "$safe/ca.crt" "$1/"
    certificate "$1/tls" "$safe/ca" "/CN=$2" serverAuth "${names}IP:127.0.0.1"
}

# Manifests, for `kubectl apply`.

# namespace NAME [LABEL: VALUE]
namespace() { printf -- '---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {%s}}\n' "$1" "${2:-}"; }

# secret NAMESPACE NAME FILE…: a file's name is its key.
secret() {
    local file
    printf -- '---\napiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: %s}\ndata:\n' "$2" "$1"
    for file in "${@:3}"; do printf '  %s: %s\n' "${file##*/}" "$(base64 -w0 "$file")"; done
}

# volumes NAMESPACE CLAIM…: for each claim a directory of the node, which outlives it.
volumes() {
    local claim
    printf -- '---\napiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: local}\n'
    printf 'provisioner: kubernetes.io/no-provisioner\nvolumeBindingMode: WaitForFirstConsumer\n'
    for claim in "${@:2}"; do
        mkdir -p "$state/volumes/$1/$claim"
        cat <<Y
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: $1-$claim}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: local
  persistentVolumeReclaimPolicy: Retain
  local: {path: $state/volumes/$1/$claim}
  nodeAffinity:
    required:
      nodeSelectorTerms:
        - matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [$name]}]
  claimRef: {namespace: $1, name: $claim}
Y
    done
}

# ask ARGUMENT…: Vault, by its own program on the node.
ask() {
    "$here/node" "$name" env VAULT_ADDR=https://vault.vault.svc:8200 "VAULT_CACERT=$secrets/vault/ca.crt" NO_PROXY='*' \
        "$programs/vault" "$@"
}
# kept FIELD: of what its holders keep.
kept() { python3 -c "import json; print(json.load(open('$safe/vault.json'))$1, end='')"; }
log_in() {
    VAULT_TOKEN=$(kept "['root_token']")
    export VAULT_TOKEN
}

apply() { "$bin/kubectl" apply -f - >/dev/null; }

# until_rolled_out NAMESPACE KIND/NAME…
until_rolled_out() {
    local workload
    for workload in "${@:2}"; do "$bin/kubectl" -n "$1" rollout status "$workload" --timeout=4m >/dev/null; done
}
