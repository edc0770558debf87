#!/usr/bin/env bash
# The Kubernetes manifests: well-formed, and what they name is there.
source "$(dirname "$0")/../cli/session.sh"
cd "$source_dir/deploy/kubernetes" || exit 2

for option in $(sed -n 's/^ *- \(--[a-z-]*\)=.*/\1/p' nodes.yaml); do
  "$fsctl" node start --help | grep -q -- "$option\b" || problem "fsctl node start has no $option"
done
"$fsctl" cluster init --help | grep -q -- "--advertise" || problem "fsctl cluster init has no --advertise"
for option in --kind --lifetime --label; do
  grep -q -- "$option" join-token-job.yaml || problem "the job says no $option"
  "$fsctl" cluster token create --help | grep -q -- "$option\b" || problem "fsctl cluster token create has no $option"
done
for file in $(sed -n 's/^ *- \(.*\.yaml\)$/\1/p' kustomization.yaml); do
  [ -f "$file" ] || problem "kustomization.yaml names $file, which is not there"
done

if command -v kubectl >/dev/null; then
  kubectl kustomize . >"$scratch/all.yaml" 2>"$scratch/err" || problem "kustomize: $(cat "$scratch/err")"
  grep -q 'image: fastserve$' "$scratch/all.yaml" && problem "an image is not replaced"
else
  echo "skipped: no kubectl here"
fi
if ! python3 -c 'import yaml' 2>/dev/null; then
  echo "skipped: no Python with a YAML parser here"
  finish
  exit
fi
python3 - <<'END' || problem "the manifests"
import glob, sys, yaml
documents = [d for f in glob.glob("*.yaml") if f != "kustomization.yaml" for d in yaml.safe_load_all(open(f))]
by_kind = lambda kind: {d["metadata"]["name"]: d for d in documents if d["kind"] == kind}
wrong = []
def check(good, what):
    if not good: wrong.append(what)
services, sets, jobs = by_kind("Service"), by_kind("StatefulSet"), by_kind("Job")
made = " ".join(" ".join(c.get("args", [])) for j in jobs.values() for c in j["spec"]["template"]["spec"]["containers"])
for name, s in sets.items():
    pod = s["spec"]["template"]
    labels = pod["metadata"]["labels"]
    check(s["spec"]["selector"]["matchLabels"].items() <= labels.items(), f"{name} selects other pods than its own")
    service = services.get(s["spec"]["serviceName"])
    check(service is not None, f"{name} names a service that is not there")
    check(service and service["spec"]["selector"].items() <= labels.items(), f"{name}'s service selects other pods")
    check(service and service["spec"]["clusterIP"] == "None", f"{name}'s service is not headless")
    volumes = {v["name"] for v in pod["spec"].get("volumes", [])} | {
        v["metadata"]["name"] for v in s["spec"].get("volumeClaimTemplates", [])}
    for c in pod["spec"]["containers"] + pod["spec"].get("initContainers", []):
        check({m["name"] for m in c["volumeMounts"]} <= volumes, f"{name} mounts a volume that is not there")
        check(c["securityContext"]["readOnlyRootFilesystem"], f"{name} may write to its image")
        for e in c.get("env", []):
            secret = e.get("valueFrom", {}).get("secretKeyRef")
            if secret: check(secret["name"] in made and f"{secret['key']}=" in made, f"no job makes {secret}")
    ports = {p["name"]: p["containerPort"] for c in pod["spec"]["containers"] for p in c["ports"]}
    for p in service["spec"]["ports"]:
        check(ports.get(p["targetPort"]) == p["port"], f"{name}'s port {p}")
    for c in pod["spec"]["containers"]:
        for a in c["args"]:
            if a.startswith("--port="): check(int(a[7:]) in ports.values(), f"{name} listens at {a}")
            if a.startswith("--join="): check(a[7:].split(":")[0] in services, f"{name} joins at {a}")
for d in by_kind("NetworkPolicy").values():
    want = d["spec"]["podSelector"]["matchLabels"].items()
    check(any(want <= s["spec"]["template"]["metadata"]["labels"].items() for s in sets.values()), "a policy for nobody")
check(len(sets) == 2 and len(jobs) == 1, "two sets and a job")
sys.exit("\n".join(wrong) if wrong else 0)
END
finish
