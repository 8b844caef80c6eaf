"""The vocabulary that operator, webhook and CSI node service share. It imports nothing of ours and does no I/O."""
