"""Bringing another sidecar image to pods that run: one pod after the other, by its sidecar's image in the pod's spec alone.

`members` (what a pod and its volumes say) → `plan` (pure: the one next action, and a condition for each volume) → `runner` (carries
it out, waits, reports). What is under way is written on the pod, what stopped it on the volume: a killed operator goes on where it was.
"""
