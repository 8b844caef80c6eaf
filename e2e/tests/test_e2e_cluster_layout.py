"""The plain data of the one-node cluster: names, configuration files, command lines, certificates, control groups."""

import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from e2e.cluster import cgroups, layout, pki


def test_names_of_instances_do_not_meet() -> None:
    one, two = layout.Instance("one"), layout.Instance("two")
    assert one.state != two.state
    assert one.cgroup != two.cgroup


@pytest.mark.parametrize("name", ["", "../x", "A", "a b", "-a", "a" * 40])
def test_names_that_are_paths_or_worse_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a cluster"):
        layout.Instance(name)


def test_components_use_the_instance_alone() -> None:
    instance = layout.Instance("mine")
    commands = layout.commands(instance)
    assert list(commands)[:2] == ["etcd", "containerd"]
    for name, command in commands.items():
        assert command[0] == name
    paths = [word for command in commands.values() for word in command if "/var/tmp/" in word]
    assert paths
    assert all(str(instance.state) in path for path in paths)


def test_kubelet_answers_the_names_that_dns_serves() -> None:
    configuration = layout.kubelet(layout.Instance("mine"))
    service = next(d for d in layout.dns_documents() if d["kind"] == "Service")
    assert configuration["clusterDNS"] == [service["spec"]["clusterIP"]]
    corefile = next(d for d in layout.dns_documents() if d["kind"] == "ConfigMap")["data"]["Corefile"]
    assert configuration["clusterDomain"] in corefile
    assert configuration["cgroupRoot"] == "/onenode-mine"


def test_certificates_are_of_one_authority(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    pki.write_all(folder)
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    key = authority.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    for name in (*pki.USERS, *pki.SERVERS):
        certificate = x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())
        certificate.verify_directly_issued_by(authority)
    server = x509.load_pem_x509_certificate((folder / "apiserver.crt").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert layout.NODE_IP in [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    assert (folder / "admin.key").stat().st_mode & 0o077 == 0
    kubeconfig = json.loads((folder / "admin.kubeconfig").read_text())
    assert kubeconfig["clusters"][0]["cluster"]["server"] == layout.API


def test_groups_of_version_one(tmp_path: Path) -> None:
    """Directories stand for the mounted trees; a link to one is not a second tree."""
    for name in ("cpuset", "memory", "cpu,cpuacct", "unified"):
        (tmp_path / name).mkdir()
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")
    for name in ("cpuset.cpus", "cpuset.mems"):
        (tmp_path / "cpuset" / name).write_text("0-1\n")
    assert [tree.name for tree in cgroups.controllers(tmp_path)] == ["cpu,cpuacct", "cpuset", "memory"]
    cgroups.make("node", tmp_path)
    assert (tmp_path / "cpuset" / "node" / "cpuset.cpus").read_text() == "0-1\n"
    for name in ("cpuset.cpus", "cpuset.mems"):  # the kernel's files vanish with their group
        (tmp_path / "cpuset" / "node" / name).unlink()
    (tmp_path / "memory" / "node" / "pod" / "container").mkdir(parents=True)
    (tmp_path / "unified" / "node").mkdir()
    cgroups.remove("node", tmp_path)
    assert not list(tmp_path.glob("*/node"))


def test_group_of_version_two(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    cgroups.make("node", tmp_path)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +memory"
    assert (tmp_path / "node" / "cgroup.subtree_control").read_text() == "+cpu +memory"
