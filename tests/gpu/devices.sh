#!/usr/bin/env bash
# devices.sh FSCTL STAND_INS PLUGIN: what `fsctl devices` says of a machine with this or that driver.
set -u
fsctl="$1" stand_ins="$2" plugin="$3" failures=0
problem() { echo "FAILED: $*"; failures=$((failures + 1)); }
export FASTSERVE_CUDA_PLUGIN="$plugin"
unset LD_LIBRARY_PATH FASTSERVE_STUB_DRIVER FASTSERVE_STUB_DEVICE FASTSERVE_STUB_CUBLASLT FASTSERVE_STUB_NCCL

says() {  # says TEXT [NAME=VALUE ...]: the output has TEXT in this environment
  local text="$1" out
  shift
  out="$(env LD_LIBRARY_PATH="$stand_ins" "$@" timeout 60 "$fsctl" devices 2>&1)" || problem "exit $? with: $*"
  grep -qF -- "$text" <<<"$out" || problem "not said: \"$text\" with: $* but:"$'\n'"$out"
}

says "gpu 0    NVIDIA H200, 140.4 GiB, capability 9.0, 132 multiprocessors, bus 0000:01:00.0"
says "cuBLASLt 13.1.0 ($stand_ins/libcublasLt.so.13)"
says "CUDA 13.0; the driver's: 13.0"
says "gpu 1    NVIDIA H200" FASTSERVE_STUB_DRIVER=devices=2
says "2 of them train together with --device cuda:all" FASTSERVE_STUB_DRIVER=devices=2
says "the NVIDIA driver speaks CUDA 12.4 and the GPU plugin needs 13.0" FASTSERVE_STUB_DRIVER=driverVer=12040
says "install driver 580 or newer" FASTSERVE_STUB_DRIVER=driverVer=12040
says "the NVIDIA driver shows no GPU" FASTSERVE_STUB_DRIVER=cuInit=100
says "the NVIDIA driver shows no GPU" FASTSERVE_STUB_DRIVER=devices=0
says "CUDA_VISIBLE_DEVICES may hide them" FASTSERVE_STUB_DRIVER=cuDeviceGetCount=100
says "the driver's library and its kernel module are of different versions" FASTSERVE_STUB_DRIVER=cuInit=803
says "the NVIDIA driver does not start: as the test's script says (error 999)" FASTSERVE_STUB_DRIVER=cuInit=999
says "has compute capability 7.5; the least that is supported is 8.0" FASTSERVE_STUB_DRIVER=deviceVer=750
says "is closed to computing" FASTSERVE_STUB_DRIVER=computeMode=2
says "cannot be opened: as the test's script says (error 46)" FASTSERVE_STUB_DRIVER=cuDeviceGet=46
says "cuBLASLt not used: is version 12.5.0 and 13.0 is the least that is used" FASTSERVE_STUB_CUBLASLT=120500
says "matrix products run on FastServe's own kernels" FASTSERVE_STUB_CUBLASLT=120500
says "NCCL     2.28.9 ($stand_ins/libnccl.so.2)"
says "NCCL     not used: is version 2.18.3 and 2.20 is the least that is used; several cards sum gradients along" \
  FASTSERVE_STUB_NCCL=21803
says "no NVIDIA driver is installed" LD_LIBRARY_PATH=
says "/nowhere.so there is no such file" FASTSERVE_CUDA_PLUGIN=/nowhere.so
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
cp "$fsctl" "$scratch/fsctl" && fsctl="$scratch/fsctl"  # where there is no plugin beside it
says "gpu      none: there is no GPU plugin (libfastserve_cuda.so)" FASTSERVE_CUDA_PLUGIN=
says "it was looked for in $scratch" FASTSERVE_CUDA_PLUGIN=
env LD_LIBRARY_PATH="$stand_ins" "$fsctl" devices --json |
  grep -q '"capability": "9.0"' || problem "no capability in --json"
[ $failures = 0 ] && echo "all as it should be"
exit $((failures > 0))
