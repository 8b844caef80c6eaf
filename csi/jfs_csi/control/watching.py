"""What is told of a volume while it is served: stalls, recoveries, and workers replaced inside the sidecar. Pure.

Each is told once per transition, from the sidecar's beats and figures; `pod.py` decides everything that changes who serves.
"""

from jfs_api import names

from jfs_csi.control import frames
from jfs_csi.control.actions import Account, Action, Notify
from jfs_csi.control.attachment import Attachment

STALLED_AFTER_MS = 30_000  # a request that waits so long is told to the pod's owner …
RECOVERED_BELOW_MS = 5_000  # … and that it no longer does


def beaten(attachment: Attachment, beat: frames.VolumeBeat) -> list[Action]:
    """A beat of the current generation came."""
    attachment.beat = beat
    if attachment.stalled and beat.oldest_ms < RECOVERED_BELOW_MS:
        return recovered(attachment)
    if attachment.stalled or beat.oldest_ms < STALLED_AFTER_MS:
        return []
    attachment.stalled = True
    message = (
        f"An operation on volume {beat.volume} has been waiting for {beat.oldest_ms // 1000} s, {beat.inflight} in all:"
        " metadata engine or object storage do not answer."
    )
    return [Notify(names.EVENT_STALLED, beat.volume, message)]


def mounted(volume: str, *, again: bool) -> Notify:
    """A mount that nobody had before is served; `again`: the volume's former one was lost."""
    if not again:
        return Notify(names.EVENT_MOUNTED, volume, f"Volume {volume} is mounted.")
    text = f"Volume {volume} is mounted again: a fresh mount lies on top of the lost one."
    return Notify(names.EVENT_RECOVERED, volume, text)


def recovered(attachment: Attachment) -> list[Action]:
    """The volume answers."""
    if not attachment.stalled:
        return []
    attachment.stalled = False
    return [Notify(names.EVENT_RECOVERED, attachment.volume, f"Volume {attachment.volume} answers again.")]


def away(attachment: Attachment, seconds: float, waits: bool) -> list[Action]:
    """Nobody has served a volume that was ready for so many seconds; `waits`: its connection is kept."""
    if not attachment.was_ready or attachment.away_since is None or attachment.stalled:
        return []
    attachment.stalled = True
    text = (
        f"The sidecar has been gone for {seconds:.0f} s; operations on volume {attachment.volume}"
        f" {'wait' if waits else 'fail'} until the kubelet has started it again."
    )
    return [Notify(names.EVENT_STALLED, attachment.volume, text)]


def succeeded(attachment: Attachment, frame: frames.Succession) -> list[Action]:
    """The sidecar's figures about replaced workers came."""
    before, attachment.succession = attachment.succession, frame
    restarts = frame.restarts - (before.restarts if before is not None else 0)
    replayed = frame.replayed - (before.replayed if before is not None else 0)
    # The first figures after a restart of ours tell of what happened before it: those were counted, or missed.
    if before is None or (restarts <= 0 and replayed <= 0):
        return []
    if restarts <= 0:  # what a container before this one had not answered
        return [Account(attachment.volume, 0, 0.0, replayed)]
    stall = frame.last_stall_ms / 1000
    message = (
        f"The client of volume {attachment.volume} ended and was replaced; what was open stays open. Operations"
        f" waited {stall:.3f} s."
    )
    return [
        Account(attachment.volume, restarts, stall, max(0, replayed)),
        Notify(names.EVENT_SIDECAR_RESTARTED, attachment.volume, message),
    ]
