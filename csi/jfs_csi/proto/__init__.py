"""Messages of the two protocols the kubelet speaks with a driver: CSI and plugin registration.

The `*_pb2` modules are generated from the `.proto` files beside them (`python -m jfs_csi.proto.generate`) and committed,
so that an installation needs no compiler. Services are registered with generic handlers (`jfs_csi.rpc`): no generated
service code is needed.
"""
