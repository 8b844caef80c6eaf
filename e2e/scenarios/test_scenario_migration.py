"""Users of JuiceFS CSI keep what they have: the documented static PersistentVolume with only the driver's name changed."""

import pytest
from jfs_api import names

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
