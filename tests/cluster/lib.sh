# What `up`, `down`, `install` and `run` share. Sourced, not run.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(cd "$here/../.." && pwd)

# Everything that a cluster leaves on the disk is below this directory. It must not be a tmpfs (container images lie in it),
# and its path must stay short: a Unix socket's may have 107 octets.
dir=${POSTROAD_CLUSTER_DIR:-/var/tmp/postroad-cluster}
# What stays between clusters: programs that were built or fetched.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/postroad/cluster
# Names on this machine. The node's network namespace holds the whole control plane; a second one is the world outside.
node_ns=postroad-node
world_ns=postroad-world
node=local
# cgroups of all pods lie below this one, so that `down` can tell them from anyone else's.
cgroup=postroad-cluster

# The node, the world's machine on the same wire, and this machine, which reaches the cluster as its user would.
node_ip=172.30.0.1
world_ip=172.30.0.9
host_ip=172.30.255.1
node_link_ip=172.30.255.2
pods=10.244.0.0/24
services=10.96.0.0/16
api_service_ip=10.96.0.1

# Programs of servers live where only root's PATH leads.
export PATH="$PATH:/usr/sbin:/sbin:/usr/local/go/bin"

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }

# `ip netns exec` would mount a new /sys, which hides the cgroups from the kubelet.
in_node() { nsenter --net="/var/run/netns/$node_ns" "$@"; }

# start NAME COMMAND...: a daemon in the node's namespace. `exec` all the way, so that the pid that is kept is the daemon's own.
start() {
    local name=$1
    shift
    (exec 9>&-; exec nsenter --net="/var/run/netns/$node_ns" setsid "$@" >"$dir/log/$name" 2>&1 </dev/null) &
    echo $! >"$dir/pid/$name"
}

# wait_for WHAT SECONDS COMMAND...: until the command succeeds.
wait_for() {
    local what=$1 seconds=$2 tries
    shift 2
    for ((tries = seconds * 10; tries > 0; tries--)); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    echo "$what: not there after $seconds s. Logs are in $dir/log" >&2
    return 1
}

kubectl() { "$bin/kubectl" --kubeconfig "$dir/admin.conf" "$@"; }
ctr() { command ctr -a "$dir/containerd.sock" -n k8s.io "$@"; }

start_apiserver() {
    start apiserver "$bin/kube-apiserver" --etcd-servers http://127.0.0.1:2379 \
        --advertise-address "$node_ip" --secure-port 6443 --service-cluster-ip-range "$services" \
        --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --allow-privileged=true \
        --client-ca-file "$dir/pki/ca.crt" --tls-cert-file "$dir/pki/apiserver.crt" --tls-private-key-file "$dir/pki/apiserver.key" \
        --kubelet-client-certificate "$dir/pki/admin.crt" --kubelet-client-key "$dir/pki/admin.key" \
        --kubelet-certificate-authority "$dir/pki/ca.crt" --kubelet-preferred-address-types InternalIP \
        --service-account-issuer https://kubernetes.default.svc \
        --service-account-key-file "$dir/pki/service-accounts.key" \
        --service-account-signing-key-file "$dir/pki/service-accounts.key"
    wait_for "API server" 60 kubectl get --raw /readyz
}
