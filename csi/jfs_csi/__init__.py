"""CSI node service of JuiceFS sidecars: one process per node between the kubelet and the pods' sidecars.

`main` puts it together; `node`, `identity` and `rpc` speak CSI with the kubelet, `publish` ties volume paths to the
directories sidecars mount on, `control/` talks with the sidecars, `mounts`, `directories`, `layout` and `state` are what
both stand on; `api`, `injection` and `events` ask and tell the API server.
"""
