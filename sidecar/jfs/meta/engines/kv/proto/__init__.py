"""Messages of etcd's gRPC interface, the part this client speaks."""
