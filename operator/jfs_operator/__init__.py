"""The operator: makes a PersistentVolume, a claim and a managed Secret out of each JuiceFSVolume, and tells whether credentials work.

kopf's events (`handlers`) only name an object; `reconcile` observes its world through `api`, asks a pure planner (`plan_volume`,
`plan_deletion`, `plan_secret`, `plan_static`) for the next of the `steps`, does it, and lets `report` write down what is so. The
client is a subprocess (`command`). `kube` is the real API server, `memory` the fake that obeys the same contract.
"""
