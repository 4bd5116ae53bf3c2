#!/usr/bin/env bash
# Make a certificate authority and a certificate for each role, in this folder; whatever certificates
# were here are replaced. The authority's key is not kept: nobody can add a certificate later.
set -euo pipefail
cd "$(dirname "$0")"
umask 077 # keys are for their owner only
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc)
days=365 # longer than any cluster lives

openssl req -x509 "${key[@]}" -days "$days" -subj "/CN=kldiv-dask" \
    -addext keyUsage=critical,keyCertSign -keyout "$scratch/ca-key.pem" -out ca.pem

# issue ROLE USES: the scheduler and workers both make and accept connections. A client only makes
# them: its key does not do to pose as a scheduler. Dask compares no host names.
issue() {
    openssl req "${key[@]}" -subj "/CN=kldiv-dask $1" -keyout "$1-key.pem" -out "$scratch/$1.csr"
    openssl x509 -req -in "$scratch/$1.csr" -CA ca.pem -CAkey "$scratch/ca-key.pem" -days "$days" \
        -set_serial "0x$(openssl rand -hex 16)" -extfile <(echo "extendedKeyUsage=$2") -out "$1.pem"
}

issue scheduler serverAuth,clientAuth
issue worker serverAuth,clientAuth
issue client clientAuth
