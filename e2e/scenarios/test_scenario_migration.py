"""Users of JuiceFS keep what they have: the CSI driver's documented static PersistentVolume with only the driver's name changed, and
their volumes, which the real client and pods here use at the same time."""

import pytest
from jfs_api import names

from e2e import documents
from e2e.cluster import until
from e2e.scenario import Scenario

pytestmark = pytest.mark.cluster

# As JuiceFS CSI's documentation has it ("Use PV", static provisioning), but for the driver and the image.
DOCUMENTED = """
apiVersion: v1
kind: Secret
metadata:
  name: juicefs-secret
  namespace: {namespace}
  labels:
    juicefs.com/validate-secret: "true"
type: Opaque
stringData:
  name: {name}
  metaurl: {metaurl}
  storage: s3
  bucket: {bucket}
  access-key: s3-access-key
  secret-key: s3-secret-key
  format-options: trash-days=1
---
apiVersion: v1
kind: PersistentVolume
metadata:
  name: juicefs-pv
  labels:
    juicefs-name: ten-pb-fs
spec:
  capacity:
    storage: 10Pi
  volumeMode: Filesystem
  mountOptions: ["subdir=/my/sub/dir"]
  accessModes:
    - ReadWriteMany
  persistentVolumeReclaimPolicy: Retain
  csi:
    driver: {driver}
    volumeHandle: juicefs-pv
    fsType: juicefs
    nodePublishSecretRef:
      name: juicefs-secret
      namespace: {namespace}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: juicefs-pvc
  namespace: {namespace}
spec:
  accessModes:
    - ReadWriteMany
  volumeMode: Filesystem
  storageClassName: ""
  resources:
    requests:
      storage: 10Gi
  selector:
    matchLabels:
      juicefs-name: ten-pb-fs
---
apiVersion: v1
kind: Pod
metadata:
  name: juicefs-app
  namespace: {namespace}
spec:
  containers:
  - args:
    - -c
    - while true; do echo $(date -u) >> /data/out.txt; sleep 5; done
    command:
    - /bin/sh
    image: localhost/busybox:1
    name: app
    volumeMounts:
    - mountPath: /data
      name: data
  volumes:
  - name: data
    persistentVolumeClaim:
      claimName: juicefs-pvc
"""


def test_static_volume_of_juicefs_csi(scenario: Scenario) -> None:
    values = scenario.credentials()
    scenario.kubectl("label", "namespace", scenario.name, f"{names.INJECT_LABEL}-", "juicefs.com/enable-injection=true")
    text = DOCUMENTED.format(
        namespace=scenario.name,
        name=values["name"],
        metaurl=values["metaurl"],
        bucket=values["bucket"],
        driver=names.DRIVER,
    )
    scenario.kubectl("apply", "-f", "-", given=text)
    scenario.kubectl.wait("pod/juicefs-app", "condition=Ready")

    until("the application's first line", lambda: scenario.sh("juicefs-app", "head -n 1 /data/out.txt"))
    assert "JuiceFS:" in scenario.sh("juicefs-app", "grep ' /data ' /proc/mounts")
    scenario.kubectl("delete", "pod", "juicefs-app", "--grace-period=1")
    scenario.kubectl("delete", "pvc", "juicefs-pvc")
    scenario.kubectl("delete", "pv", "juicefs-pv")


def test_volume_of_the_real_client(scenario: Scenario) -> None:
    """The real JuiceFS formats a volume and has it mounted while a pod here uses it; its `fsck` and `gc` find nothing wrong."""
    values = scenario.credentials()
    url = values["metaurl"].replace(":redis-password@", ":@")  # the password comes from the environment
    client = documents.container(name="client", image="localhost/juicefs:1", securityContext={"privileged": True})
    client["env"] = [{"name": "META_PASSWORD", "value": "redis-password"}]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "real"}, "spec": documents.pod_spec([client], [])}
    scenario.start(pod)
    scenario.sh(
        "real",
        f"juicefs format --storage s3 --bucket {values['bucket']} --access-key {values['access-key']} "
        f"--secret-key {values['secret-key']} --trash-days 0 '{url}' {values['name']} 2>&1",
        "client",
    )
    files = scenario.volume()
    scenario.pod("ours", {files: "/data"})
    scenario.sh("real", f"mkdir /mnt && juicefs mount -d --no-usage-report --cache-size 0 '{url}' /mnt 2>&1", "client")

    scenario.sh(
        "ours",
        "mkdir -p /data/a/b && dd if=/dev/urandom of=/data/a/b/file bs=1M count=9 2>/dev/null && ln -s b /data/a/c",
    )
    ours = scenario.sh("ours", "md5sum </data/a/c/file")
    assert scenario.sh("real", "md5sum </mnt/a/c/file", "client") == ours
    scenario.sh(
        "real", "mkdir /mnt/d && echo 'from the real client' >/mnt/d/note && mv /mnt/a/b/file /mnt/d/", "client"
    )
    assert scenario.sh("ours", "cat /data/d/note && md5sum </data/d/file") == f"from the real client\n{ours}"

    scenario.sh("real", "juicefs umount /mnt 2>&1", "client")
    scenario.delete("ours")
    checked = scenario.sh("real", f"juicefs fsck '{url}' 2>&1", "client")
    assert "ERROR" not in checked
    collected = scenario.sh("real", f"JFS_GC_SKIPPEDTIME=0 juicefs gc '{url}' 2>&1", "client")
    assert ", 0 leaked," in collected or "0 leaked" in collected, collected
